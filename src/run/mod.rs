//! The execution of a plan, step by step.
//!
//! ```text
//!  coordinator   holds values and cells, decides what runs next
//!  lanes         worker threads that run operators
//!  values        what a step has computed and somebody still reads
//! ```
//!
//! **Architecture invariant:** all state that outlives a step is in the cells, replaced when a step has finished.
//! With the number of the step they are a checkpoint.

mod coordinator;
mod error;
mod lanes;
mod message;
mod values;
mod work;

use std::{collections::BTreeMap, sync::Arc, thread::JoinHandle};

use crossbeam_channel::{Sender, bounded, unbounded};
use prefgraph_nn as nn;
use prefgraph_ops::{
    Grad, NamedState, OpError, Port, Value, guard,
    port::{take, take_grad},
    ports::Effect,
};

use crate::{
    graph::{Endpoint, Graph, Tap, Wire},
    plan::{Plan, Task},
};
use coordinator::Coordinator;
use lanes::Shared;
use message::Message;

pub use error::RunError;

/// What a run may use.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Of all random numbers.
    pub seed: u64,
    /// Kernels and their worker threads, shared by all lanes.
    pub cpu: nn::Cpu,
    /// The GPU that networks run on; without one they run on the processor.
    pub gpu: Option<nn::cuda::Cuda>,
    /// The last step of the run, if it is known: nothing runs beyond it.
    pub last: Option<u64>,
    /// After how many timed steps lanes are planned again by measured times; zero for never.
    pub replan_after: u64,
}

impl RunOptions {
    /// With this seed, on these threads, without a GPU.
    pub fn new(seed: u64, cpu: nn::Cpu) -> Self {
        Self { seed, cpu, gpu: None, last: None, replan_after: 3 }
    }
}

/// When and where a task ran.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskTime {
    /// What ran.
    pub task: Task,
    /// On which lane.
    pub lane: usize,
    /// Seconds since the runner was made.
    pub start: f64,
    /// How long.
    pub seconds: f64,
}

/// What a step leaves behind.
#[derive(Debug)]
pub struct StepOutput {
    /// Its number, from zero.
    pub step: u64,
    /// The loss, if the graph has one; of several, the first.
    pub loss: Option<f32>,
    /// All losses, in the order of [`Graph::losses`].
    pub losses: Vec<f32>,
    /// What nodes ask to be written, with their ids, in the order of the graph.
    pub effects: Vec<(String, Effect)>,
    /// Every task that ran for this step, by start; those that ran ahead started before the step was asked for.
    pub times: Vec<TaskTime>,
    /// From the request to its end.
    pub seconds: f64,
    /// The part of it in which nothing could be done but wait for nodes of the processor that may run ahead: for data.
    pub data_seconds: f64,
    pub(crate) kept: BTreeMap<Endpoint, Value>,
}

impl StepOutput {
    /// A value that [`Runner::keep`] asked for.
    pub fn value<P: Port>(&self, wire: Wire<P>) -> Option<P> {
        self.kept.get(&wire.endpoint()).map(take)
    }

    /// A cotangent that [`Runner::keep`] asked for; `None` is zero.
    pub fn cotangent<P: Port>(&self, wire: Wire<Grad<P>>) -> Option<P::Grad> {
        self.kept.get(&wire.endpoint()).map(take_grad::<P>)
    }

    /// The same with a type known at run time only.
    pub fn kept(&self, at: Endpoint) -> Option<&Value> {
        self.kept.get(&at)
    }
}

/// Runs a graph by a plan, one step at a time. Between two steps, nodes that may run ahead go on running.
pub struct Runner {
    graph: Arc<Graph>,
    plan: Arc<Plan>,
    next: u64,
    messages: Sender<Message>,
    threads: Vec<JoinHandle<()>>,
}

impl Runner {
    /// Start at step zero with empty cells.
    ///
    /// # Errors
    /// If the plan is of another graph, or the system gives no threads.
    pub fn new(graph: Arc<Graph>, plan: Plan, options: RunOptions) -> Result<Self, RunError> {
        if plan.node_count() != graph.len() {
            return Err(RunError::Plan { planned: plan.node_count(), nodes: graph.len() });
        }
        let plan = Arc::new(plan);
        let RunOptions { seed, cpu, gpu, last, replan_after } = options;
        let shared = Arc::new(Shared { graph: graph.clone(), plan: plan.clone(), seed, cpu, gpu });
        let (messages, inbox) = unbounded();
        let mut runner = Self { graph, plan, next: 0, messages, threads: Vec::new() };
        let mut work = Vec::new();
        for lane in 0..runner.plan.options().lanes {
            // One task at a time: what is most urgent is decided when the lane is free, not before.
            let (sender, receiver) = bounded(1);
            work.push(sender);
            runner.threads.push(lanes::spawn(lane, shared.clone(), receiver, runner.messages.clone())?);
        }
        let coordinator = Coordinator::new(shared, work, last, replan_after);
        let name = "coordinator".to_owned();
        let spawned = std::thread::Builder::new().name(name.clone()).spawn(move || coordinator.run(&inbox));
        runner.threads.push(spawned.map_err(|e| RunError::Thread { name, reason: e.to_string() })?);
        Ok(runner)
    }

