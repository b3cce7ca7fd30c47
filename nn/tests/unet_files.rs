//! What a U-Net is given: its files, its IP-Adapter, its inputs and what is asked of it; wrong ones are called what they are.

mod small_unet;

use std::{fs, path::Path, sync::Arc};

use prefgraph_nn::{
    Adapter, AdapterLayout, Backbone, Cpu, Probe, Tensor,
    backbone::Scoring,
    files::{NamedTensor, TensorFiles, write_safetensors},
    lora::AdapterFormat,
    models::{
        SdxlUNet, UNetOptions,
        unet::{ImagePrompt, ResamplerUse},
    },
};
use serde_json::Value;
use small_unet::{CROSSINGS, Small, config, image_prompt_tensors, inputs, write_tensors, write_unet};

fn refused(path: &Path, options: UNetOptions) -> String {
    SdxlUNet::open_with(Cpu::new(1).unwrap(), path, options).unwrap_err().to_string()
}

#[test]
fn a_u_net_for_something_else_is_called_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 6] = [
        (|c| c["in_channels"] = 9.into(), "is an inpainting U-Net (9 channels"),
        (
            |c| {
                c["cross_attention_dim"] = 768.into();
                c["addition_embed_type"] = Value::Null;
            },
            "is the U-Net of Stable Diffusion 1",
        ),
        (|c| c["cross_attention_dim"] = 1280.into(), "is SDXL's refiner"),
        (|c| c["_class_name"] = "FluxTransformer2DModel".into(), "_class_name is FluxTransformer2DModel"),
        (|c| c["time_cond_proj_dim"] = 256.into(), "time_cond_proj_dim is 256"),
        (|c| c["transformer_layers_per_block"] = 1_000_000.into(), "but"),
    ];
    write_unet(dir.path(), &config());
    for (change, expected) in changes {
        let mut config = config();
        change(&mut config);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let error = refused(dir.path(), UNetOptions::default());
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_folder_with_missing_surplus_or_other_tensors_is_refused_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    write_unet(dir.path(), &config());
    let mut wider = config();
    wider["layers_per_block"] = 2.into();
    fs::write(dir.path().join("config.json"), wider.to_string()).unwrap();
    let error = refused(dir.path(), UNetOptions::default());
    assert!(error.contains("down_blocks.0.resnets.1"), "{error}");
    let none = refused(&dir.path().join("nowhere"), UNetOptions::default());
    assert!(none.contains("does not exist") && none.contains("U-Net of Stable Diffusion XL"), "{none}");
    let file = refused(&dir.path().join("diffusion_pytorch_model.safetensors"), UNetOptions::default());
    assert!(file.contains("is a file of a U-Net's folder: name the folder"), "{file}");
}

