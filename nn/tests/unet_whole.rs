//! Linears of an IP-Adapter that are trained whole: where they start, their gradients, and the file that they are written to.

mod slopes;
mod small_unet;

use std::{path::Path, sync::Arc};

use prefgraph_nn::{
    Adapter, Backbone, Inputs, Probe,
    files::TensorFiles,
    layers::{Loading, Packing},
    lora::{AdapterFormat, AdapterLayout},
    models::{
        Checkpointing, SdxlUNet, UNetOptions,
        unet::{ImagePrompt, ResamplerUse},
    },
};
use slopes::along_every_factor;
use small_unet::{PICTURE_TOKENS, Small, config, cotangent, gradient, inputs, inputs_of_pictures, numbers};

const KEYS: [&str; 2] = ["*.to_k_ip", "*.to_v_ip"];
const INSIDE: ResamplerUse = ResamplerUse::Inside { tokens: PICTURE_TOKENS };

fn factors(model: &SdxlUNet, targets: &[&str]) -> AdapterLayout {
    let linears = &model.layout().linears;
    match targets {
        [] => AdapterLayout::of_factors(linears.names, Vec::new(), 3, 6.0),
        targets => AdapterLayout::matching(linears, targets, 3, 6.0).unwrap().0,
    }
}

fn layout(model: &SdxlUNet, targets: &[&str], whole: &[&str]) -> Arc<AdapterLayout> {
    let linears = &model.layout().linears;
    Arc::new(factors(model, targets).with_whole(linears, whole).unwrap().0)
}

fn adapter(layout: &Arc<AdapterLayout>, values: Vec<f32>) -> Adapter {
    Adapter { layout: Arc::clone(layout), values: values.into() }
}

fn small_values(len: usize) -> Vec<f32> {
    numbers(len, 7).iter().map(|v| 0.1 * v).collect()
}

fn predicted(model: &SdxlUNet, inputs: &Inputs, adapter: Option<&Adapter>) -> Vec<f32> {
    model.predict(inputs, adapter, &Probe::NOTHING).unwrap().latents.into_values()
}

fn both(small: &Small) -> [(SdxlUNet, Inputs, &'static [&'static str]); 2] {
    [
        (small.model(small.options()), inputs(), &KEYS),
        (small.model(small.options_with(INSIDE)), inputs_of_pictures(), &["*.to_k_ip", "encoder_hid_proj.*"]),
    ]
}

#[test]
fn what_is_trained_whole_starts_at_the_bits_of_the_frozen_network() {
    let small = Small::new(&config());
    for (model, inputs, whole) in both(&small) {
        let layout = layout(&model, &[], whole);
        let start = Adapter::new(Arc::clone(&layout), prefgraph_nn::lora::Init::Gaussian, |_| || 0.5);
        assert!(start.values.host().unwrap().iter().all(|v| *v == 0.0));
        let numbers: usize = layout.whole.iter().map(|l| l.inputs * l.outputs).sum();
        assert_eq!(layout.len(), numbers);
        assert_eq!(predicted(&model, &inputs, Some(&start)), predicted(&model, &inputs, None));
    }
}

#[test]
fn the_derivative_by_what_is_trained_whole_is_that_of_finite_differences() {
    let small = Small::new(&config());
    for (model, inputs, whole) in both(&small) {
        let layout = layout(&model, &["attn1.to_q"], whole);
        let values = small_values(layout.len());
        let gradient = gradient(&model, &inputs, &adapter(&layout, values.clone()));
        let value = |values: Vec<f32>| -> f64 {
            let found = predicted(&model, &inputs, Some(&adapter(&layout, values)));
            let cotangent = cotangent();
            found.iter().zip(cotangent.values()).map(|(p, c)| f64::from(*p) * f64::from(*c)).sum()
        };
        let step = |length: f64| (2e-3 / length).clamp(1e-3, 0.2) / length;
        for found in along_every_factor(&layout, &values, &gradient, step, value) {
            let bar = 1e-2 + 4e-6 / (found.step * found.expected());
            let good = bar < 0.2 && found.error() < bar;
            assert!(good, "{}: slope {}, expected {}", found.factor, found.slope, found.expected());
        }
    }
}

#[test]
fn a_gradient_has_the_same_bits_whatever_a_pass_keeps_and_wherever_weights_are() {
    let small = Small::new(&config());
    let streamed = Loading { packing: Packing::Streamed, ..Loading::default() };
    for (resampler, inputs, whole) in [
        (ResamplerUse::Outside, inputs(), &KEYS[..]),
        (INSIDE, inputs_of_pictures(), &["encoder_hid_proj.*"]),
    ] {
        let options = small.options_with(resampler);
        let model = small.model(options.clone());
        let layout = layout(&model, &[], whole);
        let adapter = adapter(&layout, small_values(layout.len()));
        let expected = gradient(&model, &inputs, &adapter);
        assert!(expected.iter().any(|g| *g != 0.0));
        let checkpointing = Checkpointing::Blocks;
        for options in [
            UNetOptions { checkpointing, ..options.clone() },
            UNetOptions { checkpointing, loading: streamed, ..options.clone() },
        ] {
            assert_eq!(gradient(&small.model(options.clone()), &inputs, &adapter), expected, "{options:?}");
        }
    }
}

