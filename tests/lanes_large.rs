//! Lanes whose passes meet in the pool: a network large enough for its kernels to use it.

#[path = "../nn/tests/wide/mod.rs"]
mod wide;

use std::{path::Path, sync::Arc, sync::mpsc, thread, time::Duration};

use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::Cpu;

/// Two steps take some seconds.
const PATIENCE: Duration = Duration::from_secs(240);

/// The losses of two steps of a recipe.
fn losses(recipe: &Path, weights: &Path, lanes: usize) -> Vec<f32> {
    let sets = [
        format!("backbone.weights={}", weights.display()),
        "pairs.height=64".into(),
        "pairs.width=64".into(),
        "pairs.reference_height=32".into(),
        "pairs.reference_width=32".into(),
        "pairs.batch=2".into(),
    ];
    let graph = spec::load(recipe, &sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}")).graph;
    let plan = Plan::new(&graph, &PlanOptions { lanes, ..PlanOptions::default() }).expect("a plan");
    let options = RunOptions { last: Some(1), ..RunOptions::new(0, Cpu::new(2).expect("threads")) };
    let mut runner = Runner::new(Arc::new(graph), plan, options).expect("a runner");
    (0..2).map(|_| runner.step().unwrap_or_else(|e| panic!("{e}")).loss.expect("a loss")).collect()
}

#[test]
fn two_lanes_whose_passes_meet_in_the_pool_end_with_the_losses_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    wide::write_model(folder.path());
    for recipe in ["patchdpo", "focusdpo"] {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("graphs/{recipe}.ron"));
        let weights = folder.path().to_owned();
        let (done, result) = mpsc::channel();
        let name = recipe.display().to_string();
        thread::spawn(move || {
            let one = losses(&recipe, &weights, 1);
            for _ in 0..3 {
                assert_eq!(losses(&recipe, &weights, 2), one);
            }
            let _ = done.send(());
        });
        result.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{name}: lanes wait for each other: {e}"));
    }
}
