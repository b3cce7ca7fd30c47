//! A custom preference loss: a recipe with its loss replaced by a closure over dfdx tensors. The closure is the
//! operator, and dfdx's tape its gradient.
//!
//!     cargo run --release --example custom_loss

use std::{error::Error, path::Path, sync::Arc};

use dfdx::{
    shapes::{Axes3, Axis},
    tensor::{Cpu, OwnedTape, TensorFromVec},
    tensor_ops::{MeanTo, ReshapeTo, SumTo},
};
use prefgraph::{Graph, Plan, PlanOptions, Registry, RunOptions, Runner, Wire, spec};
use prefgraph_ops::{
    Scalar,
    ports::{Prediction, Target},
};

/// Batch of the recipe.
const B: usize = 4;
const BETA: f32 = 2000.0;

/// Diffusion-DPO with a margin: the policy is asked to prefer the winner by at least one logit.
fn with_margin(graph: &mut Graph) -> Result<Wire<Scalar>, Box<dyn Error>> {
    let policy = graph.wire::<Prediction>("policy.prediction")?;
    let reference = graph.wire::<Prediction>("reference")?;
    let target = graph.wire::<Target>("noise.target")?;
    Ok(graph.op("margin_loss", (policy, reference, target), |policy, reference, target| {
        let device = Cpu::default();
        let again = target.retaped::<OwnedTape<f32, Cpu>>();
        let errors = (policy - target).square() - (reference - again).square(); // [2B, C, H, W]
        let errors = errors.mean::<(usize,), Axes3<1, 2, 3>>().reshape_like(&(2usize, B)); // winners, losers
        let sign = device.tensor_from_vec([[-1.0; B], [1.0; B]].concat(), (2usize, B));
        let logits = (errors * sign).sum::<(usize,), Axis<0>>() * (BETA / 2.0) - 1.0;
        let ones = device.tensor_from_vec(vec![1.0; B], (B,));
        logits.bce_with_logits(ones).mean() // the stable form of the mean of -log sigmoid
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/diffusion_dpo.ron");
    let mut graph = spec::load(&recipe, &[], &Registry::standard())?.graph;
    let loss = with_margin(&mut graph)?;
    graph.set_loss(loss);

    let plan = Plan::new(&graph, &PlanOptions::default())?;
    let cpu = prefgraph_nn::Cpu::new(0)?;
    let mut runner = Runner::new(Arc::new(graph), plan, RunOptions::new(0, cpu))?;
    for _ in 0..5 {
        let step = runner.step()?;
        eprintln!("step {}: loss {:.4}", step.step, step.loss.unwrap_or(f32::NAN));
    }
    Ok(())
}
