//! Factors of a U-Net's convolutions: what they add, their gradients, and their names and axes in files.

mod slopes;
mod small_unet;

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, Backbone, Probe,
    files::{NamedTensor, TensorFiles, write_safetensors},
    layers::{Loading, Packing},
    lora::{AdapterFormat, AdapterLayout},
    models::{Checkpointing, SdxlUNet, UNetOptions},
};
use slopes::along_every_factor;
use small_unet::{Small, config, cotangent, gradient, inputs, numbers};

fn layout(model: &SdxlUNet, targets: &[&str]) -> Arc<AdapterLayout> {
    Arc::new(AdapterLayout::matching(&model.layout().linears, targets, 2, 4.0).unwrap().0)
}

fn adapter(layout: &Arc<AdapterLayout>, salt: usize) -> Adapter {
    let values: Vec<f32> = numbers(layout.len(), salt).iter().map(|v| 0.2 * v).collect();
    Adapter { layout: Arc::clone(layout), values: values.into() }
}

fn predicted(model: &SdxlUNet, adapter: Option<&Adapter>) -> Vec<f32> {
    model.predict(&inputs(), adapter, &Probe::NOTHING).unwrap().latents.into_values()
}

#[test]
fn only_patterns_that_end_in_conv_name_convolutions() {
    let small = Small::new(&config());
    let model = small.model(small.options());
    let named = |targets: &[&str]| {
        let layout = layout(&model, targets);
        layout.modules.iter().filter(|m| m.window.is_some()).map(|m| m.name.clone()).collect::<Vec<_>>()
    };
    for targets in [&[][..], &["*"], &["up_blocks.*", "to_q"]] {
        assert!(named(targets).is_empty(), "{targets:?}");
    }
    assert_eq!(
        named(&["conv_in", "*.downsamplers.0.conv"]),
        ["conv_in", "down_blocks.0.downsamplers.0.conv"]
    );
    let all = named(&["conv*", "*.conv*"]);
    assert_eq!(named(&["conv*"]), all);
    for name in ["conv_out", "mid_block.resnets.1.conv2", "up_blocks.0.upsamplers.0.conv"] {
        assert!(all.iter().any(|n| n == name), "{name} in {all:?}");
    }
    let error = AdapterLayout::matching(&model.layout().linears, &["*.conv9"], 2, 2.0).unwrap_err();
    assert!(error.to_string().contains("`*.conv9` names no linear"), "{error}");
}

#[test]
fn factors_of_a_convolution_add_their_product_to_its_weight() {
    let small = Small::new(&config());
    let model = small.model(small.options());
    let adapter = adapter(&layout(&model, &["conv*"]), 3);
    let expected = predicted(&model, Some(&adapter));

    // B A with the axes of the files, added to every weight.
    let path = small.path().join("diffusion_pytorch_model.safetensors");
    let files = TensorFiles::open(&path).unwrap();
    let (values, layout) = (adapter.values.host().unwrap(), &adapter.layout);
    let tensors: Vec<NamedTensor<'_>> = files
        .names()
        .map(|name| {
            let mut weight = files.read(name).unwrap();
            let of = layout.modules.iter().position(|m| name == format!("{}.weight", m.name));
            if let Some(at) = of {
                let (inputs, (a, b)) = (layout.modules[at].inputs, layout.ranges()[at].clone());
                for (i, weight) in weight.iter_mut().enumerate() {
                    let term = |r: usize| {
                        values[b.start + i / inputs * layout.rank + r]
                            * values[a.start + r * inputs + i % inputs]
                    };
                    *weight += layout.scale() * (0..layout.rank).map(term).sum::<f32>();
                }
            }
            NamedTensor::f32(name, files.info(name).unwrap().shape.clone(), &weight)
        })
        .collect();
    drop(model);
    let merged = Small::new(&config());
    write_safetensors(&merged.path().join("diffusion_pytorch_model.safetensors"), &tensors, &[]).unwrap();
    let found = predicted(&merged.model(merged.options()), None);
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 2e-5 * largest, "{found}, expected {expected}");
    }
    let frozen = predicted(&small.model(small.options()), None);
    assert!(frozen.iter().zip(&expected).any(|(f, e)| (f - e).abs() > 1e-2 * largest));
}

