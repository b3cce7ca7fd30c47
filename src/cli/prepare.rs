//! From a graph file to a graph and its plan, and the check that it fits into memory.

use std::{path::Path, sync::Arc};

use prefgraph_ops::guard;

use super::{Failure, args, system, threads};
use crate::{
    cache::{Cache, NodeStatus, State},
    graph::{Endpoint, Graph},
    plan::{Plan, PlanOptions, Rates, due},
    registry::Registry,
    spec::{Loaded, RunSettings, load},
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
    /// Settings of which memory depends, with their values.
    pub levers: Vec<String>,
    /// Settings that a graph has, of those that make it smaller by themselves, as `--set` takes them.
    savings: Vec<String>,
    args: args::Graph,
    /// The cache, with what it holds for each of its nodes.
    pub cache: Option<(Cache, Vec<NodeStatus>)>,
}

/// Load and plan the graph that the arguments name.
pub(super) fn prepare(args: &args::Graph, registry: &Registry) -> Result<Prepared, Failure> {
    let path = args.graph.as_deref().unwrap_or(Path::new(""));
    if path.as_os_str().is_empty() {
        return Err(Failure::new("no graph was named"));
    }
    let loaded = load(path, &args.all_sets(), registry)?;
    let (threads, fewer) = threads::capped(loaded.run.threads);
    let process = system::process_memory(threads);
    let mut options = PlanOptions { ahead: loaded.run.ahead, process, ..PlanOptions::default() };
    if loaded.run.lanes > 0 {
        options.lanes = loaded.run.lanes;
    }
    let plan = Plan::new(&loaded.graph, &options)
        .map_err(|e| loaded.error_at(&e.node, e.input.as_deref(), &e.to_string()))?;
    let (levers, savings) = (levers(&loaded), savings(&loaded));
    let Loaded { graph, run, resolved, sets, cache, .. } = loaded;
    let run = RunSettings { threads, ..run };
    let mut notes = notes(&graph, &plan);
    notes.extend(fewer.map(|fewer| format!("run: {fewer}")));
    let cache = cache.map(|cache| {
        let status = cache.status();
        (cache, status)
    });
    let args = args.clone();
    Ok(Prepared { graph: Arc::new(graph), plan, run, resolved, sets, notes, levers, savings, args, cache })
}

fn notes(graph: &Graph, plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    for (id, node) in graph.nodes() {
        // A note is a courtesy: an operator that cannot give it is not a reason to refuse the graph.
        let lines = guard::catch(|| node.op.notes(&plan.input_shapes(graph, id)));
        let lines = lines.unwrap_or_else(|panic| vec![format!("(no notes: a panic: {panic})")]);
        notes.extend(lines.into_iter().map(|line| format!("{}: {line}", node.id)));
    }
    notes
}

/// Settings that make values smaller, if they are made smaller.
fn levers(loaded: &Loaded) -> Vec<String> {
    const NAMES: [&str; 9] =
        ["batch", "size", "height", "width", "resolution", "rank", "references", "checkpointing", "tokens"];
    let settings = loaded.settings();
    let good = |name: &str| {
        let field = name.split_once('.').map_or("", |(_, field)| field);
        NAMES.iter().any(|n| field == *n || field.ends_with(&format!("_{n}"))) || name == "run.ahead"
    };
    settings
        .into_iter()
        .filter(|(name, _)| good(name))
        .map(|(name, value)| format!("{name} ({value})"))
        .collect()
}

/// Settings that make a graph smaller without changing what it learns from, those that cost least first.
const SAVINGS: [(&str, &str); 4] =
    [("packing", "streamed"), ("checkpointing", "blocks"), ("ahead", "0"), ("compute", "bf16")];

fn savings(loaded: &Loaded) -> Vec<String> {
    let settings = loaded.settings();
    let of = |(setting, better): (&str, &str)| -> Vec<String> {
        let can = |name: &str, value: &str| {
            name.rsplit('.').next() == Some(setting) && value.trim() != better && value.trim() != "0"
        };
        let found = settings.iter().filter(|(name, value)| can(name, value));
        found.map(|(name, _)| format!("{name}={better}")).collect()
    };
    SAVINGS.into_iter().flat_map(of).collect()
}

impl Prepared {
    /// The same with the plan at these rates.
    pub fn at(self, rates: Rates) -> Result<Self, Failure> {
        let options = PlanOptions { rates, ..self.plan.options().clone() };
        let plan = Plan::new(&self.graph, &options).map_err(Failure::new)?;
        Ok(Self { plan, ..self })
    }

    /// The fewest of the savings, in their order, with which the graph would fit, and its peak then.
    fn saving(&self, registry: &Registry, there: u64) -> Option<(Vec<String>, u64)> {
        let mut args = self.args.clone();
        let mut made = Vec::new();
        for saving in &self.savings {
            args.sets.push(saving.clone());
            made.push(saving.clone());
            let peak = prepare(&args, registry).ok()?.plan.memory().peak as u64;
            if peak <= there {
                return Some((made, peak));
            }
        }
        None
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
        self.plan.tasks().iter().filter(|t| due[t.task.node().index()]).map(|t| t.flops).sum()
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

    /// What the run will need, if it is more than there is.
    pub fn check_memory(&self, registry: &Registry) -> Result<(), Failure> {
        let Some(there) = system::machine_memory() else { return Ok(()) };
        match self.fill_bytes().filter(|need| *need > there) {
            Some(need) => Err(Failure::new(format!(
                "filling the cache needs {} of memory, and there are {}: cache fewer nodes at first, or fill it on \
                 another machine",
                system::bytes(need),
                system::bytes(there)
            ))),
            None => self.fits(there, registry),
        }
    }

    fn fits(&self, there: u64, registry: &Registry) -> Result<(), Failure> {
        let memory = self.plan.memory();
        let need = memory.peak as u64;
        if need <= there {
            return Ok(());
        }
        let mut levers = match &self.levers[..] {
            [] => String::new(),
            levers => format!("; what makes it smaller: {}", levers.join(", ")),
        };
        if let Some((made, peak)) = self.saving(registry, there) {
            let sets: Vec<String> = made.iter().map(|set| format!("--set {set}")).collect();
            levers += &format!("\nit would fit, with {}, with {}", system::bytes(peak), sets.join(" "));
        }
        Err(Failure::new(format!(
            "this graph needs {} of memory (weights {}, carried {}, made ahead {}, the process itself {}), and there are {}{levers}",
            system::bytes(need),
            system::bytes(memory.resident as u64),
            system::bytes(memory.cells as u64),
            system::bytes(memory.ahead as u64),
            system::bytes(memory.process as u64),
            system::bytes(there),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_that_does_not_fit_is_refused_with_the_settings_that_make_it_smaller() {
        let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/diffusion_dpo.ron");
        let args = args::Graph { graph: Some(graph), ..args::Graph::default() };
        let Ok(prepared) = prepare(&args, &Registry::standard()) else { panic!("the graph can be prepared") };
        let peak = prepared.plan.memory().peak as u64;
        let registry = Registry::standard();
        assert!(prepared.fits(peak, &registry).is_ok());
        let Err(Failure::Message(message)) = prepared.fits(peak - 1, &registry) else {
            panic!("it does not fit")
        };
        assert!(
            message.contains("it would fit") && message.contains("--set backbone.packing=streamed"),
            "{message}"
        );
        for part in ["pairs.batch (", "pairs.height (", "run.ahead (1)", "lora.rank (", "weights"] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}
