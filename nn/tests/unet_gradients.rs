//! Gradients of an adapter on any linear of a U-Net: against finite differences, alone against all together, and whatever a pass
//! keeps.

mod slopes;
mod small_unet;

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, Backbone, Cpu, DeviceKind, Inputs, Probe, Tensor,
    layers::{Loading, Packing},
    lora::AdapterLayout,
    models::{Checkpointing, SdxlUNet, UNetOptions, unet::ResamplerUse},
    vision::Resampler,
};
use slopes::along_every_factor;
use small_unet::{PICTURE_TOKENS, Small, config, cotangent, gradient, inputs, inputs_of_pictures, numbers};

fn layout(model: &SdxlUNet, targets: &[&str]) -> Arc<AdapterLayout> {
    Arc::new(AdapterLayout::matching(&model.layout().linears, targets, 3, 4.5).unwrap().0)
}

fn adapter(layout: &Arc<AdapterLayout>, values: Vec<f32>) -> Adapter {
    Adapter { layout: Arc::clone(layout), values: values.into() }
}

fn small_values(len: usize) -> Vec<f32> {
    numbers(len, 2).iter().map(|v| 0.2 * v).collect()
}

/// A U-Net whose transformers are projected by linears, one in which 1x1 convolutions do it, and one with the resampler inside; each
/// with inputs.
fn networks() -> [(SdxlUNet, Inputs); 3] {
    let of = |linear: bool, resampler| {
        let mut config = config();
        config["use_linear_projection"] = linear.into();
        let small = Small::new(&config);
        small.model(small.options_with(resampler))
    };
    let inside = ResamplerUse::Inside { tokens: PICTURE_TOKENS };
    [
        (of(true, ResamplerUse::Outside), inputs()),
        (of(false, ResamplerUse::Outside), inputs()),
        (of(true, inside), inputs_of_pictures()),
    ]
}

#[test]
fn the_derivative_by_the_factors_of_every_linear_is_that_of_finite_differences() {
    for (model, inputs) in networks() {
        let layout = layout(&model, &["*"]);
        let values = small_values(layout.len());
        let gradient = gradient(&model, &inputs, &adapter(&layout, values.clone()));
        let value = |values: Vec<f32>| -> f64 {
            let found = model.predict(&inputs, Some(&adapter(&layout, values)), &Probe::NOTHING).unwrap();
            let found = found.latents;
            let cotangent = cotangent();
            found.values().iter().zip(cotangent.values()).map(|(p, c)| f64::from(*p) * f64::from(*c)).sum()
        };
        // Far enough for the change to stand out from the rounding of f32, and no further: norms of few pixels bend.
        let step = |length: f64| (2e-3 / length).clamp(1e-3, 0.2) / length;
        for found in along_every_factor(&layout, &values, &gradient, step, value) {
            let (slope, expected) = (found.slope, found.expected());
            // Beside the change of a value there is the rounding of f32 in the prediction's values.
            let bar = 1e-2 + 4e-6 / (found.step * expected);
            let good = bar < 0.2 && found.error() < bar;
            assert!(good, "{}: slope {slope}, expected {expected}", found.factor);
        }
    }
}

#[test]
fn an_adapter_on_one_linear_has_the_derivative_that_it_has_among_all() {
    for (model, inputs) in networks() {
        let all = layout(&model, &["*"]);
        for (module, (a, b)) in all.modules.iter().zip(all.ranges()) {
            let alone = AdapterLayout { modules: vec![module.clone()], ..(*all).clone() };
            let values = small_values(alone.len());
            let mut among = vec![0.0; all.len()];
            among[a.start..b.end].copy_from_slice(&values);
            let found = gradient(&model, &inputs, &adapter(&Arc::new(alone), values));
            let expected = gradient(&model, &inputs, &adapter(&all, among));
            let expected = &expected[a.start..b.end];
            let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 2e-5 * largest, "{}: {found}, {expected}", module.name);
            }
        }
    }
}

#[test]
fn a_gradient_has_the_same_bits_whatever_a_pass_keeps_and_wherever_weights_are() {
    let small = Small::new(&config());
    let streamed = Loading { packing: Packing::Streamed, ..Loading::default() };
    let inside = ResamplerUse::Inside { tokens: PICTURE_TOKENS };
    let (ready, pictures) = (inputs(), inputs_of_pictures());
    let (outside, inside) = ((small.options(), &ready), (small.options_with(inside), &pictures));
    // Everywhere, on the way up only, in the last transformer's last block alone, and in the resampler alone.
    for (targets, (options, inputs)) in [
        ("*", &outside),
        ("up_blocks.*", &outside),
        ("up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_q", &outside),
        ("*", &inside),
        ("up_blocks.*", &inside),
        ("encoder_hid_proj.*", &inside),
    ] {
        let model = small.model(options.clone());
        let layout = layout(&model, &[targets]);
        let adapter = adapter(&layout, small_values(layout.len()));
        let expected = gradient(&model, inputs, &adapter);
        assert!(expected.iter().any(|g| *g != 0.0));
        let checkpointing = Checkpointing::Blocks;
        for options in [
            UNetOptions { checkpointing, ..options.clone() },
            UNetOptions { loading: streamed, ..options.clone() },
            UNetOptions { checkpointing, loading: streamed, ..options.clone() },
        ] {
            let found = gradient(&small.model(options.clone()), inputs, &adapter);
            assert_eq!(found, expected, "{targets:?} {options:?}");
        }
    }
}