    /// Run the next step to its end.
    ///
    /// # Errors
    /// If a node fails; the cells are then as they were, and the same step is the next.
    pub fn step(&mut self) -> Result<StepOutput, RunError> {
        let (answer, reply) = bounded(1);
        self.tell(Message::Step(answer))?;
        let (output, plan) = reply.recv().map_err(|_| RunError::Stopped)??;
        if let Some(plan) = plan {
            self.plan = plan;
        }
        self.next = output.step + 1;
        Ok(output)
    }

    /// The number of the step that [`step`](Self::step) runs next.
    pub fn next_step(&self) -> u64 {
        self.next
    }

    /// The plan: after a few steps one by measured times.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Say which step is the last, so that nothing runs beyond it.
    ///
    /// # Errors
    /// If the run has broken down.
    pub fn set_last(&mut self, step: Option<u64>) -> Result<(), RunError> {
        self.tell(Message::Last(step))
    }

    /// Keep a value or a cotangent to the end of every step from now on, for [`StepOutput::value`].
    ///
    /// # Errors
    /// If it is a cotangent that the plan does not compute.
    pub fn keep(&mut self, at: Endpoint) -> Result<(), RunError> {
        let error = |path, reason| Err(RunError::Keep { path, reason });
        let Ok(ty) = self.graph.port_type(at) else {
            return error(
                format!("output {} of node number {}", at.port, at.node.index()),
                "it is not in this graph",
            );
        };
        if at.tap == Tap::Cotangent && !ty.differentiable {
            return error(self.graph.path(at), "a discrete port has no cotangent");
        }
        if at.tap == Tap::Cotangent && !self.plan.differentiates(at) {
            return error(
                self.graph.path(at),
                "the plan does not compute it, since no node reads it or needs it",
            );
        }
        self.tell(Message::Keep(at))
    }

    /// The state after the last step that finished, by cell: `node`, or `node.port` where a node has several outputs.
    /// Empty before the first.
    ///
    /// # Errors
    /// If the run has broken down; if a cell lives on a device that fails.
    pub fn cells(&self) -> Result<BTreeMap<String, NamedState>, RunError> {
        self.cells_of(|_| true)
    }

    /// The same of some cells.
    ///
    /// # Errors
    /// As [`cells`](Self::cells).
    pub fn cells_of(
        &self,
        wanted: impl Fn(Endpoint) -> bool,
    ) -> Result<BTreeMap<String, NamedState>, RunError> {
        let (answer, reply) = bounded(1);
        self.tell(Message::Cells(answer))?;
        let cells = reply.recv().map_err(|_| RunError::Stopped)?;
        let save = |(at, value): (Endpoint, Value)| {
            let carry = self.graph[at.node].outputs[at.port].ty.carry.expect("checked when it was carried");
            let path = self.graph.path(at);
            let state =
                (carry.save)(&value).map_err(|source| RunError::Save { cell: path.clone(), source })?;
            Ok((path, state))
        };
        cells.into_iter().filter(|(at, _)| wanted(*at)).map(save).collect()
    }

    /// Go on at `step` from cells that [`cells`](Self::cells) gave. No cells at all are those of a run that has not
    /// begun.
    ///
    /// # Errors
    /// If a cell is missing, surplus or of another shape; the run is then as it was.
    pub fn restore(&mut self, step: u64, cells: &BTreeMap<String, NamedState>) -> Result<(), RunError> {
        let values = restored(&self.graph, &self.plan, cells)?;
        self.next = step;
        self.tell(Message::Restore(step, values))
    }

    fn tell(&self, message: Message) -> Result<(), RunError> {
        self.messages.send(message).map_err(|_| RunError::Stopped)
    }
}

/// The cells of a graph as they were saved; none where none were.
///
/// # Errors
/// If a cell is missing, surplus or of another shape.
pub(crate) fn restored(
    graph: &Graph,
    plan: &Plan,
    cells: &BTreeMap<String, NamedState>,
) -> Result<BTreeMap<Endpoint, Value>, RunError> {
    let mut values = BTreeMap::new();
    let known: Vec<String> = graph.carries().iter().map(|c| graph.path(c.cell)).collect();
    let failed = |cell: &str, source| RunError::Restore { cell: cell.to_owned(), source };
    if let Some(surplus) = cells.keys().find(|key| !known.contains(key)) {
        let message = format!("the graph has no such cell; it has {}", known.join(", "));
        return Err(failed(surplus, OpError::new(message)));
    }
    for (carry, key) in graph.carries().iter().zip(&known).filter(|_| !cells.is_empty()) {
        let state = cells.get(key).ok_or_else(|| {
            let there: Vec<&str> = cells.keys().map(String::as_str).collect();
            failed(key, OpError::new(format!("the state does not hold it; it holds {}", there.join(", "))))
        })?;
        let ty = &graph[carry.cell.node].outputs[carry.cell.port].ty;
        let restore = ty.carry.expect("checked when it was carried").restore;
        let shape = plan.shape(graph, carry.cell);
        let value = guard::catch(|| restore(&shape, state)).unwrap_or_else(|p| Err(OpError::new(p)));
        values.insert(carry.cell, value.map_err(|e| failed(key, e))?);
    }
    Ok(values)
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Fails only if the coordinator has ended already.
        let _ = self.messages.send(Message::Stop);
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed why; nothing is left to do about it here.
            let _ = thread.join();
        }
    }
}
