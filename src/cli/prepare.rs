//! From a graph file to a graph and its plan.

use std::{path::Path, sync::Arc};

use prefgraph_ops::{
    Operator, guard,
    operators::{export::Export, log::Log, lora_update::LoraUpdate, measure::Measure},
    words::count,
};

use super::{Failure, args, device, system, threads};
use crate::{
    cache::{Cache, NodeStatus, State},
    graph::{Endpoint, Graph, Node, NodeId},
    plan::{Plan, PlanOptions, Rates, due},
    registry::Registry,
    spec::{Loaded, Outline, RunSettings, load},
};

/// A graph that is ready to run.
pub(super) struct Prepared {
    pub graph: Arc<Graph>,
    pub plan: Plan,
    pub run: RunSettings,
    pub resolved: String,
    /// Settings over the graph file, with absolute paths.
    pub sets: Vec<String>,
    /// What operators say about themselves, with their nodes.
    pub notes: Vec<String>,
    /// Every setting of every node and of the run, with its value.
    pub settings: Vec<(String, String)>,
    pub args: args::Graph,
    /// The cache, with what it holds for each of its nodes.
    pub cache: Option<(Cache, Vec<NodeStatus>)>,
}

/// Load and plan the graph that the arguments name.
pub(super) fn prepare(args: &args::Graph, registry: &Registry) -> Result<Prepared, Failure> {
    let path = args.graph.as_deref().unwrap_or(Path::new(""));
    if path.as_os_str().is_empty() {
        return Err(Failure::new("no graph was named"));
    }
    let asked = args.all_sets();
    let sets = [of_another_length(path, &asked, registry), asked].concat();
    let loaded = load(path, &sets, registry)?;
    let (options, threads, fewer) = options(&loaded.run);
    let plan = Plan::new(&loaded.graph, &options)
        .map_err(|e| loaded.error_at(&e.node, e.input.as_deref(), &e.to_string()))?;
    let settings = loaded.settings();
    let Loaded { graph, run, resolved, sets, cache, .. } = loaded;
    let run = RunSettings { threads, ..run };
    let mut notes = notes(&graph, &plan, |_| true);
    notes.extend(fewer.map(|fewer| format!("run: {fewer}")));
    notes.extend(other_steps(&graph, &settings, run.steps));
    let cache = cache.map(|cache| {
        let status = cache.status();
        (cache, status)
    });
    let args = args.clone();
    Ok(Prepared { graph: Arc::new(graph), plan, run, resolved, sets, notes, settings, args, cache })
}

/// What a run may use, how many threads that are, and a word where they are fewer than asked for.
pub(super) fn options(run: &RunSettings) -> (PlanOptions, usize, Option<String>) {
    let (threads, fewer) = threads::capped(run.threads);
    let process = system::process_memory(threads);
    let gpu = device::planned(&run.device);
    let mut options = PlanOptions { ahead: run.ahead, process, gpu, ..PlanOptions::default() };
    if run.lanes > 0 {
        options.lanes = run.lanes;
    }
    (options, threads, fewer)
}

/// What the operators of some nodes say about themselves.
pub(super) fn notes(graph: &Graph, plan: &Plan, wanted: impl Fn(&Node) -> bool) -> Vec<String> {
    let mut notes = Vec::new();
    for (id, node) in graph.nodes().filter(|(_, node)| wanted(node)) {
        // A note is a courtesy: an operator that cannot give it is not a reason to refuse the graph.
        let lines = guard::catch(|| node.op.notes(&plan.input_shapes(graph, id)));
        let lines = lines.unwrap_or_else(|panic| vec![format!("(no notes: a panic: {panic})")]);
        notes.extend(lines.into_iter().map(|line| format!("{}: {line}", node.id)));
    }
    notes
}

/// Nodes that ask how many steps the run has.
const ASK_FOR_THE_RUN: [&str; 4] = [LoraUpdate::NAME, Log::NAME, Export::NAME, Measure::NAME];

