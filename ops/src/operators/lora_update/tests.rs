//! Updates against their formulas.

use std::sync::Arc;

use prefgraph_nn::{AdapterLayout, LinearLayout, models::flux::NAMES};

use super::*;
use crate::{operators::testing::Bench, port::NamedState, random::Random};

fn layout() -> Arc<AdapterLayout> {
    let module = |name: &str| LinearLayout { name: name.into(), inputs: 3, outputs: 2, window: None };
    let modules = vec![module("a"), module("b")];
    Arc::new(AdapterLayout::of_factors(&NAMES, modules, 2, 2.0))
}

fn start() -> (Adapter, Moments) {
    let layout = layout();
    let zeros = DeviceVec::from(vec![0.0; layout.len()]);
    let moments = Moments {
        layout: layout.clone(),
        m: zeros.clone(),
        v: zeros,
        pending: DeviceVec::default(),
        micro_batches: 0,
        updates: 0,
        travel: 0.0,
    };
    let values = Random::new(1, "", 0, "").normals(layout.len()).into();
    (Adapter { layout, values }, moments)
}

fn host(values: &DeviceVec) -> Vec<f32> {
    values.host().unwrap().to_vec()
}

fn gradient(seed: u64) -> AdapterGrad {
    let layout = layout();
    let values = Random::new(seed, "", 0, "g").normals(layout.len()).into();
    AdapterGrad { layout, values }
}

fn op(settings: LoraUpdateSettings) -> LoraUpdate {
    LoraUpdate::new(settings).unwrap()
}

#[test]
fn micro_batches_give_the_update_of_their_mean() {
    let bench = Bench::new();
    let ctx = bench.ctx();
    let whole = op(LoraUpdateSettings { lr: 0.1, ..Default::default() });
    let parts = op(LoraUpdateSettings { lr: 0.1, accumulate: 2, ..Default::default() });
    let (adapter, moments) = start();
    let (a, b) = (gradient(1), gradient(2));
    let mean =
        host(&a.values).iter().zip(host(&b.values).iter()).map(|(a, b)| 0.5 * (a + b)).collect::<Vec<_>>();
    let mean = AdapterGrad { layout: layout(), values: mean.into() };
    let run = |op: &LoraUpdate, adapter: &Adapter, grad: AdapterGrad, moments: &Moments| {
        op.forward(&ctx, (adapter.clone(), Grad(Some(grad)), moments.clone())).unwrap().0
    };
    let (expected, _, metrics) = run(&whole, &adapter, mean, &moments);
    let (between, kept, _) = run(&parts, &adapter, a, &moments);
    assert_eq!(
        (host(&between.values) == host(&adapter.values), kept.updates, kept.micro_batches),
        (true, 0, 1)
    );
    let (found, after, last) = run(&parts, &between, b, &kept);
    assert_eq!((after.updates, after.micro_batches, after.pending.len()), (1, 0, 0));
    for (found, expected) in host(&found.values).iter().zip(host(&expected.values).iter()) {
        assert!((found - expected).abs() < 1e-6);
    }
    let norms = [&metrics, &last].map(|m| m.get("grad_norm").unwrap().mean().unwrap());
    assert!((norms[0] - norms[1]).abs() < 1e-5, "{norms:?}");
}

#[test]
fn schedules_warm_up_and_end_where_they_should() {
    let rate = |schedule, update| {
        op(LoraUpdateSettings { lr: 1.0, schedule, warmup: 4, steps: 12, ..Default::default() }).rate(update)
    };
    for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
        assert_eq!([0, 1, 3, 4].map(|u| rate(schedule, u)), [0.25, 0.5, 1.0, 1.0], "{schedule:?}");
    }
    assert_eq!(rate(Schedule::Constant, 100), 1.0);
    assert_eq!(rate(Schedule::Linear, 8), 0.5);
    assert!((rate(Schedule::Cosine, 8) - 0.5).abs() < 1e-12);
    assert_eq!(rate(Schedule::Linear, 12), 0.0);
    assert_eq!(rate(Schedule::Cosine, 99), 0.0);
}

fn resumed(old: LoraUpdateSettings, new: LoraUpdateSettings, step: u64) -> Option<Restated> {
    let steps = new.steps;
    resumed_in_a_run_of(steps, old, new, step)
}

fn resumed_in_a_run_of(
    steps: u64,
    old: LoraUpdateSettings,
    new: LoraUpdateSettings,
    step: u64,
) -> Option<Restated> {
    let moments = NamedState { counters: vec![("updates".into(), step)], ..Default::default() };
    let cells = [("moments".to_owned(), &moments)].into();
    op(new.clone()).restated(&old, &Restart { step, steps, cells })
}

#[test]
fn a_run_that_goes_on_longer_is_told_what_becomes_of_its_rate() {
    let with = |schedule, steps| LoraUpdateSettings { lr: 1.0, schedule, steps, ..Default::default() };
    let told = |schedule, step| resumed(with(schedule, 12), with(schedule, 24), step).unwrap();
    let constant = told(Schedule::Constant, 12);
    assert!(constant.follows && constant.effect.contains("stays 1.000e0"), "{constant:?}");
    let ended = told(Schedule::Linear, 12);
    assert!(ended.follows && ended.effect.contains("had ended at update 12"), "{ended:?}");
    assert!(ended.effect.contains("jumps from 0 to 5.000e-1"), "{ended:?}");
    let running = told(Schedule::Linear, 6);
    assert!(running.follows && running.effect.contains("jumps from 5.000e-1 to 7.500e-1"), "{running:?}");
    assert_eq!(running.settings, ["steps"]);
    let ended = || with(Schedule::Cosine, 12);
    let over = resumed_in_a_run_of(20, ended(), ended(), 12).unwrap();
    assert!(over.effect.contains("the learning rate stays 0"), "{over:?}");
    assert_eq!(resumed(ended(), ended(), 11), None);
    assert_eq!(resumed(ended(), ended(), 12), None, "a run that has ended needs no rate");
}

