//! When and where every part of a step runs, decided before the first step: a value that is printed, compared and
//! tested without running anything.
//!
//! ```text
//!  shapes     the shape of every port, for the whole graph
//!  agree      what nodes must agree in and none of them can see alone
//!  sums       whether what is summed up over a set is measured of that set, and of all of it
//!  gradient   which nodes need a backward, and which of their inputs want a cotangent
//!  ahead      which nodes may run before their step
//!  due        which nodes run at a step, where some are wanted every so many steps only
//!  tasks      forwards and backwards as one set of tasks with dependencies
//!  lanes      who runs what, by critical path
//!  place      where work is done and values lie
//!  memory     how long every value lives, and the peak of each place
//!  rates      speeds that turn costs into seconds
//!  explain, dot, amount   the plan for people
//! ```

mod agree;
mod ahead;
mod amount;
mod dot;
mod due;
mod error;
mod explain;
mod gradient;
mod lanes;
mod memory;
mod place;
mod rates;
mod shapes;
mod sums;
mod tasks;

use std::{collections::BTreeMap, fmt};

use prefgraph_ops::{Cost, ErasedShape};

use crate::graph::{Endpoint, Graph, NodeId, Tap};

pub use amount::bytes;
pub(crate) use due::due;
pub use error::PlanError;
pub use gradient::Gradient;
pub(crate) use lanes::Seconds;
pub use memory::Memory;
pub use place::{GpuOptions, Place};
pub use rates::Rates;
pub use shapes::Variant;

/// The most lanes of a plan: each is a thread.
pub const MOST_LANES: usize = 1024;

/// What a plan may use.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Worker threads: at least one, at most [`MOST_LANES`]. A number outside counts as the nearest inside.
    pub lanes: usize,
    /// How many steps ahead of the step that uses it a node may run that no cell reaches. Where networks run on a GPU it is
    /// [one more](Self::made_ahead) for their data.
    pub ahead: usize,
    /// Speeds of the processor that turn declared costs into seconds.
    pub rates: Rates,
    /// The GPU that networks run on; without one they run on the processor.
    pub gpu: Option<GpuOptions>,
    /// Bytes that the process holds besides what is planned: its code, the stacks of its threads, what it has read of files.
    pub process: usize,
}

impl PlanOptions {
    /// Where networks run.
    pub fn networks(&self) -> Place {
        self.gpu.map_or(Place::Cpu, |gpu| gpu.place())
    }

    /// How many steps ahead data are made. With one step more than those whose passes run, a GPU has a pass to begin with while the host is
    /// between two steps.
    pub fn made_ahead(&self) -> usize {
        self.ahead.saturating_add(usize::from(self.ahead > 0 && self.gpu.is_some()))
    }

    /// Every place that the work of a plan may be at: the processor first.
    fn places(&self) -> Vec<Place> {
        std::iter::once(Place::Cpu).chain(self.gpu.map(|gpu| gpu.place())).collect()
    }

    /// The speeds of a place. Where they are not known, those of the processor give tasks an order.
    fn rates_at(&self, place: Place) -> Rates {
        match (place, self.gpu) {
            (Place::Cuda(_), Some(GpuOptions { rates: Some(rates), .. })) => rates,
            _ => self.rates,
        }
    }
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { lanes: 2, ahead: 1, rates: Rates::default(), gpu: None, process: 0 }
    }
}

/// One unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Compute the outputs of a node.
    Forward(NodeId),
    /// Sum the cotangents of its outputs, and give those of its inputs where they are wanted.
    Backward(NodeId),
}

impl Task {
    /// Whose work it is.
    pub fn node(self) -> NodeId {
        match self {
            Self::Forward(node) | Self::Backward(node) => node,
        }
    }

    /// `forward` or `backward`.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Forward(_) => "forward",
            Self::Backward(_) => "backward",
        }
    }
}

/// Index of a task in [`Plan::tasks`].
pub type TaskId = usize;

/// Which part of a step a task belongs to. For people: the schedule knows dependencies only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// May run before its step.
    Ahead,
    /// Reached by a cell, before the gradient.
    Forward,
    /// The gradient.
    Backward,
    /// Reads a cotangent, directly or through others.
    Update,
    /// Asks for something to be written.
    Effects,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ahead => "ahead",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Update => "update",
            Self::Effects => "effects",
        })
    }
}

/// A task with its place in the schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTask {
    /// What is done.
    pub task: Task,
    /// Part of the step.
    pub phase: Phase,
    /// Where the work is done.
    pub place: Place,
    /// Does it make what is carried into the next step?
    pub carries: bool,
    /// Tasks that must have finished, in rising order.
    pub after: Vec<TaskId>,
    /// Tasks that wait for this one, in rising order.
    pub before: Vec<TaskId>,
    /// Seconds it takes, by declared costs of a place that it has for itself, or by measurement.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Seconds from its start to the end of the longest path behind it: its urgency.
    pub urgency: f64,
    /// Who runs it.
    pub lane: usize,
    /// Seconds from the start of a step to its start, if all goes as planned.
    pub start: f64,
    /// The same to its end: later than its seconds after the start where it shares its place.
    pub end: f64,
}