#[test]
fn a_backward_with_another_adapter_or_shape_than_the_pass_is_refused() {
    let small = Small::new(&config());
    let (model, inputs) = (small.model(small.options()), inputs());
    let layout = layout(&model, &["attn2.to_q"]);
    let of = |value| adapter(&layout, vec![value; layout.len()]);
    let (prediction, saved) = model.predict_saving(&inputs, &of(0.1), &Probe::NOTHING).unwrap();
    let error = model.backward(saved, &of(0.2), &prediction.latents).unwrap_err().to_string();
    assert!(error.contains("another adapter than the pass ran with"), "{error}");
    let (_, saved) = model.predict_saving(&inputs, &of(0.1), &Probe::NOTHING).unwrap();
    let cpu = prefgraph_nn::Cpu::new(1).unwrap();
    let other = prefgraph_nn::Tensor::zeros(&cpu, (1, 4, 4, 6));
    let error = model.backward(saved, &of(0.1), &other).unwrap_err().to_string();
    assert!(error.contains("derivative by the prediction"), "{error}");
}

#[test]
fn what_a_pass_holds_for_its_backward_is_what_it_is_said_to_hold() {
    let small = Small::new(&config());
    let inside = ResamplerUse::Inside { tokens: PICTURE_TOKENS };
    for (resampler, inputs, targets) in [
        (ResamplerUse::Outside, inputs(), &["attn1.to_q", "attn2.to_q"]),
        (inside, inputs_of_pictures(), &["attn1.to_q", "attn2.to_q"]),
        (inside, inputs_of_pictures(), &["encoder_hid_proj.*", "attn2.to_q"]),
    ] {
        for checkpointing in Checkpointing::ALL {
            let model = small.model(UNetOptions { checkpointing, ..small.options_with(resampler) });
            let layout = layout(&model, targets);
            let adapter = adapter(&layout, small_values(layout.len()));
            let before = model.working_memory().0;
            let (_, saved) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
            let held = (model.working_memory().0 - before) as f64;
            // Ready image tokens are as few as those of no reference; the resampler is given two.
            let references = vec![(4, 6); if resampler == ResamplerUse::Outside { 1 } else { 2 }];
            let cost = model.cost(DeviceKind::Cpu, 2, (4, 6), &references, 3, Some(&layout));
            let said = cost.saved_bytes as f64;
            let good = held <= 1.25 * said && said <= 1.6 * held;
            assert!(good, "{targets:?} {checkpointing:?}: {held} held, {said} said");
            drop(saved);
        }
    }
}

#[test]
fn image_tokens_of_a_frozen_resampler_are_the_same_outside_and_inside() {
    let small = Small::new(&config());
    let (cpu, pictures) = (Cpu::new(2).unwrap(), inputs_of_pictures());
    let given = pictures.image_tokens.clone().unwrap();
    let (n, count, width) = given.shape();
    let each = Tensor::new(&cpu, (n * count / PICTURE_TOKENS, PICTURE_TOKENS, width), given.into_values());
    let resampler = Resampler::open(&small.image_prompt()).unwrap();
    let tokens = resampler.encode(&cpu, &cpu, &each.unwrap()).unwrap();
    let (_, queries, wide) = tokens.shape();
    let seen = count / PICTURE_TOKENS * queries;
    let ready = Inputs {
        image_tokens: Some(Tensor::new(&cpu, (n, seen, wide), tokens.into_values()).unwrap()),
        ..inputs()
    };
    let outside = small.model(small.options()).predict(&ready, None, &Probe::NOTHING).unwrap();
    let inside = small.model(small.options_with(ResamplerUse::Inside { tokens: PICTURE_TOKENS }));
    let found = inside.predict(&pictures, None, &Probe::NOTHING).unwrap();
    assert_eq!(found.latents.values(), outside.latents.values());
    let error = inside.predict(&ready, None, &Probe::NOTHING).unwrap_err().to_string();
    assert!(error.contains("tokens of the image encoder") && error.contains("multiple of 5"), "{error}");
}

#[test]
fn a_pass_has_the_scale_of_the_model_or_its_own_and_at_zero_there_is_no_ip_adapter() {
    let small = Small::new(&config());
    let with = |scale| Inputs { image_scale: scale, ..inputs() };
    let predicted = |model: &SdxlUNet, inputs: &Inputs| {
        model.predict(inputs, None, &Probe::NOTHING).unwrap().latents.into_values()
    };
    let at = |scale: f32| {
        let mut options = small.options();
        options.image_prompt.as_mut().unwrap().scale = scale;
        small.model(options)
    };
    let (own, other) = (at(0.7), at(0.3));
    assert_eq!(predicted(&own, &with(Some(0.3))), predicted(&other, &with(None)));
    assert_ne!(predicted(&own, &with(None)), predicted(&other, &with(None)));
    let alone = small.model(UNetOptions::default());
    let text_only = Inputs { image_tokens: None, ..inputs() };
    assert_eq!(predicted(&own, &with(Some(0.0))), predicted(&alone, &text_only));

    // The derivative is that of the pass, not of the model.
    let layout = layout(&own, &["attn2.to_k_ip", "attn2.to_q"]);
    let adapter = adapter(&layout, small_values(layout.len()));
    assert_eq!(gradient(&own, &with(Some(0.3)), &adapter), gradient(&other, &with(None), &adapter));

    let refused = |model: &SdxlUNet, inputs: &Inputs| {
        model.predict(inputs, None, &Probe::NOTHING).unwrap_err().to_string()
    };
    assert!(refused(&own, &with(Some(f32::NAN))).contains("at the scale NaN"));
    let scaled = Inputs { image_scale: Some(0.5), ..text_only };
    assert!(refused(&alone, &scaled).contains("a U-Net with an IP-Adapter"));
}