#[test]
fn another_rate_is_shown_with_both_values_and_does_not_follow() {
    let old = LoraUpdateSettings { lr: 1e-3, ..Default::default() };
    let told = resumed(old.clone(), LoraUpdateSettings { lr: 2e-3, ..old }, 3).unwrap();
    assert!(!told.follows && told.settings == ["lr"], "{told:?}");
    assert!(told.effect.contains("from 1.000e-3 to 2.000e-3"), "{told:?}");
}

#[test]
fn steps_that_make_no_whole_update_are_said_before_the_run() {
    let shape = || AdapterShape(layout());
    let inputs = (shape(), crate::port::GradShape(shape()), MomentsShape(layout()));
    let notes = |steps| op(LoraUpdateSettings { accumulate: 3, steps, ..Default::default() }).notes(&inputs);
    assert_eq!(notes(6).len(), 1);
    let left = &notes(8)[1];
    assert!(left.contains("2 updates of 3 micro-batches, with 2 left over"), "{left}");
    assert!(left.contains("--steps 9"), "{left}");
}

#[test]
fn the_travel_in_closed_form_is_the_sum_of_the_rates() {
    for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
        for (warmup, steps, accumulate) in [(0, 1, 1), (0, 200, 1), (10, 200, 1), (10, 203, 4), (50, 20, 1)] {
            let op =
                op(LoraUpdateSettings { lr: 0.3, schedule, warmup, steps, accumulate, ..Default::default() });
            for updates in [0, 1, 5, 10, 11, 49, 200, 500] {
                let sum: f64 = (0..updates).map(|u| op.rate(u)).sum();
                let found = op.travel(updates);
                assert!((found - sum).abs() < 1e-9 * sum.max(1.0), "{schedule:?} {updates}: {found} {sum}");
            }
        }
    }
    let endless =
        op(LoraUpdateSettings { steps: u64::MAX, schedule: Schedule::Cosine, ..Default::default() });
    assert!(endless.travel(u64::MAX).is_finite());
}

#[test]
fn no_value_moves_further_than_the_travel() {
    let bench = Bench::new();
    let ctx = bench.ctx();
    let op = op(LoraUpdateSettings { lr: 0.01, weight_decay: 0.0, warmup: 3, ..Default::default() });
    let (first, mut moments) = start();
    let mut adapter = first.clone();
    for _ in 0..10 {
        let inputs = (adapter, Grad(Some(gradient(5))), moments);
        (adapter, moments, _) = op.forward(&ctx, inputs).unwrap().0;
    }
    let moved =
        host(&adapter.values).into_iter().zip(host(&first.values)).map(|(a, b)| f64::from((a - b).abs()));
    let furthest = moved.fold(0.0, f64::max);
    assert!(furthest <= moments.travel * 1.001 && furthest > 0.9 * moments.travel, "{furthest}");
    assert!((moments.travel - (0.01 * (1.0 + 2.0) / 3.0 + 0.08)).abs() < 1e-12, "{}", moments.travel);
}

#[test]
fn a_gradient_that_is_not_finite_names_its_linear() {
    let bench = Bench::new();
    let (adapter, moments) = start();
    let mut grad = gradient(1);
    grad.values.host_mut().unwrap()[11] = f32::NAN;
    let op = op(LoraUpdateSettings::default());
    let error = op.forward(&bench.ctx(), (adapter, Grad(Some(grad)), moments)).err().unwrap().to_string();
    assert!(error.contains("`b`") && error.contains("NaN"), "{error}");
}

#[test]
fn settings_out_of_range_are_refused() {
    for settings in [
        LoraUpdateSettings { accumulate: 0, ..Default::default() },
        LoraUpdateSettings { lr: f64::NAN, ..Default::default() },
        LoraUpdateSettings { betas: [0.9, 1.0], ..Default::default() },
        LoraUpdateSettings { schedule: Schedule::Cosine, ..Default::default() },
    ] {
        assert!(LoraUpdate::new(settings.clone()).is_err(), "{settings:?}");
    }
}

#[test]
fn the_sum_of_gradients_that_wait_is_declared_where_there_is_one() {
    let inputs =
        || (AdapterShape(layout()), crate::port::GradShape(AdapterShape(layout())), MomentsShape(layout()));
    let cost = |accumulate| {
        let op = op(LoraUpdateSettings { accumulate, ..Default::default() });
        let outputs = op.shapes(inputs(), 2).unwrap();
        Operator::cost(&op, &inputs(), &outputs)
    };
    let bytes = layout().len() * size_of::<f32>();
    assert_eq!((cost(1).cell_bytes, cost(1).scratch_bytes), (0, 0));
    assert_eq!((cost(3).cell_bytes, cost(3).scratch_bytes), (bytes, bytes));
}