#[test]
fn the_folder_above_the_u_net_and_weights_in_half_precision_alone_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let unet = dir.path().join("unet");
    write_unet(&unet, &config());
    let open = || SdxlUNet::open(Cpu::new(1).unwrap(), dir.path());
    assert_eq!(open().unwrap().layout().kind, "sdxl");
    let from = unet.join("diffusion_pytorch_model.safetensors");
    fs::rename(&from, unet.join("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    open().unwrap();
}

#[test]
fn a_single_file_with_the_original_names_is_the_same_model() {
    let small = Small::new(&config());
    let whole = TensorFiles::open(&small.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    let rename = |name: &str| {
        let pairs = [
            ("conv_in", "input_blocks.0.0"),
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
            ("down_blocks.0.resnets.0", "input_blocks.1.0"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
            ("down_blocks.1.resnets.0", "input_blocks.3.0"),
            ("down_blocks.1.attentions.0", "input_blocks.3.1"),
            ("mid_block.resnets.0", "middle_block.0"),
            ("mid_block.attentions.0", "middle_block.1"),
            ("mid_block.resnets.1", "middle_block.2"),
            ("up_blocks.0.resnets.0", "output_blocks.0.0"),
            ("up_blocks.0.attentions.0", "output_blocks.0.1"),
            ("up_blocks.0.resnets.1", "output_blocks.1.0"),
            ("up_blocks.0.attentions.1", "output_blocks.1.1"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.2.conv"),
            ("up_blocks.1.resnets.0", "output_blocks.2.0"),
            ("up_blocks.1.resnets.1", "output_blocks.3.0"),
        ];
        let (from, to) = pairs.iter().find(|(from, _)| name.starts_with(&format!("{from}."))).unwrap();
        let mut name = name.replacen(from, to, 1);
        if from.contains("resnets") {
            for (from, to) in [
                ("norm1", "in_layers.0"),
                ("conv1", "in_layers.2"),
                ("time_emb_proj", "emb_layers.1"),
                ("norm2", "out_layers.0"),
                ("conv2", "out_layers.3"),
                ("conv_shortcut", "skip_connection"),
            ] {
                name = name.replace(from, to);
            }
        }
        format!("model.diffusion_model.{name}")
    };
    let values: Vec<_> = whole.names().map(|name| (rename(name), whole.read(name).unwrap(), name)).collect();
    let shape = |name: &str| whole.info(name).unwrap().shape.clone();
    let mut tensors: Vec<_> =
        values.iter().map(|(to, v, name)| NamedTensor::f32(to, shape(name), v)).collect();
    tensors.push(NamedTensor::f32("first_stage_model.decoder.conv_in.bias", vec![1], &[1.0]));
    let file = small.path().join("model.safetensors");
    write_safetensors(&file, &tensors, &[]).unwrap();
    let predict = |path: &Path| {
        let model = SdxlUNet::open_with(Cpu::new(2).unwrap(), path, small.options()).unwrap();
        model.predict(&inputs(), None, &Probe::NOTHING).unwrap().latents.into_values()
    };
    assert_eq!(predict(&file), predict(small.path()));

    // Without sizes beside it a file is taken for SDXL itself, or for what its shapes say.
    let alone = tempfile::tempdir().unwrap();
    let moved = alone.path().join("model.safetensors");
    write_safetensors(&moved, &tensors, &[]).unwrap();
    let error = refused(&moved, UNetOptions::default());
    assert!(error.contains("model.diffusion_model.input_blocks"), "{error}");
    let kinds = [
        (vec![8, 9, 3, 3], vec![8, 768], "an inpainting U-Net (9 channels"),
        (vec![8, 4, 3, 3], vec![8, 768], "the U-Net of Stable Diffusion 1"),
        (vec![8, 4, 3, 3], vec![8, 1280], "SDXL's refiner"),
    ];
    for (first, key, expected) in kinds {
        let at = |rest: &str| format!("model.diffusion_model.{rest}.weight");
        let key = (at("input_blocks.4.1.transformer_blocks.0.attn2.to_k"), key);
        write_tensors(&moved, vec![(at("input_blocks.0.0"), first), key]);
        let error = refused(&moved, UNetOptions::default());
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn an_ip_adapter_for_another_network_is_called_what_it_is() {
    let small = Small::new(&config());
    let refused_with = |name: &str| {
        let image_prompt =
            Some(ImagePrompt { path: small.path().join(name), scale: 1.0, resampler: ResamplerUse::Outside });
        refused(small.path(), UNetOptions { image_prompt, ..UNetOptions::default() })
    };
    let write = |name: &str, tensors| write_tensors(&small.path().join(name), tensors);
    write("sd15.safetensors", image_prompt_tensors(&[16; CROSSINGS], 768));
    let error = refused_with("sd15.safetensors");
    assert!(error.contains("image tokens are 768 wide (768 is the width of Stable Diffusion 1)"), "{error}");
    write("more.safetensors", image_prompt_tensors(&[16; CROSSINGS + 1], 12));
    let error = refused_with("more.safetensors");
    assert!(
        error.contains("it has 18 tensors of keys and values, this U-Net has 8 cross-attentions"),
        "{error}"
    );
    write("wide.safetensors", image_prompt_tensors(&[8; CROSSINGS], 12));
    assert!(refused_with("wide.safetensors").contains("ip_adapter.1.to_k_ip.weight"));
    let error = refused_with("diffusion_pytorch_model.safetensors");
    assert!(
        error.contains("is no IP-Adapter: expected tensors called `ip_adapter.1.to_k_ip.weight`"),
        "{error}"
    );
}

#[test]
fn an_adapter_of_a_u_net_is_written_and_read_back_with_the_names_of_kohya() {
    let small = Small::new(&config());
    let linears = &small.model(small.options()).layout().linears.clone();
    let (layout, _) =
        AdapterLayout::matching(linears, &["to_q", "to_k_ip", "proj_in", "ff.net.2"], 3, 4.5).unwrap();
    let values = small_unet::numbers(layout.len(), 7);
    let adapter = Adapter { layout: Arc::new(layout), values: values.clone().into() };
    let path = small.path().join("adapter.safetensors");
    adapter.write(&path, AdapterFormat::Kohya, &[]).unwrap();
    let names = TensorFiles::open(&path).unwrap();
    let name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k_ip.lora_down.weight";
    assert!(names.info(name).is_some(), "{:?}", names.names().next());
    assert_eq!(*Adapter::read(&path, linears).unwrap().values.host().unwrap(), values);
}

#[test]
fn inputs_that_do_not_fit_are_refused_with_what_was_expected() {
    let small = Small::new(&config());
    let (with, without) = (small.model(small.options()), small.model(UNetOptions::default()));
    let cpu = Cpu::new(1).unwrap();
    let said = |model: &SdxlUNet, change: &dyn Fn(&mut prefgraph_nn::Inputs)| {
        let mut inputs = inputs();
        change(&mut inputs);
        model.predict(&inputs, None, &Probe::NOTHING).unwrap_err().to_string()
    };
    assert!(said(&with, &|i| i.image_tokens = None).contains("none were given"));
    assert!(said(&without, &|_| {}).contains("has no IP-Adapter that would read them"));
    assert!(said(&with, &|i| i.sizes.clear()).contains("sizes of pictures: expected 2 of them, got 0"));
    let odd = |i: &mut prefgraph_nn::Inputs| i.x_t = Tensor::zeros(&cpu, (2, 4, 3, 6));
    assert!(said(&with, &odd).contains("H and W multiples of 2"));
    let narrow = |i: &mut prefgraph_nn::Inputs| i.image_tokens = Some(Tensor::zeros(&cpu, (2, 4, 11)));
    assert!(said(&with, &narrow).contains("image tokens: expected [2, K, 12]"));
    assert!(said(&with, &|i| i.guidance = Some(3.5)).contains("takes no guidance value"));
    assert!(with.features(&inputs()).unwrap_err().to_string().contains("vision encoder"));
}

#[test]
fn text_of_one_sample_is_that_of_every_row_and_an_ip_adapter_of_scale_zero_changes_nothing() {
    let small = Small::new(&config());
    let predict = |options: UNetOptions, inputs: &prefgraph_nn::Inputs| {
        small.model(options).predict(inputs, None, &Probe::NOTHING).unwrap().latents.into_values()
    };
    let mut once = inputs();
    let (_, count, width) = once.text.shape();
    let text = once.text.values()[..count * width].to_vec();
    let cpu = Cpu::new(1).unwrap();
    once.text = Tensor::new(&cpu, (1, count, width), &text).unwrap();
    let mut twice = once.clone();
    twice.text = Tensor::new(&cpu, (2, count, width), text.repeat(2)).unwrap();
    assert_eq!(predict(small.options(), &once), predict(small.options(), &twice));
    assert_ne!(predict(small.options(), &once), predict(small.options(), &inputs()));

    let silent =
        Some(ImagePrompt { path: small.image_prompt(), scale: 0.0, resampler: ResamplerUse::Outside });
    let silent = predict(UNetOptions { image_prompt: silent, ..UNetOptions::default() }, &once);
    assert_ne!(silent, predict(small.options(), &once));
    once.image_tokens = None;
    assert_eq!(silent, predict(UNetOptions::default(), &once));
}

#[test]
fn scores_are_of_each_reference_and_each_resolution_by_itself() {
    let small = Small::new(&config());
    let (model, inputs) = (small.model(small.options()), inputs());
    let scores = |masks: &[Vec<f32>], cells| {
        let scoring = Scoring { blocks: 0..CROSSINGS, cells, samples: 2, masks };
        let probe = Probe { scores: Some(scoring), tokens: 0..0 };
        model.predict(&inputs, None, &probe).map(|found| found.scores)
    };
    // Two references of two tokens each, in two samples.
    let whole = vec![vec![1.0; 4], vec![1.0; 4]];
    let all = scores(&whole, None).unwrap();
    assert_eq!((all.len(), all[0].len()), (2, 2 * 24));
    assert_ne!(all[0], all[1]);
    // Every attention of this network has pixels of two cells: four neighbouring cells share a score.
    assert_eq!(scores(&whole, Some(2)).unwrap(), all);
    assert_eq!((all[0][0], all[0][0]), (all[0][1], all[0][7]));
    let error = scores(&whole, Some(4)).unwrap_err().to_string();
    assert!(error.contains("pixels of 4 latent cells"), "{error}");
    // The first token alone of each reference, against the first of both as one reference.
    let first = vec![vec![1.0, 0.0, 1.0, 0.0]; 2];
    let one = vec![vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]];
    assert_eq!(scores(&first, None).unwrap()[0], scores(&one, None).unwrap()[0]);
    let error = scores(&[vec![1.0; 4], vec![1.0; 4], vec![1.0; 4]], None).unwrap_err().to_string();
    assert!(error.contains("masks of 4 image tokens of 3 references"), "{error}");
}