/// The U-Net with another IP-Adapter.
fn with_ip_adapter(small: &Small, path: &Path, resampler: ResamplerUse) -> SdxlUNet {
    let image_prompt = Some(ImagePrompt { path: path.to_owned(), scale: 0.7, resampler });
    small.model(UNetOptions { image_prompt, ..UNetOptions::default() })
}

#[test]
fn the_written_ip_adapter_gives_what_was_trained_and_has_all_else_as_it_was() {
    let small = Small::new(&config());
    // Keys whole, and the resampler whole or by factors.
    for (targets, whole) in [
        (&[][..], &["*.to_k_ip", "*.to_v_ip", "encoder_hid_proj.*"][..]),
        (&["encoder_hid_proj.*"], &KEYS),
        (&["encoder_hid_proj.*", "*.to_k_ip"], &[]),
        (&[], &["*.to_v_ip"]),
    ] {
        let (model, inputs) = (small.model(small.options_with(INSIDE)), inputs_of_pictures());
        let layout = layout(&model, targets, whole);
        let adapter = adapter(&layout, small_values(layout.len()));
        let path = small.path().join("trained.safetensors");
        adapter.write(&path, AdapterFormat::IpAdapter, &[("prefgraph.step".into(), "3".into())]).unwrap();
        let found = predicted(&with_ip_adapter(&small, &path, INSIDE), &inputs, None);
        let expected = predicted(&model, &inputs, Some(&adapter));
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-5 * largest, "{targets:?} {whole:?}: {found}, {expected}");
        }

        let (old, new) =
            (TensorFiles::open(&small.image_prompt()).unwrap(), TensorFiles::open(&path).unwrap());
        assert_eq!(new.metadata()["prefgraph.step"], "3");
        assert!(old.names().eq(new.names()));
        let same = |name: &&str| old.bytes(name).unwrap() == new.bytes(name).unwrap();
        let others =
            |name: &&str| name.contains("norm") || name.ends_with("bias") || name.ends_with("latents");
        assert!(old.names().filter(others).all(|name| same(&name)));
        let changed = |part: &str| old.names().filter(|n| n.contains(part)).all(|n| !same(&n));
        let named = |part: &str| targets.iter().chain(whole).any(|p| p.contains(part));
        for (part, pattern) in
            [("to_k_ip", "to_k_ip"), ("to_v_ip", "to_v_ip"), ("to_kv", "encoder"), ("proj_in.w", "encoder")]
        {
            assert_eq!(changed(part), named(pattern), "{targets:?} {whole:?}: {part}");
        }
    }
}

#[test]
fn factors_that_no_ip_adapter_holds_go_into_a_file_beside_it() {
    let small = Small::new(&config());
    let model = small.model(small.options());
    let layout = layout(&model, &["attn1.to_q"], &KEYS);
    assert_eq!(layout.formats(), [AdapterFormat::IpAdapter, AdapterFormat::Diffusers]);
    let adapter = adapter(&layout, small_values(layout.len()));
    let path = small.path().join("adapter.safetensors");
    for format in [AdapterFormat::Diffusers, AdapterFormat::Kohya] {
        adapter.write(&path, format, &[]).unwrap();
        let back = Adapter::read(&path, &model.layout().linears).unwrap();
        assert_eq!(back.layout.modules, layout.modules);
        let own = adapter.values.host().unwrap();
        assert_eq!(*back.values.host().unwrap(), own[..back.layout.len()]);
    }
}

#[test]
fn wrong_patterns_and_formats_are_refused_with_a_sentence() {
    let small = Small::new(&config());
    let model = small.model(small.options());
    let linears = &model.layout().linears;
    let refused = |targets: &[&str], whole: &[&str]| {
        factors(&model, targets).with_whole(linears, whole).unwrap_err().to_string()
    };
    let error = refused(&[], &["*.to_kip"]);
    assert!(error.contains("`*.to_kip` names no linear") && error.contains("nearest: `"), "{error}");
    let error = refused(&[], &["attn1.to_q"]);
    assert!(error.contains("which is no linear of an IP-Adapter"), "{error}");
    let error = refused(&["*.to_k_ip"], &KEYS);
    assert!(error.contains("which the targets name, too"), "{error}");
    let plain = small.model(UNetOptions::default());
    let none = factors(&plain, &[]).with_whole(&plain.layout().linears, &KEYS).unwrap_err().to_string();
    assert!(none.contains("which has no IP-Adapter"), "{none}");

    let whole = layout(&model, &[], &KEYS);
    whole.writable(AdapterFormat::IpAdapter).unwrap();
    assert_eq!(whole.formats(), [AdapterFormat::IpAdapter]);
    for format in AdapterFormat::ALL {
        let error = whole.writable(format).unwrap_err().to_string();
        assert!(error.contains("is trained whole") && error.contains("`ip_adapter`"), "{error}");
        let path = small.path().join("x.safetensors");
        let written = adapter(&whole, small_values(whole.len())).write(&path, format, &[]);
        assert!(written.unwrap_err().to_string().contains("is trained whole"));
        assert!(!path.exists());
    }
    let to_q = Arc::new(factors(&model, &["attn1.to_q"]));
    let error = to_q.writable(AdapterFormat::IpAdapter).unwrap_err().to_string();
    assert!(error.contains("which no file of an IP-Adapter holds"), "{error}");
    let own = adapter(&whole, small_values(whole.len()));
    let error = own.write(&small.image_prompt(), AdapterFormat::IpAdapter, &[]).unwrap_err().to_string();
    assert!(error.contains("its copy must have another name"), "{error}");
}