/// Settings for the graph of a run's folder where the run is to have another number of steps. All values are stated there, in the place of the
/// recipe's `@run.steps`, too: a schedule would end where the shorter run did.
fn of_another_length(path: &Path, sets: &[String], registry: &Registry) -> Vec<String> {
    let of_a_run = path.file_name().is_some_and(|name| name == "graph.ron");
    if !of_a_run || !sets.iter().any(|set| set.starts_with("run.steps=")) {
        return Vec::new();
    }
    // What is wrong with the file is said when it is loaded.
    let Ok(facts) = Outline::open(path, &[], registry).and_then(|outline| outline.facts()) else {
        return Vec::new();
    };
    let steps = facts.get("run.steps");
    let asks = |(node, op): &(&String, &String)| {
        ASK_FOR_THE_RUN.contains(&op.as_str())
            && steps.is_some()
            && facts.get(&format!("{node}.steps")) == steps
    };
    facts.iter().filter(asks).map(|(node, _)| format!("{node}.steps=@run.steps")).collect()
}

/// Nodes that take the run for longer or shorter than it is, and so say wrong things of it.
pub(super) fn other_steps(graph: &Graph, settings: &[(String, String)], steps: u64) -> Vec<String> {
    let nodes = graph.nodes().filter(|(_, node)| ASK_FOR_THE_RUN.contains(&node.op.name()));
    let other = |(_, node): (NodeId, &Node)| {
        let name = format!("{}.steps", node.id);
        let stated = settings.iter().find(|(setting, _)| *setting == name)?.1.parse::<u64>().ok()?;
        (stated != 0 && stated != steps).then(|| {
            format!(
                "WARNING: `{name}` is {stated} and the run has {}: what `{}` says and does by it is of another run; \"@run.steps\" follows the run",
                count(steps, "step"),
                node.id
            )
        })
    };
    nodes.filter_map(other).collect()
}

impl Prepared {
    /// The same with the plan at these rates of the processor and of the GPU.
    pub fn at(self, rates: Rates, of_gpu: Option<Rates>) -> Result<Self, Failure> {
        let mut options = PlanOptions { rates, ..self.plan.options().clone() };
        options.gpu.iter_mut().for_each(|gpu| gpu.rates = of_gpu);
        let plan = Plan::new(&self.graph, &options).map_err(Failure::new)?;
        Ok(Self { plan, ..self })
    }

    /// Values that a run changes: those of cells whose cotangent is read.
    pub fn trainable(&self) -> usize {
        let cells = self.graph.carries().iter().map(|c| c.cell);
        let trained = cells.filter(|c| self.plan.differentiates(Endpoint::cotangent(c.node, c.port)));
        trained.map(|c| self.plan.shape(&self.graph, c).bytes() / size_of::<f32>()).sum()
    }

    /// Floating-point operations of a step at which no picture is due that is drawn every so many steps.
    pub fn flops(&self) -> f64 {
        let due = due(&self.graph, 1, []);
        // The sum of nothing is -0.0.
        let due = self.plan.tasks().iter().filter(|t| due[t.task.node().index()]);
        due.map(|t| t.flops).sum::<f64>() + 0.0
    }

    /// Bytes that filling the cache will hold; `None` if there is nothing to fill.
    pub fn fill_bytes(&self) -> Option<u64> {
        let (cache, status) = self.cache.as_ref()?;
        let whole = status.iter().all(|s| s.state() == State::Hit);
        (!whole).then(|| cache.fill_bytes(&self.graph, &self.plan) as u64)
    }

    /// The cache and what it holds, one line a node.
    pub fn cache_lines(&self) -> Vec<String> {
        let Some((cache, status)) = &self.cache else { return Vec::new() };
        let width = status.iter().map(|s| s.node.len()).max().unwrap_or(0);
        let mut lines = vec![format!("cache `{}`", cache.folder().display())];
        lines.extend(status.iter().map(|s| format!("  {:<width$}  {s}", s.node)));
        if let Some(bytes) = self.fill_bytes() {
            let bytes = system::bytes(bytes);
            lines.push(format!(
                "  it is filled before the first step, which needs {bytes} of memory for that time"
            ));
        }
        lines
    }
}
