//! Worker threads: each takes one task at a time, runs its operator, and reports. It sleeps while it has none.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender};
use dfdx::tensor::OnesTensor;
use prefgraph_nn as nn;
use prefgraph_ops::{
    Ctx, OpError, Scalar, Value, guard,
    operator::Residuals,
    port::{grad_value, take},
    tensor,
};

use super::{
    RunError,
    message::Message,
    work::{Done, Job, Product, Work},
};
use crate::{
    graph::{Endpoint, Graph, NodeId, Tap},
    plan::{Plan, Task},
};

/// What all lanes read.
pub(super) struct Shared {
    pub graph: Arc<Graph>,
    /// For shapes and the gradient, which no later plan of the run changes.
    pub plan: Arc<Plan>,
    pub seed: u64,
    pub cpu: nn::Cpu,
    pub gpu: Option<nn::cuda::Cuda>,
}

/// Start a lane. It ends when the sender of its work is dropped.
pub(super) fn spawn(
    lane: usize,
    shared: Arc<Shared>,
    work: Receiver<Work>,
    done: Sender<Message>,
) -> Result<JoinHandle<()>, RunError> {
    let name = format!("lane-{lane}");
    let body = move || {
        let host = tensor::host();
        for work in work {
            let Work { epoch, step, id, task, job } = work;
            let started = Instant::now();
            // A panic that got out would leave the coordinator waiting for ever.
            let result = guard::catch(|| run(&shared, &host, step, task, job));
            let result = result.unwrap_or_else(|panic| Err(OpError::new(format!("panicked: {panic}"))));
            let seconds = started.elapsed().as_secs_f64();
            if done.send(Message::Done(Done { lane, epoch, step, id, started, seconds, result })).is_err() {
                return;
            }
        }
    };
    let spawned = thread::Builder::new().name(name.clone()).spawn(body);
    spawned.map_err(|e| RunError::Thread { name, reason: e.to_string() })
}

fn run(
    shared: &Shared,
    host: &dfdx::tensor::Cpu,
    step: u64,
    task: Task,
    job: Job,
) -> Result<Product, OpError> {
    let node = &shared.graph[task.node()];
    let (cpu, gpu) = (&shared.cpu, shared.gpu.as_ref());
    let backward_follows = shared.plan.gradient().runs_operator(task.node());
    let ctx = Ctx { step, seed: shared.seed, node: &node.draws_as, backward_follows, cpu, gpu, host };
    match job {
        Job::Forward(inputs) => forward(shared, &ctx, task.node(), inputs),
        Job::Backward(saved, cotangents) => backward(shared, &ctx, task.node(), saved, cotangents),
    }
}

fn forward(
    shared: &Shared,
    ctx: &Ctx<'_>,
    id: NodeId,
    inputs: Vec<Vec<Option<Value>>>,
) -> Result<Product, OpError> {
    let node = &shared.graph[id];
    let mut read: Vec<Vec<Value>> = Vec::with_capacity(inputs.len());
    for (wires, values) in node.wires.iter().zip(inputs) {
        let mut list = Vec::with_capacity(values.len());
        for (from, value) in wires.iter().zip(values) {
            list.push(match from.tap {
                Tap::Value => value.ok_or_else(|| OpError::internal("an input has no value"))?,
                Tap::Cotangent => grad_value(value),
            });
        }
        read.push(list);
    }
    let (outputs, saved) = node.op.forward(ctx, &read)?;
    check_shapes(shared, id, &outputs)?;
    let saved = ctx.backward_follows.then_some(saved);
    Ok(Product::Forward { outputs, saved })
}

/// Do the outputs have the planned shapes, all of one variant?
fn check_shapes(shared: &Shared, id: NodeId, outputs: &[Value]) -> Result<(), OpError> {
    let node = &shared.graph[id];
    if outputs.len() != node.outputs.len() {
        return Err(OpError::internal(format!("{} outputs, not {}", outputs.len(), node.outputs.len())));
    }
    let given: Vec<_> =
        node.outputs.iter().zip(outputs).map(|(spec, value)| (spec.ty.shape_of)(value)).collect();
    let variants = shared.plan.variants();
    if variants.iter().any(|v| v.outputs(id) == given) {
        return Ok(());
    }
    let promised = |port: usize| {
        let mut all: Vec<String> = variants.iter().map(|v| v.outputs(id)[port].describe()).collect();
        all.dedup();
        all.join(" or ")
    };
    let differs = |port: &usize| variants.iter().all(|v| v.outputs(id)[*port] != given[*port]);
    Err(OpError::new(match (0..given.len()).find(differs) {
        Some(port) => format!(
            "output `{}` was promised as {}, and is {}",
            node.outputs[port].name,
            promised(port),
            given[port].describe()
        ),
        None => {
            let given: Vec<String> = given.iter().map(prefgraph_ops::ErasedShape::describe).collect();
            format!("its outputs ({}) are of different variants of its shapes", given.join(", "))
        }
    }))
}

fn backward(
    shared: &Shared,
    ctx: &Ctx<'_>,
    id: NodeId,
    saved: Option<Residuals>,
    cotangents: Vec<Vec<Value>>,
) -> Result<Product, OpError> {
    let node = &shared.graph[id];
    let mut sums = Vec::with_capacity(node.outputs.len());
    for (port, (spec, came)) in node.outputs.iter().zip(cotangents).enumerate() {
        let is_loss = shared.graph.losses().contains(&Endpoint::value(id, port));
        let one = is_loss.then(|| {
            let one: Scalar = ctx.host.ones();
            Arc::new(one) as Value
        });
        let mut all = one.into_iter().chain(came);
        let first = all.next();
        let sum = first.map(|first| all.try_fold(first, |sum, next| (spec.ty.add)(sum, next))).transpose()?;
        sums.push(sum);
    }
    let to_inputs = match saved {
        // The backward of nothing is nothing.
        Some(saved) if sums.iter().any(Option::is_some) => {
            let wanted = shared.plan.gradient().wanted(id).unwrap_or_default();
            let given = node.op.backward(ctx, wanted, saved, &sums)?;
            by_wire(shared, id, given)?
        }
        _ => Vec::new(),
    };
    Ok(Product::Backward { sums, to_inputs })
}

/// One entry a wire; an input that was left out has only zeros.
fn by_wire(
    shared: &Shared,
    id: NodeId,
    given: Vec<Vec<Option<Value>>>,
) -> Result<Vec<Vec<Option<Value>>>, OpError> {
    let node = &shared.graph[id];
    if given.len() != node.inputs.len() {
        return Err(OpError::internal(format!(
            "cotangents of {} inputs, not {}",
            given.len(),
            node.inputs.len()
        )));
    }
    let mut all = Vec::with_capacity(given.len());
    for ((spec, wires), mut given) in node.inputs.iter().zip(&node.wires).zip(given) {
        if given.len() > wires.len() && given[wires.len()..].iter().any(Option::is_some)
            || !given.is_empty() && given.len() < wires.len()
        {
            return Err(OpError::new(format!(
                "backward gives {} cotangents for the {} wires of input `{}`",
                given.len(),
                wires.len(),
                spec.name
            )));
        }
        given.resize(wires.len(), None);
        all.push(given);
    }
    Ok(all)
}

/// The loss as a number.
pub(super) fn number(loss: &Value) -> f32 {
    use dfdx::tensor::AsArray;
    take::<Scalar>(loss).array()
}
