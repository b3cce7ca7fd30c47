//! Every layout that is understood, value by value.

use prefgraph_nn::{
    Adapter, Linears,
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
    lora::{AdapterFile, AdapterFormat, FrozenAdapter},
    models::flux::NAMES,
};

use crate::files::{D, Folder, KOHYA, PEFT, adapter, apart, assert_equal, assert_is, fused, number};

type Module = fn(&str) -> String;

const NAMED: [&str; 2] = [".lora_A.default.weight", ".lora_B.default.weight"];
const OLD: [&str; 2] = [".lora.down.weight", ".lora.up.weight"];
const PROCESSOR: [&str; 2] = ["_lora.down.weight", "_lora.up.weight"];

fn underscored(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.replace('.', "_"))
}

/// How diffusers called factors that it kept in processors of the attention.
fn in_processor(name: &str) -> String {
    let name = name.replace(".to_out.0", ".to_out");
    format!("transformer.{}", name.replace(".attn.", ".attn.processor."))
}

#[test]
fn linears_in_diffusers_layout_are_the_same_adapter_under_every_prefix_and_ending() {
    let cases: [(Module, [&str; 2], &str); 14] = [
        (|m| format!("transformer.{m}"), PEFT, "diffusers names"),
        (|m| m.into(), PEFT, "diffusers names (no prefix, `.lora_A.weight`)"),
        (
            |m| format!("base_model.model.{m}"),
            PEFT,
            "diffusers names (`base_model.model.`, `.lora_A.weight`)",
        ),
        (|m| format!("base_model.model.transformer.{m}"), PEFT, "(`base_model.model.transformer.`, "),
        (|m| format!("transformer.base_model.model.{m}"), PEFT, "(`transformer.base_model.model.`, "),
        (|m| format!("diffusion_model.{m}"), PEFT, "diffusers names (`diffusion_model.`, `.lora_A.weight`)"),
        (|m| format!("unet.{m}"), PEFT, "diffusers names (`unet.`, `.lora_A.weight`)"),
        (|m| format!("transformer.{m}"), NAMED, "diffusers names (`transformer.`, `.lora_A.default.weight`)"),
        (|m| format!("transformer.{m}"), OLD, "diffusers names (`transformer.`, `.lora.down.weight`)"),
        (|m| format!("unet.{m}"), PROCESSOR, "diffusers names (`unet.`, `_lora.down.weight`)"),
        (in_processor, PROCESSOR, "diffusers names (`transformer.`, `_lora.down.weight`)"),
        (|m| format!("transformer.{m}"), KOHYA, "diffusers names (`transformer.`, `.lora_down.weight`)"),
        (
            |m| underscored("lora_transformer_", m),
            KOHYA,
            "diffusers names with underscores (`lora_transformer_`, ",
        ),
        (|m| underscored("lycoris_", m), KOHYA, "diffusers names with underscores (`lycoris_`, "),
    ];
    let (folder, alpha) = (Folder::new(), number(Dtype::F32, &8f32.to_le_bytes()));
    for (module, endings, names) in cases {
        let path = folder.write(apart(&adapter(4, 4.0)), module, endings, None);
        let file = assert_is(&path, &adapter(4, 4.0));
        assert!(file.names().contains(names), "{names}: {}", file.names());
        assert_eq!(file.format(), (names == "diffusers names").then_some(AdapterFormat::Diffusers));
        // With alpha beside the factors.
        let path = folder.write(apart(&adapter(4, 8.0)), module, endings, Some(&alpha));
        assert_is(&path, &adapter(4, 8.0));
    }
}

