//! Gradients of an adapter on any linear of FLUX: against finite differences, and alone against all together.

#[allow(dead_code, reason = "shared with the golden test, which uses the rest")]
#[path = "golden/case.rs"]
mod case;
#[allow(dead_code, reason = "the adapters here have values of their own")]
#[path = "golden/flux.rs"]
mod flux;
#[allow(dead_code, reason = "of the U-Net's cases")]
#[path = "golden/image_tokens.rs"]
mod image_tokens;
#[path = "small_unet/numbers.rs"]
mod numbers;
mod slopes;

use std::sync::Arc;

use case::{Case, Network, cases, relative};
use flux::inputs_and_cotangent;
use numbers::numbers;
use prefgraph_nn::{
    Adapter, Backbone, DeviceKind, Inputs, Probe, Tensor, backbone::Latents, lora::AdapterLayout,
    models::FluxUno,
};
use slopes::along_every_factor;

fn setting(case: &Case) -> (FluxUno, Inputs, Latents) {
    let (inputs, cotangent) = inputs_and_cotangent(case);
    (case.model(2), inputs, cotangent)
}

fn everywhere(model: &FluxUno) -> Arc<AdapterLayout> {
    Arc::new(AdapterLayout::matching(&model.layout().linears, &["*"], 3, 4.5).unwrap().0)
}

fn gradient(model: &FluxUno, inputs: &Inputs, adapter: &Adapter, cotangent: &Latents) -> Vec<f32> {
    let (_, saved) = model.predict_saving(inputs, adapter, &Probe::NOTHING).unwrap();
    model.backward(saved, adapter, cotangent).unwrap().values.host().unwrap().to_vec()
}

#[test]
fn the_derivative_by_the_factors_of_every_linear_is_that_of_finite_differences() {
    for case in cases(Network::Flux) {
        let (model, inputs, cotangent) = setting(&case);
        let layout = everywhere(&model);
        let values: Vec<f32> = numbers(layout.len(), 2).iter().map(|v| 0.2 * v).collect();
        let adapter = |values: Vec<f32>| Adapter { layout: Arc::clone(&layout), values: values.into() };
        let gradient = gradient(&model, &inputs, &adapter(values.clone()), &cotangent);
        let value = |values: Vec<f32>| -> f64 {
            let prediction = model.predict(&inputs, Some(&adapter(values)), &Probe::NOTHING).unwrap().latents;
            prediction.values().iter().zip(cotangent.values()).map(|(p, c)| f64::from(p * c)).sum()
        };
        for found in along_every_factor(&layout, &values, &gradient, |length| 2e-2 / length, value) {
            let (slope, expected) = (found.slope, found.expected());
            assert!(
                found.error() < 1e-2,
                "{} {}: slope {slope}, expected {expected}",
                case.name,
                found.factor
            );
        }
    }
}

#[test]
fn an_adapter_on_one_linear_has_the_derivative_that_it_has_among_all() {
    for case in cases(Network::Flux) {
        let (model, inputs, cotangent) = setting(&case);
        let all = everywhere(&model);
        for (module, (a, b)) in all.modules.iter().zip(all.ranges()) {
            let alone = AdapterLayout { modules: vec![module.clone()], ..(*all).clone() };
            let values: Vec<f32> = numbers(alone.len(), 3).iter().map(|v| 0.2 * v).collect();
            let mut among = vec![0.0; all.len()];
            among[a.start..b.end].copy_from_slice(&values);
            let alone = Adapter { layout: Arc::new(alone), values: values.into() };
            let among = Adapter { layout: Arc::clone(&all), values: among.into() };
            let found = gradient(&model, &inputs, &alone, &cotangent);
            let expected = gradient(&model, &inputs, &among, &cotangent);
            let error = relative(&found, &expected[a.start..b.end]);
            assert!(error < 1e-6, "{} {}: off by {error:e}", case.name, module.name);
        }
    }
}

