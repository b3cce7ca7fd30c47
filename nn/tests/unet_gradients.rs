//! Gradients of an adapter on any linear of a U-Net: against finite differences, alone against all together, and whatever a pass
//! keeps.

mod slopes;
mod small_unet;

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, Backbone, Probe,
    layers::{Loading, Packing},
    lora::AdapterLayout,
    models::{Checkpointing, SdxlUNet, UNetOptions},
};
use slopes::along_every_factor;
use small_unet::{Small, config, cotangent, gradient, inputs, numbers};

fn layout(model: &SdxlUNet, targets: &[&str]) -> Arc<AdapterLayout> {
    Arc::new(AdapterLayout::matching(&model.layout().linears, targets, 3, 4.5).unwrap().0)
}

fn adapter(layout: &Arc<AdapterLayout>, values: Vec<f32>) -> Adapter {
    Adapter { layout: Arc::clone(layout), values: values.into() }
}

fn small_values(len: usize) -> Vec<f32> {
    numbers(len, 2).iter().map(|v| 0.2 * v).collect()
}

/// A U-Net whose transformers are projected by linears, and one in which 1x1 convolutions do it.
fn both_projections() -> [Small; 2] {
    [true, false].map(|linear| {
        let mut config = config();
        config["use_linear_projection"] = linear.into();
        Small::new(&config)
    })
}

#[test]
fn the_derivative_by_the_factors_of_every_linear_is_that_of_finite_differences() {
    for small in both_projections() {
        let model = small.model(small.options());
        let layout = layout(&model, &["*"]);
        let values = small_values(layout.len());
        let inputs = inputs();
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
    for small in both_projections() {
        let (model, inputs) = (small.model(small.options()), inputs());
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
    let inputs = inputs();
    let streamed = Loading { packing: Packing::Streamed, ..Loading::default() };
    let variants = [
        UNetOptions { checkpointing: Checkpointing::Blocks, ..small.options() },
        UNetOptions { loading: streamed, ..small.options() },
        UNetOptions { checkpointing: Checkpointing::Blocks, loading: streamed, ..small.options() },
    ];
    // Everywhere, on the way up only, and in the last transformer's last block alone.
    for targets in
        [&["*"][..], &["up_blocks.*"], &["up_blocks.0.attentions.1.transformer_blocks.1.attn2.to_q"]]
    {
        let model = small.model(small.options());
        let layout = layout(&model, targets);
        let adapter = adapter(&layout, small_values(layout.len()));
        let expected = gradient(&model, &inputs, &adapter);
        assert!(expected.iter().any(|g| *g != 0.0));
        for options in &variants {
            let found = gradient(&small.model(options.clone()), &inputs, &adapter);
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
    let inputs = inputs();
    for checkpointing in [Checkpointing::None, Checkpointing::Blocks] {
        let model = small.model(UNetOptions { checkpointing, ..small.options() });
        let layout = layout(&model, &["attn1.to_q", "attn2.to_q"]);
        let adapter = adapter(&layout, small_values(layout.len()));
        let before = model.working_memory().0;
        let (_, saved) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
        let held = (model.working_memory().0 - before) as f64;
        let cost = model.cost(prefgraph_nn::DeviceKind::Cpu, 2, (4, 6), &[(4, 6)], 3, Some(&layout));
        let said = cost.saved_bytes as f64;
        assert!(held <= 1.25 * said && said <= 1.6 * held, "{checkpointing:?}: {held} held, {said} said");
        drop(saved);
    }
}