impl PlannedTask {
    /// Does a pass of a later step wait for it? The gradient and a step's own passes come first; what carries its state on takes little of a GPU.
    pub fn comes_first(&self) -> bool {
        let is_pass = self.place != Place::Cpu && self.phase != Phase::Ahead && !self.carries;
        self.phase == Phase::Backward || is_pass
    }
}

/// A flat numbering of all output ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    first: Vec<usize>,
}

impl Slots {
    fn new(graph: &Graph) -> Self {
        let mut first = Vec::with_capacity(graph.len() + 1);
        first.push(0);
        for (_, node) in graph.nodes() {
            first.push(first.last().expect("begins with a zero") + node.outputs.len());
        }
        Self { first }
    }

    pub(crate) fn len(&self) -> usize {
        *self.first.last().expect("begins with a zero")
    }

    pub(crate) fn of(&self, node: NodeId, port: usize) -> usize {
        self.first[node.index()] + port
    }

    pub(crate) fn at(&self, endpoint: Endpoint) -> usize {
        self.of(endpoint.node, endpoint.port)
    }

    pub(crate) fn all(&self, node: NodeId) -> std::ops::Range<usize> {
        self.first[node.index()]..self.first[node.index() + 1]
    }
}

/// A schedule of one step, for every step.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    options: PlanOptions,
    slots: Slots,
    variants: Vec<Variant>,
    largest: usize,
    gradient: Gradient,
    ahead: Vec<bool>,
    cells: Vec<bool>,
    tasks: Vec<PlannedTask>,
    order: Vec<TaskId>,
    critical: f64,
    seconds: f64,
    items: Vec<memory::Item>,
    /// Bytes of weights and the like, by place and variant.
    resident: Vec<(Place, Vec<usize>)>,
    /// By place, the processor first.
    memory: Vec<(Place, Memory)>,
    measured: bool,
}

impl Plan {
    /// Plan a graph.
    ///
    /// # Errors
    /// If shapes do not go together, a cotangent is read that does not exist, or a cell is carried in part. The
    /// error names the node.
    pub fn new(graph: &Graph, options: &PlanOptions) -> Result<Self, PlanError> {
        let options = PlanOptions { lanes: options.lanes.clamp(1, MOST_LANES), ..options.clone() };
        let slots = Slots::new(graph);
        let mut cells = vec![false; graph.len()];
        for carry in graph.carries() {
            cells[carry.cell.node.index()] = true;
        }
        let networks = options.networks();
        let mut variants = shapes::infer(graph, &slots, &cells, networks)?;
        agree::check(graph, &variants[0])?;
        sums::check(graph)?;
        let gradient = gradient::derive(graph, &slots, &cells)?;
        for variant in &mut variants {
            variant.leave_out_backwards(&gradient);
        }
        let ahead = ahead::derive(graph, &cells);
        let tasks = tasks::tasks(graph, &gradient, &ahead, options.lanes);
        let items = memory::items(graph, &slots, &variants, &gradient, &tasks, &cells, networks);
        let resident = |place| variants.iter().map(|v| memory::resident(graph, &slots, v, place)).collect();
        let resident = options.places().into_iter().map(|place| (place, resident(place))).collect();
        let largest = shapes::largest(&variants);
        let mut plan = Self {
            options,
            slots,
            variants,
            largest,
            gradient,
            ahead,
            cells,
            tasks,
            order: Vec::new(),
            critical: 0.0,
            seconds: 0.0,
            items,
            resident,
            memory: Vec::new(),
            measured: false,
        };
        plan.declare_costs();
        plan.schedule();
        Ok(plan)
    }

    /// The same plan with measured seconds in the place of declared costs: lanes and times differ, results do not.
    #[must_use]
    pub fn with_times(&self, measured: &BTreeMap<Task, f64>) -> Self {
        let mut plan = self.clone();
        for planned in &mut plan.tasks {
            if let Some(&seconds) = measured.get(&planned.task) {
                planned.seconds = seconds.max(self.options.rates.start);
            }
        }
        plan.measured = true;
        plan.schedule();
        plan
    }

    fn declare_costs(&mut self) {
        for planned in &mut self.tasks {
            let node = planned.task.node().index();
            let largest = &self.variants[self.largest];
            let cost = &largest.costs[node];
            let (flops, bytes) = match planned.task {
                // A cell's forward runs once in a run.
                Task::Forward(node) if self.cells[node.index()] => (0.0, 0.0),
                Task::Forward(_) => (cost.forward_flops, cost.moved_bytes),
                Task::Backward(node) if self.gradient.runs_operator(node) => {
                    (cost.backward_flops, 2.0 * cost.moved_bytes)
                }
                Task::Backward(_) => (0.0, 0.0),
            };
            planned.place = largest.places[node];
            planned.flops = flops;
            let rates = self.options.rates_at(planned.place);
            planned.seconds = rates.seconds(flops, cost.precision, bytes);
        }
    }