#[test]
fn linears_in_the_original_layout_are_the_same_adapter_under_every_prefix_and_ending() {
    let cases: [(Module, [&str; 2], &str); 6] = [
        (|m| format!("diffusion_model.{m}"), PEFT, "original names (`diffusion_model.`, `.lora_A.weight`)"),
        (
            |m| format!("diffusion_model.{m}"),
            KOHYA,
            "original names (`diffusion_model.`, `.lora_down.weight`)",
        ),
        (|m| format!("base_model.model.{m}"), PEFT, "original names (`base_model.model.`, `.lora_A.weight`)"),
        (|m| format!("transformer.{m}"), NAMED, "original names (`transformer.`, `.lora_A.default.weight`)"),
        (|m| underscored("lora_unet_", m), KOHYA, "kohya names"),
        (|m| underscored("lora_unet_", m), PEFT, "original names with underscores (`lora_unet_`, "),
    ];
    let (folder, alpha) = (Folder::new(), number(Dtype::F32, &2f32.to_le_bytes()));
    for (module, endings, names) in cases {
        let path = folder.write(fused(&adapter(4, 4.0)), module, endings, None);
        let file = assert_is(&path, &adapter(4, 4.0));
        assert!(file.names().contains(names), "{names}: {}", file.names());
        assert_eq!(file.format(), (names == "kohya names").then_some(AdapterFormat::Kohya));
        let path = folder.write(fused(&adapter(4, 2.0)), module, endings, Some(&alpha));
        assert_is(&path, &adapter(4, 2.0));
    }
}

#[test]
fn alpha_may_be_any_number_and_factors_may_be_those_of_convolutions_with_one_tap() {
    let folder = Folder::new();
    for alpha in [
        number(Dtype::F64, &8f64.to_le_bytes()),
        number(Dtype::F16, &half::f16::from_f32(8.0).to_le_bytes()),
        number(Dtype::BF16, &half::bf16::from_f32(8.0).to_le_bytes()),
        number(Dtype::I64, &8i64.to_le_bytes()),
        number(Dtype::I32, &8i32.to_le_bytes()),
        number(Dtype::U8, &[8]),
        NamedTensor { shape: vec![1], ..number(Dtype::F32, &8f32.to_le_bytes()) },
    ] {
        for (module, endings) in [
            ((|m| format!("transformer.{m}")) as Module, PEFT),
            (|m| underscored("lora_transformer_", m), KOHYA),
        ] {
            let mut pairs = apart(&adapter(4, 8.0));
            for pair in &mut pairs {
                pair.a.shape.extend([1, 1]);
                pair.b.shape.extend([1, 1]);
            }
            assert_is(&folder.write(pairs, module, endings, Some(&alpha)), &adapter(4, 8.0));
        }
    }
}

#[test]
fn factors_under_several_prefixes_in_one_file_are_all_read_and_all_named() {
    let folder = Folder::new();
    let module = |m: &str| match m.starts_with("single") {
        true => format!("transformer.{m}"),
        false => format!("base_model.model.{m}"),
    };
    let file = assert_is(&folder.write(apart(&adapter(4, 4.0)), module, PEFT, None), &adapter(4, 4.0));
    assert_eq!(file.names(), "diffusers names (`base_model.model.`, `.lora_A.weight`) and diffusers names");
    assert_eq!(file.format(), None);
}

#[test]
fn factors_of_text_encoders_are_counted_and_left_out_only_where_that_is_asked_for() {
    let folder = Folder::new();
    let own = adapter(4, 4.0);
    for prefix in ["text_encoder.text_model.", "lora_te1_text_model_", "text_encoder_2.encoder.", "lora_te3_"]
    {
        let mut tensors: Vec<NamedTensor<'_>> = apart(&own)
            .into_iter()
            .flat_map(|p| {
                let [a, b] = PEFT.map(|ending| format!("transformer.{}{ending}", p.name));
                [NamedTensor { name: a, ..p.a }, NamedTensor { name: b, ..p.b }]
            })
            .collect();
        for ending in [".lora_A.weight", ".lora_B.weight", ".alpha"] {
            tensors.push(NamedTensor::f32(format!("{prefix}q_proj{ending}"), vec![1], &[1.0]));
        }
        let path = folder.tensors(&tensors, &[]);
        let error = AdapterFile::open(&path, "", &NAMES).unwrap_err().to_string();
        assert!(
            error.contains("3 tensors of text encoders") && error.contains("--drop-text-encoders"),
            "{error}"
        );
        let file = AdapterFile::open_transformer(&path, "", &NAMES).unwrap();
        assert_eq!(file.left_out(), 3);
        assert_equal(&file.adapter(None).unwrap(), &own);
    }
}

