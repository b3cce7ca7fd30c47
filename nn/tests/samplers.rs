//! Schedules and solvers against those of diffusers, and their own guarantees.
//!
//! The fixture holds trajectories of 7 steps for a network that is a matrix over the channels, computed by diffusers' own
//! schedulers: `FlowMatchEulerDiscreteScheduler` with a shift of 3 and with mu = 0.9, `DDIMScheduler` and
//! `EulerDiscreteScheduler` with SDXL's configuration. `solvers.json` holds those of more solvers, written by tests/peers/solvers.py.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

use std::{convert::Infallible, path::PathBuf};

use prefgraph_nn::{
    files::TensorFiles,
    sampling::{Ddpm, Predicts, Schedule, flow, scaled_linear, scaled_linear::Terminal},
};
use proptest::prelude::*;

const STEPS: usize = 7;
const CHANNELS: usize = 16;
/// Of a value, or of 1 where the value is smaller.
const BAR: f32 = 5e-5;

fn fixture() -> TensorFiles {
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"));
    let root = std::env::var_os("PREFGRAPH_FIXTURES").map_or_else(own, PathBuf::from);
    TensorFiles::open(&root.join("encoders/samplers.safetensors")).unwrap()
}

#[track_caller]
fn assert_near(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= BAR * e.abs().max(1.0), "{what}, value {i}: {f} and {e}");
    }
}

/// The network of the fixture: a matrix over the channels, in f64.
fn predict(matrix: &[f32], x: &[f32]) -> Vec<f32> {
    let cells = x.len() / CHANNELS;
    let product = |row: usize, cell: usize| -> f64 {
        (0..CHANNELS).map(|c| f64::from(matrix[row * CHANNELS + c]) * f64::from(x[c * cells + cell])).sum()
    };
    (0..x.len()).map(|i| product(i / cells, i % cells) as f32).collect()
}

/// Solvers without noise of their own ask for none.
fn none(step: usize) -> Vec<f32> {
    panic!("step {step} asked for noise")
}

/// Every state of a run on the fixture's network, step after step.
fn trajectory(files: &TensorFiles, schedule: &Schedule) -> Vec<f32> {
    let matrix = files.read("matrix").unwrap();
    let mut states = Vec::new();
    for made in 1..=schedule.steps.len() {
        let part = Schedule { steps: schedule.steps[..made].to_vec(), ..schedule.clone() };
        let run =
            part.sample(files.read("init").unwrap(), none, |x, _| Ok::<_, Infallible>(predict(&matrix, &x)));
        states.extend(run.unwrap());
    }
    states
}

fn assert_case(name: &str, schedule: &Schedule, unit: f32) {
    let files = fixture();
    let times: Vec<f32> = schedule.steps.iter().map(|s| s.time * unit).collect();
    assert_near(&format!("{name}.timesteps"), &times, &files.read(&format!("{name}.timesteps")).unwrap());
    assert_near(
        &format!("{name}.trajectory"),
        &trajectory(&files, schedule),
        &files.read(&format!("{name}.trajectory")).unwrap(),
    );
}

#[test]
fn flow_euler_with_a_constant_shift_is_that_of_diffusers() {
    let sigmas = flow::sigmas(STEPS, 3.0);
    assert_near("sigmas", &sigmas, &fixture().read("flow_euler.sigmas").unwrap());
    assert_case("flow_euler", &Schedule::flow(&sigmas), 1000.0);
}

#[test]
fn flow_euler_with_a_dynamic_shift_is_that_of_diffusers() {
    let sigmas = flow::sigmas(STEPS, 0.9f64.exp());
    assert_near("sigmas", &sigmas, &fixture().read("flow_euler_dynamic.sigmas").unwrap());
    assert_case("flow_euler_dynamic", &Schedule::flow(&sigmas), 1000.0);
}

#[test]
fn ddim_is_that_of_diffusers() {
    assert_case("ddim", &Schedule::ddim(&Ddpm::eps(STEPS)), 1.0);
}

#[test]
fn euler_is_that_of_diffusers() {
    assert_near("sigmas", &scaled_linear::sigmas(STEPS), &fixture().read("euler.sigmas").unwrap());
    assert_case("euler", &Schedule::euler(&Ddpm::eps(STEPS)), 1.0);
}