#[test]
fn a_backward_with_another_adapter_or_shape_than_the_pass_is_refused() {
    let case = &cases(Network::Flux)[0];
    let (model, inputs, cotangent) = setting(case);
    let layout = everywhere(&model);
    let adapter = |value| Adapter { layout: Arc::clone(&layout), values: vec![value; layout.len()].into() };
    let (_, saved) = model.predict_saving(&inputs, &adapter(0.1), &Probe::NOTHING).unwrap();
    let error = model.backward(saved, &adapter(0.2), &cotangent).unwrap_err().to_string();
    assert!(error.contains("another adapter"), "{error}");
    let (_, saved) = model.predict_saving(&inputs, &adapter(0.1), &Probe::NOTHING).unwrap();
    let wrong = Tensor::zeros(model.device(), (1, 16, 12, 16));
    assert!(model.backward(saved, &adapter(0.1), &wrong).is_err());
}

#[test]
fn the_declared_memory_is_what_a_pass_holds() {
    for case in cases(Network::Flux) {
        let (model, inputs, cotangent) = setting(&case);
        let (n, _, h, w) = inputs.x_t.shape();
        let grids: Vec<_> = inputs.references.iter().map(|r| (r.shape().2, r.shape().3)).collect();
        let text = inputs.text.shape().1;
        for patterns in [&["*"][..], &["attn.to_q", "proj_out"], &["single_transformer_blocks.1.proj_mlp"]] {
            let linears = &model.layout().linears;
            let layout = Arc::new(AdapterLayout::matching(linears, patterns, 3, 4.5).unwrap().0);
            let cost = model.cost(DeviceKind::Cpu, n, (h, w), &grids, text, Some(&layout));
            let values = Arc::new(vec![0.1; layout.len()]);
            let adapter = Adapter { layout, values: values.into() };
            let (_, saved) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
            let (kept, _) = model.working_memory();
            let near = |found: usize, declared: usize| (found as f64 / declared as f64 - 1.0).abs();
            assert!(
                near(kept, cost.saved_bytes) < 0.1,
                "{} {patterns:?}: kept {kept}, declared {}",
                case.name,
                cost.saved_bytes
            );
            model.backward(saved, &adapter, &cotangent).unwrap();
            assert_eq!(model.working_memory().0, 0, "everything was given back");
        }
        // The last and largest: a fresh model, so that no other pass is counted.
        let model = case.model(2);
        model.predict(&inputs, None, &Probe::NOTHING).unwrap();
        let cost = model.cost(DeviceKind::Cpu, n, (h, w), &grids, text, None);
        let (_, most) = model.working_memory();
        let ratio = most as f64 / cost.scratch_bytes as f64;
        assert!((0.7..1.1).contains(&ratio), "{}: held {most}, declared {}", case.name, cost.scratch_bytes);
        assert_eq!(cost.saved_bytes, 0);
    }
}

#[test]
fn inputs_that_do_not_fit_the_model_are_refused_by_name() {
    let case = &cases(Network::Flux)[0];
    let (model, inputs, _) = setting(case);
    type Fault = (fn(&mut Inputs), &'static str);
    let faults: [Fault; 6] = [
        (|i| i.t.truncate(1), "t: expected 3 values"),
        (|i| i.guidance = Some(3.5), "takes no guidance"),
        (|i| i.pooled = Tensor::zeros(&cpu(), (3, 21)), "pooled text: expected [3, 20]"),
        (|i| i.text = Tensor::zeros(&cpu(), (3, 0, 24)), "with L > 0"),
        (|i| i.x_t = Tensor::zeros(&cpu(), (3, 16, 11, 16)), "even H and W"),
        (|i| i.references.push(Tensor::zeros(&cpu(), (2, 16, 6, 6))), "reference 1"),
    ];
    for (fault, message) in faults {
        let mut wrong = inputs.clone();
        fault(&mut wrong);
        let error = model.predict(&wrong, None, &Probe::NOTHING).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

fn cpu() -> prefgraph_nn::Cpu {
    prefgraph_nn::Cpu::new(1).unwrap()
}
