//! A whole training of a graph that is built in Rust: checkpoints, going on where it was interrupted, and the adapter as a file.
//!
//!     cargo run --release --example own_training -- runs/own 40

use std::{collections::BTreeMap, error::Error, path::Path, sync::Arc};

use dfdx::tensor_ops::MeanTo;
use prefgraph::{
    Graph, Plan, PlanOptions, Registry, RunOptions, Runner, Wire,
    checkpoint::{Checkpoint, prune},
    folder::RunFolder,
    spec,
};
use prefgraph_nn::{Adapter, lora::AdapterFormat};
use prefgraph_ops::ports::{Prediction, Target};

/// What checkpoints call this training. Its graph is code and stands in no file: who changes it gives it another name.
const NAME: &str = "fit, version 1";
const SEED: u64 = 0;
/// Steps from one checkpoint to the next, and how many are kept.
const EVERY: u64 = 5;
const KEPT: usize = 2;

/// The networks and data of a recipe with another loss, and the adapter after each step.
fn graph() -> Result<(Graph, Wire<Adapter>), Box<dyn Error>> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/diffusion_dpo.ron");
    let mut graph = spec::load(&recipe, &[], &Registry::standard())?.graph;
    let policy = graph.wire::<Prediction>("policy.prediction")?;
    let target = graph.wire::<Target>("noise.target")?;
    let loss = graph.op("fit", (policy, target), |policy, target| (policy - target).square().mean());
    graph.set_loss(loss);
    let adapter = graph.wire::<Adapter>("update.adapter")?;
    Ok((graph, adapter))
}

/// Train to step `steps` in the folder `out`, from the newest checkpoint there on.
pub fn train(out: &Path, steps: u64) -> Result<(), Box<dyn Error>> {
    let (graph, adapter) = graph()?;
    let plan = Plan::new(&graph, &PlanOptions::default())?;
    let mut runner = Runner::new(Arc::new(graph), plan, RunOptions::new(SEED, prefgraph::Cpu::new(0)?))?;
    // Its value is to be read after a step.
    runner.keep(adapter.endpoint())?;

    // Nobody else trains in the folder as long as this lives.
    let folder = RunFolder::open(out, true)?;
    let (newest, damaged) = Checkpoint::newest(&folder.checkpoints())?;
    damaged.iter().for_each(|note| eprintln!("{note}"));
    if let Some(Checkpoint { step, graph, cells, .. }) = newest {
        if graph != NAME {
            return Err(
                format!("{} holds a training called `{graph}`, and this is `{NAME}`", out.display()).into()
            );
        }
        runner.restore(step, &cells)?;
        eprintln!("goes on at step {step}");
    }
    while runner.next_step() < steps {
        let output = runner.step()?;
        let made = runner.next_step();
        eprintln!("step {made}: loss {:.4}", output.loss.unwrap_or(f32::NAN));
        if made.is_multiple_of(EVERY) || made == steps {
            let (graph, cells) = (NAME.to_owned(), runner.cells()?);
            let checkpoint =
                Checkpoint { step: made, seed: SEED, graph, sources: None, cells, kept: BTreeMap::new() };
            checkpoint.write(&folder.checkpoints())?;
            prune(&folder.checkpoints(), made, KEPT);
            let adapter = output.value(adapter).ok_or("the step has left no adapter")?;
            folder.write_adapter("adapter", &adapter, AdapterFormat::Diffusers, &[])?;
        }
    }
    Ok(())
}

#[allow(dead_code, reason = "the tests train without it")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut typed = std::env::args().skip(1);
    let out = typed.next().unwrap_or_else(|| "runs/own".into());
    let steps = typed.next().map_or(Ok(40), |steps| steps.parse())?;
    train(Path::new(&out), steps)
}
