//! Axes that the compiler checks in a graph of shipped operators: `refine` states that latents have 16 channels, the plan
//! checks it once, and from there on rustc does.
//!
//!     cargo run --release --example channel_weights
//!
//! The loss weights each latent channel by a number of its own. Another number of weights does not compile; an autoencoder
//! with another number of channels is refused when the graph is planned.

use std::{error::Error, path::Path, sync::Arc};

use dfdx::{
    shapes::{Axes3, Const},
    tensor::{Cpu, TensorFrom},
    tensor_ops::{MeanTo, SumTo},
};
use prefgraph::{Graph, Plan, PlanOptions, Registry, RunOptions, Runner, Wire, spec};
use prefgraph_ops::As;
use prefgraph_ops::{
    Operator, Role, Scalar,
    operators::refine::{Refine, RefineSettings},
    ports::{Latents, Prediction, Target, role},
};

/// Weight of each channel. The fixed cosine transform of the recipe puts low frequencies into the first channels.
const WEIGHTS: [f32; 16] = [4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5];

type Sixteen<R> = As<R, Latents<Const<16>>>;

/// Latents of any role, with 16 channels from here on.
fn refined<R: Role>(
    graph: &mut Graph,
    id: &str,
    latents: Wire<As<R, Latents>>,
) -> Result<Wire<Sixteen<R>>, Box<dyn Error>> {
    let refine = Refine::<R, Const<16>>::new(RefineSettings::default())?;
    Ok(graph.add(id, refine, (latents,)).0)
}

fn weighted(graph: &mut Graph) -> Result<Wire<Scalar>, Box<dyn Error>> {
    let policy = graph.wire::<Prediction>("policy.prediction")?;
    let target = graph.wire::<Target>("noise.target")?;
    let policy = refined::<role::Prediction>(graph, "policy16", policy)?;
    let target = refined::<role::Target>(graph, "target16", target)?;
    Ok(graph.op("weighted", (policy, target), |policy, target| {
        let errors = (policy - target).square().mean::<(Const<16>,), Axes3<0, 2, 3>>();
        (errors * Cpu::default().tensor(WEIGHTS)).sum() / 16.0
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/sft.ron");
    let mut graph = spec::load(&recipe, &[], &Registry::standard())?.graph;
    let loss = weighted(&mut graph)?;
    graph.set_loss(loss);

    let plan = Plan::new(&graph, &PlanOptions::default())?;
    let mut runner = Runner::new(Arc::new(graph), plan, RunOptions::new(0, prefgraph_nn::Cpu::new(0)?))?;
    for _ in 0..5 {
        let step = runner.step()?;
        eprintln!("step {}: loss {:.4}", step.step, step.loss.unwrap_or(f32::NAN));
    }
    Ok(())
}