#[test]
fn factors_whose_b_is_zero_leave_the_bits_of_the_frozen_network() {
    let small = Small::new(&config());
    let model = small.model(small.options());
    let layout = layout(&model, &["conv*", "to_q"]);
    let zero = Adapter::new(layout, prefgraph_nn::lora::Init::Gaussian, |_| || 0.3);
    assert_eq!(predicted(&model, Some(&zero)), predicted(&model, None));
}

#[test]
fn the_derivative_by_the_factors_of_every_convolution_is_that_of_finite_differences() {
    let small = Small::new(&config());
    let model = small.model(small.options());
    let layout = layout(&model, &["conv*"]);
    let start = adapter(&layout, 3);
    let found = gradient(&model, &inputs(), &start);
    let value = |values: Vec<f32>| -> f64 {
        let moved = Adapter { layout: Arc::clone(&layout), values: values.into() };
        let cotangent = cotangent();
        let found = predicted(&model, Some(&moved));
        found.iter().zip(cotangent.values()).map(|(p, c)| f64::from(*p) * f64::from(*c)).sum()
    };
    let step = |length: f64| (2e-3 / length).clamp(1e-3, 0.2) / length;
    let values = start.values.host().unwrap();
    for found in along_every_factor(&layout, &values, &found, step, value) {
        let bar = 1e-2 + 4e-6 / (found.step * found.expected());
        let good = bar < 0.2 && found.error() < bar;
        assert!(good, "{}: slope {}, expected {}", found.factor, found.slope, found.expected());
    }
}

#[test]
fn a_gradient_has_the_same_bits_alone_whatever_a_pass_keeps_and_wherever_weights_are() {
    let small = Small::new(&config());
    let streamed = Loading { packing: Packing::Streamed, ..Loading::default() };
    let checkpointing = Checkpointing::Blocks;
    for targets in [&["conv*"][..], &["conv_out"], &["conv_in"], &["up_blocks.0.upsamplers.0.conv", "to_q"]] {
        let model = small.model(small.options());
        let layout = layout(&model, targets);
        let adapter = adapter(&layout, 4);
        let expected = gradient(&model, &inputs(), &adapter);
        assert!(expected.iter().any(|g| *g != 0.0), "{targets:?}");
        for options in [
            UNetOptions { checkpointing, ..small.options() },
            UNetOptions { checkpointing, loading: streamed, ..small.options() },
        ] {
            let found = gradient(&small.model(options.clone()), &inputs(), &adapter);
            assert_eq!(found, expected, "{targets:?} {options:?}");
        }
    }
}

#[test]
fn files_have_the_names_and_axes_of_convolutions_and_are_read_back() {
    let small = Small::new(&config());
    let model = small.model(small.options());
    let linears = &model.layout().linears;
    let adapter = adapter(&layout(&model, &["conv*", "to_q"]), 5);
    let path = small.path().join("adapter.safetensors");
    for (format, names) in [
        (
            AdapterFormat::Diffusers,
            [
                ("unet.down_blocks.0.resnets.0.conv1.lora_A.weight", [2, 8, 3, 3]),
                ("unet.down_blocks.0.resnets.0.conv1.lora_B.weight", [8, 2, 1, 1]),
                ("unet.down_blocks.1.resnets.0.conv_shortcut.lora_A.weight", [2, 8, 1, 1]),
                ("unet.down_blocks.0.downsamplers.0.conv.lora_A.weight", [2, 8, 3, 3]),
                ("unet.conv_in.lora_A.weight", [2, 4, 3, 3]),
            ],
        ),
        (
            AdapterFormat::Kohya,
            [
                ("lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight", [2, 8, 3, 3]),
                ("lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight", [8, 2, 1, 1]),
                ("lora_unet_input_blocks_4_0_skip_connection.lora_down.weight", [2, 8, 1, 1]),
                ("lora_unet_input_blocks_3_0_op.lora_down.weight", [2, 8, 3, 3]),
                ("lora_unet_input_blocks_0_0.lora_down.weight", [2, 4, 3, 3]),
            ],
        ),
    ] {
        adapter.write(&path, format, &[]).unwrap();
        let files = TensorFiles::open(&path).unwrap();
        for (name, axes) in names {
            let info = files.info(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(info.shape, axes, "{name}");
        }
        let back = Adapter::read(&path, linears).unwrap();
        assert_eq!(back.layout, adapter.layout, "{format:?}");
        assert_eq!(back.values.host().unwrap(), adapter.values.host().unwrap(), "{format:?}");
    }
}