#[test]
fn every_solver_of_ddpm_is_that_of_diffusers_for_eps_for_v_and_without_signal_at_the_end() {
    let file: serde_json::Value = serde_json::from_str(include_str!("solvers.json")).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let (matrix, init) = (numbers(&file["matrix"]), numbers(&file["init"]));
    let (channels, cells) = (4, init.len() / 4);
    let network = |x: Vec<f32>, _: f32| -> Result<Vec<f32>, Infallible> {
        let product = |row: usize, cell: usize| -> f32 {
            (0..channels).map(|c| matrix[row * channels + c] * x[c * cells + cell]).sum()
        };
        Ok((0..x.len()).map(|i| product(i / cells, i % cells)).collect())
    };
    let mut seen = 0;
    for (solver, cases) in file["cases"].as_object().unwrap() {
        for (case, expected) in cases.as_object().unwrap() {
            let (predicts, terminal) = match case.as_str() {
                "epsilon" => (Predicts::Eps, Terminal::Published),
                "v_prediction" => (Predicts::V, Terminal::Published),
                "zero_snr" => (Predicts::V, Terminal::ZeroSnr),
                other => panic!("{other}: no such case is known"),
            };
            let ddpm = Ddpm { steps: STEPS, predicts, terminal };
            let schedule = match solver.as_str() {
                "ddim" => Schedule::ddim(&ddpm),
                "euler" => Schedule::euler(&ddpm),
                "euler_ancestral" => Schedule::euler_ancestral(&ddpm),
                "dpmpp_2m_karras" => Schedule::dpmpp_2m_karras(&ddpm),
                other => panic!("{other}: no such solver is known"),
            };
            let what = format!("{solver}, {case}");
            let times: Vec<f32> = schedule.steps.iter().map(|s| s.time).collect();
            assert_near(&what, &times, &numbers(&expected["times"]));
            let fresh = |step: usize| numbers(&file["fresh"][step]);
            let found = schedule.sample(init.clone(), fresh, network).unwrap();
            assert_near(&what, &found, &numbers(&expected["end"]));
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn the_shift_grows_with_the_number_of_tokens_and_uno_counts_fewer() {
    assert!((flow::mu(256.0) - 0.5).abs() < 1e-12 && (flow::mu(4096.0) - 1.15).abs() < 1e-12);
    // A picture of 512x512 pixels: 64x64 cells, 32x32 tokens.
    assert!((flow::dynamic_shift(1024).ln() - 0.63).abs() < 5e-3, "{}", flow::dynamic_shift(1024).ln());
    assert!((flow::uno_shift(64, 64).ln() - 0.459).abs() < 5e-4, "{}", flow::uno_shift(64, 64).ln());
}

proptest! {
    #[test]
    fn sigmas_fall_from_one_to_zero_and_a_larger_shift_raises_them(
        steps in 1usize..200, shift in 0.2f64..20.0, more in 1.01f64..3.0
    ) {
        let (low, high) = (flow::sigmas(steps, shift), flow::sigmas(steps, shift * more));
        prop_assert_eq!((low[0], low[steps], low.len()), (1.0, 0.0, steps + 1));
        prop_assert!(low.array_windows().all(|[a, b]| a > b));
        prop_assert!(low[1..steps].iter().zip(&high[1..steps]).all(|(l, h)| l < h));
    }

    #[test]
    fn a_network_that_knows_the_picture_is_followed_to_it_by_every_solver(
        steps in 1usize..60,
        picture in proptest::collection::vec(-2.0f32..2.0, 6),
        noise in proptest::collection::vec(-3.0f32..3.0, 6),
    ) {
        // The straight path of a flow, with its exact velocity.
        let flow = Schedule::flow(&flow::sigmas(steps, 2.0));
        let velocity = |_: Vec<f32>, _: f32| {
            Ok::<_, Infallible>(noise.iter().zip(&picture).map(|(e, x)| e - x).collect())
        };
        let found = flow.sample(noise.clone(), none, velocity).unwrap();
        for (f, x) in found.iter().zip(&picture) {
            prop_assert!((f - x).abs() < 1e-4, "{} and {}", f, x);
        }
        // With the exact eps, DDIM and the others stay on `a x_0 + b eps` for that eps.
        let kept = scaled_linear::kept();
        let network = Ddpm::eps(steps);
        let solvers = [
            (Schedule::ddim(&network), false),
            (Schedule::euler(&network), true),
            (Schedule::dpmpp_2m_karras(&network), true),
        ];
        for (schedule, in_signal) in solvers {
            let first = match in_signal {
                // The network's input has unit variance: its first weight says how much of it is signal.
                true => f64::from(schedule.steps[0].input).powi(2),
                false => kept[schedule.steps[0].time as usize],
            };
            let (a, b) = (first.sqrt() as f32, (1.0 - first).sqrt() as f32);
            let scale = if in_signal { 1.0 / (a * schedule.start) } else { 1.0 };
            let start = picture.iter().zip(&noise).map(|(x, e)| scale * (a * x + b * e)).collect();
            let found = schedule.sample(start, none, |_, _| Ok::<_, Infallible>(noise.clone())).unwrap();
            let (a, b) = match in_signal {
                true => (1.0, 0.0),
                false => (kept[0].sqrt() as f32, (1.0 - kept[0]).sqrt() as f32),
            };
            for ((f, x), e) in found.iter().zip(&picture).zip(&noise) {
                prop_assert!((f - (a * x + b * e)).abs() < 2e-3, "{} and {}", f, a * x + b * e);
            }
        }
    }

    #[test]
    fn the_network_is_asked_at_falling_times_about_latents_of_unit_variance(steps in 1usize..400) {
        let euler = Schedule::euler(&Ddpm::eps(steps));
        prop_assert!(euler.steps.array_windows().all(|[a, b]| a.time > b.time));
        prop_assert!(euler.steps.iter().all(|s| s.time >= 1.0 && s.time < 1000.0));
        prop_assert!((euler.start * euler.steps[0].input - 1.0).abs() < 1e-6);
    }
}

#[test]
fn a_failure_of_the_network_ends_sampling_at_once() {
    let mut asked = 0;
    let result = Schedule::flow(&flow::sigmas(5, 1.0)).sample(vec![0.0], none, |x, time| {
        asked += 1;
        if time < 0.7 { Err(time) } else { Ok(x) }
    });
    assert_eq!((result, asked), (Err(0.6), 3));
}
