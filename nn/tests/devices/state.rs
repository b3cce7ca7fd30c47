//! The state of a training on a device: an adapter, its gradient, its moments.

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, AdapterGrad, AdapterLayout, Device, LinearLayout,
    cuda::Cuda,
    device::{DeviceVec, Kind, Precision, Queue},
    models::flux::NAMES,
    optim::{AdamW, OptimizerState},
};

use crate::{cases::numbers::numbers, devices, difference};

fn layout() -> Arc<AdapterLayout> {
    let modules = vec![LinearLayout { name: "a".into(), inputs: 1000, outputs: 501, window: None }];
    Arc::new(AdapterLayout::of_factors(&NAMES, modules, 3, 3.0))
}

/// Values on the GPU, as a backward leaves them.
fn on(cuda: &Cuda, values: &[f32]) -> DeviceVec {
    let queue = cuda.queue(Precision::Bf16).unwrap();
    queue.keep(queue.upload(values, Kind::Exact), values.len()).unwrap()
}

fn host(values: &DeviceVec) -> Vec<f32> {
    values.host().unwrap().to_vec()
}

#[test]
fn a_training_moves_to_the_device_of_its_gradients_and_has_the_bits_of_the_processor() {
    let Some((cpu, cuda)) = devices() else { return };
    let (layout, settings) = (layout(), AdamW { lr: 0.01, ..AdamW::default() });
    let len = layout.len();
    let start = Adapter { layout: layout.clone(), values: numbers(len, 1).into() };
    let train = |gradient: &dyn Fn(u64) -> DeviceVec| {
        let (mut adapter, mut state) = (start.clone(), OptimizerState::new(len));
        for step in 0..3 {
            let gradient = AdapterGrad { layout: layout.clone(), values: gradient(10 + step) };
            state.step(&cpu, &settings, &mut adapter, &gradient).unwrap();
        }
        [adapter.values, state.first_moment, state.second_moment]
    };
    let expected = train(&|seed| numbers(len, seed).into());
    let found = train(&|seed| on(&cuda, &numbers(len, seed)));
    for (found, expected) in found.iter().zip(&expected) {
        assert!(matches!(found, DeviceVec::Remote(_)), "{found:?}");
        assert!(found.equals(expected).unwrap());
    }
    // Back on the processor it goes on from the same numbers.
    let mut back = found[0].clone();
    back.move_beside(&expected[0]).unwrap();
    assert!(matches!(back, DeviceVec::Host(_)));
    assert_eq!(host(&back), host(&expected[0]));
}

#[test]
fn what_a_step_waits_for_goes_before_other_work_whatever_stream_was_given_back_last() {
    let Some((_, cuda)) = devices() else { return };
    for _ in 0..2 {
        let urgent = cuda.urgent_queue(Precision::F32).unwrap();
        let usual = [Precision::F32, Precision::Bf16].map(|precision| cuda.queue(precision).unwrap());
        for usual in &usual {
            assert!(urgent.priority().unwrap() < usual.priority().unwrap(), "{urgent:?} {usual:?}");
        }
    }
}

#[test]
fn clipping_and_sums_of_gradients_agree_with_the_processor() {
    let Some((cpu, cuda)) = devices() else { return };
    let layout = layout();
    let (a, b) = (numbers(layout.len(), 1), numbers(layout.len(), 2));
    let clipped = |first: DeviceVec, second: DeviceVec| {
        let mut values = first;
        values.add(&second).unwrap();
        let mut gradient = AdapterGrad { layout: layout.clone(), values };
        let norm = gradient.clip(&cpu, 1.0).unwrap();
        (norm, gradient.norm(&cpu).unwrap(), host(&gradient.values))
    };
    let expected = clipped(a.clone().into(), b.clone().into());
    // The sum lives where the second of its terms does.
    for first in [on(&cuda, &a), a.clone().into()] {
        let found = clipped(first, on(&cuda, &b));
        assert!((found.0 - expected.0).abs() < 1e-9 * expected.0, "{} {}", found.0, expected.0);
        assert!((found.1 - 1.0).abs() < 1e-5, "{}", found.1);
        assert!(difference(&found.2, &expected.2) < 1e-6);
    }
}

#[test]
fn values_are_shared_until_somebody_changes_them() {
    let Some((cpu, cuda)) = devices() else { return };
    let values = numbers(1000, 1);
    let first = on(&cuda, &values);
    let (mut second, mut third) = (first.clone(), first.clone());
    second.scale(&cpu, 2.0).unwrap();
    third.host_mut().unwrap()[7] = 5.0;
    assert_eq!(host(&first), values);
    assert_eq!(host(&second), values.iter().map(|v| 2.0 * v).collect::<Vec<_>>());
    assert_eq!((host(&third)[6], host(&third)[7]), (values[6], 5.0));
    assert!(first.equals(&first.clone()).unwrap() && !first.equals(&second).unwrap());
    assert_eq!(host(&first.zeros_beside().unwrap()), vec![0.0; 1000]);
    // A queue of another precision reads the very same memory.
    let queue = cuda.queue(Precision::F32).unwrap();
    let shared = queue.share(&first).unwrap();
    assert_eq!(queue.download(&shared, 0, 1000).unwrap(), values);
    // What a queue still reads is not changed under its eyes.
    let mut kept = first;
    kept.scale(&cpu, 2.0).unwrap();
    assert_eq!(host(&kept), host(&second));
    assert_eq!(queue.download(&shared, 0, 1000).unwrap(), values);
}

#[test]
fn a_value_that_is_not_finite_is_found_on_the_device() {
    let Some((_, cuda)) = devices() else { return };
    let mut values = numbers(10_000, 1);
    assert_eq!(on(&cuda, &values).find_not_finite().unwrap(), None);
    (values[9_000], values[8_999]) = (f32::NAN, f32::NEG_INFINITY);
    assert_eq!(on(&cuda, &values).find_not_finite().unwrap(), Some(8_999));
}
