//! Files of an unknown layout are refused, and the message blames the right tensor.

use prefgraph_nn::files::NamedTensor;

use crate::files::{Folder, KOHYA, PEFT, adapter, apart, refusal};

const OUT: &str = "transformer.transformer_blocks.0.attn.to_out.0";

#[test]
fn a_name_that_nothing_would_read_is_refused_without_a_network_to_compare_with() {
    let folder = Folder::new();
    for (module, endings, message) in [
        (
            "transformer.transformer_blocks.0.attn.to_p",
            PEFT,
            "`transformer_blocks.0.attn.to_p`, which is not a linear",
        ),
        ("blocks.0.to_q", PEFT, "`blocks.0.to_q`, which is not a linear of a FLUX transformer"),
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            PEFT,
            "a linear of a Stable Diffusion U-Net",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q",
            ["_lora.down.weight", "_lora.up.weight"],
            "a linear of a Stable Diffusion U-Net",
        ),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            KOHYA,
            "a linear of a Stable Diffusion U-Net",
        ),
        ("lora_unet_double_blocks_0_img_attn_kv", KOHYA, "`double_blocks_0_img_attn_kv` is not a linear"),
        (
            "lora/transformer_blocks.0.attn.to_q",
            PEFT,
            "`lora/transformer_blocks.0.attn.to_q`, which is not a linear",
        ),
        ("double_blocks.0.processor.qkv_lora3", [".down.weight", ".up.weight"], "is not a linear"),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            KOHYA,
            "an adapter of text encoders alone (2 tensors)",
        ),
    ] {
        let names = endings.map(|ending| format!("{module}{ending}"));
        let error = refusal(&folder.two([&names[0], &names[1]], &[]));
        assert!(error.contains(message), "{module}: {error}");
    }
}

#[test]
fn another_method_is_called_by_its_name() {
    let folder = Folder::new();
    for (tensor, method) in [
        ("lora_magnitude_vector", "is DoRA by its `"),
        ("dora_scale", "is DoRA by its `"),
        ("hada_w1_a", "is LoHa by its `"),
        ("lokr_w1", "is LoKr by its `"),
        ("lora_mid.weight", "a third factor (LoCon)"),
        ("lora_B.bias", "a LoRA with biases"),
        ("diff", "a change of whole weights"),
        ("reshape_weight", "a control adapter"),
    ] {
        let tensors = [
            NamedTensor::f32(format!("{OUT}.lora_A.weight"), vec![1, 2], &[1.0; 2]),
            NamedTensor::f32(format!("{OUT}.lora_B.weight"), vec![2, 1], &[1.0; 2]),
            NamedTensor::f32(format!("{OUT}.{tensor}"), vec![2], &[1.0; 2]),
        ];
        for tensors in [&tensors[..], &tensors[2..]] {
            let error = refusal(&folder.tensors(tensors, &[]));
            assert!(error.contains(method) && error.contains(&format!("{OUT}.{tensor}")), "{error}");
        }
    }
}

#[test]
fn the_tensor_that_is_at_fault_is_the_one_that_is_named() {
    let folder = Folder::new();
    let a = || NamedTensor::f32(format!("{OUT}.lora_A.weight"), vec![1, 2], &[1.0; 2]);
    let b = || NamedTensor::f32(format!("{OUT}.lora_B.weight"), vec![2, 1], &[1.0; 2]);
    let named = |name: &str, shape: &[usize]| {
        NamedTensor::f32(name, shape.to_vec(), &vec![1.0; shape.iter().product()])
    };
    for (tensors, message) in [
        (vec![a(), b(), named("aaa.weight", &[1])], "`aaa.weight` is not a factor of an adapter"),
        (vec![a()], "`transformer.transformer_blocks.0.attn.to_out.0` has only one of its two factors"),
        (
            vec![a(), b(), named(&format!("{OUT}.lora_A.other.weight"), &[1, 2])],
            "lora_A.other.weight` are the same factor",
        ),
        (
            vec![
                a(),
                b(),
                named("lora_transformer_transformer_blocks_0_attn_to_out_0.lora_down.weight", &[1, 2]),
                named("lora_transformer_transformer_blocks_0_attn_to_out_0.lora_up.weight", &[2, 1]),
            ],
            "`transformer_blocks.0.attn.to_out.0` twice, as `transformer.transformer_blocks.0.attn.to_out.0` and as `lora_tr",
        ),
        (
            vec![a(), b(), named(&format!("{OUT}.alpha"), &[2])],
            "to_out.0.alpha` is F32 with axes [2]: expected one number",
        ),
        (vec![a(), named(&format!("{OUT}.lora_B.weight"), &[2, 1, 3])], "lora_B.weight` has axes [2, 1, 3]"),
        (
            vec![
                a(),
                b(),
                named(&format!("{OUT}.alpha"), &[]),
                named("proj_out.lora_A.weight", &[1, 2]),
                named("proj_out.lora_B.weight", &[2, 1]),
            ],
            "states alpha for `transformer.transformer_blocks.0.attn.to_out.0` and none for `proj_out`",
        ),
        (
            vec![
                named("double_blocks.0.processor.proj_lora1.down.weight", &[1, 2]),
                named("double_blocks.0.processor.proj_lora1.up.weight", &[2, 1]),
                named("double_blocks.0.processor.proj_lora1.alpha", &[]),
            ],
            "UNO's and XLabs' factors are not scaled",
        ),
    ] {
        let error = refusal(&folder.tensors(&tensors, &[]));
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn a_good_file_with_one_tensor_too_many_is_refused_for_that_tensor() {
    let folder = Folder::new();
    let path = folder.write(apart(&adapter(4, 4.0)), |m| format!("transformer.{m}"), PEFT, None);
    let files = prefgraph_nn::files::TensorFiles::open(&path).unwrap();
    let mut tensors: Vec<NamedTensor<'_>> = files
        .names()
        .map(|n| NamedTensor::f32(n, files.info(n).unwrap().shape.clone(), &files.read(n).unwrap()))
        .collect();
    tensors.push(NamedTensor::f32("bundle_emb.token", vec![1], &[0.0]));
    let error = refusal(&folder.tensors(&tensors, &[]));
    assert!(error.contains("`bundle_emb.token` is not a factor of an adapter, unlike the others"), "{error}");
}