    fn schedule(&mut self) {
        let sharing = self.sharing();
        let made = lanes::schedule(&mut self.tasks, &self.options, sharing);
        (self.order, self.critical, self.seconds) = (made.order, made.critical, made.seconds);
        let at = |(place, resident): &(Place, Vec<usize>)| {
            (*place, memory::predict(&self.items, &self.tasks, resident, *place, &self.options))
        };
        self.memory = self.resident.iter().map(at).collect();
    }

    /// What the plan was made for.
    pub fn options(&self) -> &PlanOptions {
        &self.options
    }

    /// All tasks: the forward of every node, in the order of the graph, then the backwards.
    pub fn tasks(&self) -> &[PlannedTask] {
        &self.tasks
    }

    /// All tasks, in the order in which they are planned to start.
    pub fn order(&self) -> &[TaskId] {
        &self.order
    }

    /// The shapes of all ports, one entry a set that a batch may have.
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// The variant that holds most bytes.
    pub fn largest(&self) -> &Variant {
        &self.variants[self.largest]
    }

    /// The shape of an output in the largest variant; of a [`Grad`](prefgraph_ops::Grad) where the cotangent is read.
    pub fn shape(&self, graph: &Graph, at: Endpoint) -> ErasedShape {
        self.largest().shape(graph, at)
    }

    /// The shapes of a node's inputs in the largest variant, one list an input: what
    /// [`DynOperator::notes`](prefgraph_ops::DynOperator::notes) takes.
    pub fn input_shapes(&self, graph: &Graph, node: NodeId) -> Vec<Vec<ErasedShape>> {
        self.largest().inputs(graph, node)
    }

    /// What a node costs at the largest variant.
    pub fn cost(&self, node: NodeId) -> &Cost {
        &self.largest().costs[node.index()]
    }

    /// Which nodes have a backward.
    pub fn gradient(&self) -> &Gradient {
        &self.gradient
    }

    /// Does the plan compute the cotangent of this output?
    pub fn differentiates(&self, at: Endpoint) -> bool {
        self.gradient.computes(self.slots.at(at))
    }

    /// May this node run before its step?
    pub fn runs_ahead(&self, node: NodeId) -> bool {
        self.ahead[node.index()]
    }

    /// Is this node a cell?
    pub fn is_cell(&self, node: NodeId) -> bool {
        self.cells[node.index()]
    }

    /// Predicted memory of the host.
    pub fn memory(&self) -> &Memory {
        &self.memory[0].1
    }

    /// Predicted memory of every place, the host's first.
    pub fn memory_by_place(&self) -> &[(Place, Memory)] {
        &self.memory
    }

    /// Where a node works.
    pub fn place(&self, node: NodeId) -> Place {
        self.largest().places[node.index()]
    }

    /// The task after which nothing of the plan needs an output; `None` where it lives to the end of the step.
    pub fn freed_after(&self, at: Endpoint) -> Option<TaskId> {
        memory::freed_after(&self.items, &self.tasks, self.slots.at(at), at.tap == Tap::Cotangent)
    }

    /// Are its seconds those of these places? Not where a GPU's speeds are unknown: they give tasks an order then, and no more.
    pub fn is_timed(&self) -> bool {
        self.measured || self.options.gpu.is_none_or(|gpu| gpu.rates.is_some())
    }

    /// Measured times contain the wait for a place that others use, too.
    fn sharing(&self) -> lanes::Sharing {
        if self.measured { lanes::Sharing::Measured } else { lanes::Sharing::Planned }
    }

    /// Seconds of a step if all goes as planned; see [`is_timed`](Self::is_timed).
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Seconds of the longest path through a step: with more lanes it still takes so long.
    pub fn critical_seconds(&self) -> f64 {
        self.critical
    }

    /// Seconds of a step in which these nodes run (by index); `None` where the plan [is not timed](Self::is_timed).
    pub(crate) fn seconds_of(&self, due: &[bool]) -> Option<f64> {
        let runs = |task: &PlannedTask| due[task.task.node().index()];
        if !self.is_timed() {
            return None;
        }
        if self.options.gpu.is_none() {
            // Kernels have all cores already: tasks follow each other, whatever the lanes.
            // The sum of nothing is -0.0.
            return Some(self.tasks.iter().filter(|t| runs(t)).map(|t| t.seconds).sum::<f64>() + 0.0);
        }
        let mut tasks = self.tasks.clone();
        tasks.iter_mut().filter(|t| !runs(t)).for_each(|t| t.seconds = 0.0);
        Some(lanes::schedule(&mut tasks, &self.options, self.sharing()).seconds)
    }

    /// Are its times measured, rather than computed from declared costs?
    pub fn is_measured(&self) -> bool {
        self.measured
    }

    pub(crate) fn node_count(&self) -> usize {
        self.ahead.len()
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// One line a task.
    pub fn explain<'a>(&'a self, graph: &'a Graph) -> impl fmt::Display + 'a {
        explain::Explain { plan: self, graph }
    }

    /// Graphviz text: the phases as clusters, the lanes as colours.
    pub fn to_dot<'a>(&'a self, graph: &'a Graph) -> impl fmt::Display + 'a {
        dot::Dot { plan: self, graph }
    }
}