#[test]
fn linears_outside_the_blocks_are_converted_and_shift_and_scale_change_places() {
    let folder = Folder::new();
    let factors = |module: &str, shape: [usize; 2]| {
        let [down, up] = KOHYA.map(|ending| format!("{module}{ending}"));
        let count = |from: usize, n: usize| (from..from + n).map(|v| v as f32).collect::<Vec<f32>>();
        [
            NamedTensor::f32(down, vec![2, shape[1]], &count(1, 2 * shape[1])),
            NamedTensor::f32(up, vec![shape[0], 2], &count(100, shape[0] * 2)),
        ]
    };
    let tensors = [
        factors("lora_unet_img_in", [D, 4]),
        factors("lora_unet_final_layer_adaLN_modulation_1", [2 * D, D]),
        factors("lora_unet_final_layer_linear", [4, D]),
    ]
    .concat();
    let adapter =
        AdapterFile::open(&folder.tensors(&tensors, &[]), "", &NAMES).unwrap().adapter(None).unwrap();
    let to = folder.at("to.safetensors");
    adapter.write(&to, AdapterFormat::Diffusers, &[]).unwrap();
    let files = TensorFiles::open(&to).unwrap();
    let names: Vec<&str> = files.names().filter(|n| n.ends_with("lora_A.weight")).collect();
    let expected = ["norm_out.linear", "proj_out", "x_embedder"];
    assert_eq!(names, expected.map(|n| format!("transformer.{n}.lora_A.weight")));
    // Rows of the original: shift, then scale; of diffusers: scale, then shift.
    let up: Vec<f32> = (100..100 + 4 * D).map(|v| v as f32).collect();
    let swapped = [&up[2 * D..], &up[..2 * D]].concat();
    assert_eq!(files.read("transformer.norm_out.linear.lora_B.weight").unwrap(), swapped);
    // And back.
    let file = AdapterFile::open(&to, "", &NAMES).unwrap();
    assert_equal(&file.adapter(None).unwrap(), &adapter);
    adapter.write(&to, AdapterFormat::Kohya, &[]).unwrap();
    let back = TensorFiles::open(&to).unwrap();
    for tensor in &tensors {
        assert_eq!(back.bytes(&tensor.name).unwrap(), &*tensor.bytes, "{}", tensor.name);
    }
    assert!(
        adapter.write(&to, AdapterFormat::Uno, &[]).unwrap_err().to_string().contains("it has factors for")
    );
    // In a network adapters are for the blocks.
    let none = Linears::new(&NAMES, Vec::new());
    let message =
        "`norm_out.linear` (`lora_unet_final_layer_adaLN_modulation_1`), which is outside the blocks of FLUX";
    let error = Adapter::read(&to, &none).unwrap_err().to_string();
    assert!(error.contains(message) && error.contains("(2 more)"), "{error}");
    let error = FrozenAdapter::open(&to, &none).unwrap_err().to_string();
    assert!(error.contains("which is outside the blocks of FLUX"), "{error}");
}

#[test]
fn modules_whose_scales_differ_by_powers_of_two_become_one_alpha_and_others_are_refused() {
    let folder = Folder::new();
    let out = ["lora_unet_double_blocks_0_img_attn_proj", "lora_unet_double_blocks_0_txt_attn_proj"];
    let write = |alphas: [f32; 2]| {
        let tensors = out.iter().zip(alphas).flat_map(|(module, alpha)| {
            [
                NamedTensor::f32(format!("{module}.lora_down.weight"), vec![2, D], &[0.75; 2 * D]),
                NamedTensor::f32(format!("{module}.lora_up.weight"), vec![D, 2], &[0.3; 2 * D]),
                NamedTensor::f32(format!("{module}.alpha"), vec![], &[alpha]),
            ]
        });
        let path = folder.at("scales.safetensors");
        write_safetensors(&path, &tensors.collect::<Vec<_>>(), &[]).unwrap();
        AdapterFile::open(&path, "", &NAMES).unwrap()
    };
    let adapter = write([2.0, 8.0]).adapter(None).unwrap();
    assert_eq!(adapter.layout.alpha, 2.0);
    let b = adapter
        .layout
        .ranges()
        .into_iter()
        .map(|(_, b)| adapter.values.host().unwrap()[b.start])
        .collect::<Vec<_>>();
    assert_eq!(b, [0.3, 4.0 * 0.3]);
    let error = write([2.0, 3.0]).adapter(None).unwrap_err().to_string();
    assert!(error.contains("scales its modules differently: alpha is 2 for `lora_unet_double"), "{error}");
}
