//! What the steps of a run leave in its folder.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use prefgraph_nn::{
    Adapter, AdapterLayout,
    lora::{AdapterFile, AdapterFormat},
};
use prefgraph_ops::{
    NamedState, PortType,
    ports::{Effect, Metric, Metrics},
};

use super::Failure;
use crate::{
    checkpoint::{Checkpoint, check_finite, check_range, prune, set_aside},
    folder::{FolderError, Line, MetricsFile, RunFolder},
    graph::{CarryWire, Endpoint, Graph},
    plan::Plan,
    run::{Runner, StepOutput},
    sources::Reader,
    spec::RunSettings,
};

/// How long a checkpoint waits for what is still being read of the data.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cell that holds an adapter.
#[derive(Clone, Debug)]
pub(super) struct AdapterCell {
    /// Its node.
    pub node: String,
    /// What checkpoints call it.
    pub path: String,
    /// Its value in a step.
    pub value: Endpoint,
    /// The one that the step leaves.
    pub next: Endpoint,
}

/// The cells that hold adapters.
pub(super) fn adapter_cells(graph: &Graph) -> Vec<AdapterCell> {
    let ty = PortType::of::<Adapter>();
    let carries = graph.carries().iter();
    let adapters = carries.filter(|c| graph.port_type(c.cell).is_ok_and(|t| t.fits(&ty)));
    let cell = |c: &CarryWire| AdapterCell {
        node: graph[c.cell.node].id.clone(),
        path: graph.path(c.cell),
        value: c.cell,
        next: c.next,
    };
    adapters.map(cell).collect()
}

/// The settings that are learning rates, as `--set` names them.
pub(super) fn rates(graph: &Graph) -> Vec<String> {
    let updates = graph.nodes().filter(|(_, node)| node.op.name() == "lora-update");
    updates.map(|(_, node)| format!("{}.lr", node.id)).collect()
}

/// What adapter files say of where they come from: the graph, and the sizes of the network it was trained on.
pub(super) fn origin(graph: &Graph) -> Vec<(String, String)> {
    let mut about = vec![("prefgraph.graph".to_owned(), graph.name.clone())];
    let backbones = graph.nodes().filter(|(_, node)| node.op.name() == "backbone");
    for (_, node) in backbones.take(1) {
        let facts = node.op.exports();
        let fact = |name: &str| facts.iter().find(|(n, _)| n == name).map(|(n, v)| format!("{v} {n}"));
        let facts = ["parameters", "blocks", "width"].into_iter().filter_map(fact);
        about.push(("prefgraph.base".to_owned(), facts.collect::<Vec<_>>().join(", ")));
    }
    about
}

/// Key of an adapter's header: the steps that made it.
const STEP: &str = "prefgraph.step";

/// Name of the file of an adapter, without the suffix, where a run has so many.
fn stem(cell: &AdapterCell, adapters: usize) -> String {
    if adapters == 1 { "adapter".into() } else { format!("adapter-{}", cell.node) }
}

/// Why a run cannot go on.
pub(super) enum Stop {
    /// Something failed.
    Failed(String),
    /// What is trained is out of range, as this step has shown.
    Diverged(u64, String),
    /// The folder is not where it was.
    Lost(String),
}

impl Stop {
    fn failed(e: impl std::fmt::Display) -> Self {
        Self::Failed(e.to_string())
    }
}

/// The files of a run.
pub(super) struct Session {
    pub folder: RunFolder,
    pub metrics: MetricsFile,
    pub run: RunSettings,
    pub resolved: String,
    pub saved: Saved,
    pub adapters: Vec<AdapterCell>,
    /// The settings that are learning rates, as `--set` names them.
    pub rates: Vec<String>,
    /// What adapter files say of where they come from.
    pub origin: Vec<(String, String)>,
    pub updates: Updates,
    /// What the run is made from.
    pub reader: Reader,
}

/// Which checkpoints there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    /// The newest.
    pub newest: Option<u64>,
    /// The newest from which a step has been made: the last that is known to be good.
    pub proven: Option<u64>,
    /// When that was.
    pub at: Instant,
}

impl Saved {
    /// A run that goes on from a checkpoint, or from nothing.
    pub fn new(step: Option<u64>) -> Self {
        Self { newest: step, proven: step, at: Instant::now() }
    }
}

impl Session {
    /// Is the folder where it was?
    pub fn check(&self) -> Result<(), Stop> {
        self.folder.check().map_err(|e| Stop::Lost(e.to_string()))
    }

    fn folder_fault(&self, e: FolderError) -> Stop {
        // A write that failed because the folder went away a moment ago.
        match self.folder.check() {
            Ok(()) => Stop::failed(e),
            Err(lost) => Stop::Lost(lost.to_string()),
        }
    }

    /// Write what a step asks for; returns its metrics and its line. Of a step without a finite loss nothing but its line is
    /// written.
    pub fn effects(&mut self, output: &StepOutput) -> Result<(Metrics, Line), Stop> {
        let good = output.loss.is_none_or(f32::is_finite);
        let mut metrics = Metrics::default();
        for (_, effect) in &output.effects {
            match effect {
                Effect::Record(record) => metrics.0.extend(record.0.iter().cloned()),
                _ if !good => {}
                Effect::Preview(name, picture) => {
                    self.folder.write_preview(name, picture).map_err(|e| self.folder_fault(e))?;
                }
                Effect::Export(adapter, formats) => {
                    let about = self.about(output.step + 1);
                    check_adapter(adapter).map_err(|e| diverged(output.step, &e))?;
                    for format in formats {
                        let written = self.folder.write_adapter("adapter", adapter, *format, &about);
                        written.map_err(|e| self.folder_fault(e))?;
                    }
                }
            }
        }
        if let (Some(loss), None) = (output.loss, metrics.get("loss")) {
            metrics.0.insert(0, ("loss".into(), Metric::Number(f64::from(loss))));
        }
        if let Some(loss) = self.updates.step(&metrics) {
            metrics.number("update_loss", loss);
        }
        let mut line = Line::default();
        line.push("step", output.step);
        line.metrics(&metrics);
        line.push("seconds", output.seconds);
        line.push("data_seconds", output.data_seconds);
        self.metrics.append(&line).map_err(|e| self.folder_fault(e))?;
        Ok((metrics, line))
    }

    /// A step was made from the state that it found: if that is in the newest checkpoint, older ones can go.
    pub fn prove(&mut self, step: u64) {
        if self.saved.newest == Some(step) && self.saved.proven != Some(step) {
            self.saved.proven = Some(step);
            self.prune();
        }
    }

    /// Remove checkpoints that are too many.
    pub fn prune(&self) {
        if let Some(newest) = self.saved.newest {
            prune(&self.folder.checkpoints(), newest, self.run.keep_checkpoints);
        }
    }

    /// Is a checkpoint due after so many steps?
    pub fn is_due(&self, made: u64) -> bool {
        let RunSettings { checkpoint_every: every, checkpoint_minutes: minutes, .. } = self.run;
        let by_steps = every > 0 && made.is_multiple_of(every);
        by_steps || (minutes > 0.0 && self.saved.at.elapsed().as_secs_f64() >= 60.0 * minutes)
    }

    /// Write a checkpoint, unless there is one of this step; what is not finite is not written.
    pub fn checkpoint(&mut self, runner: &Runner) -> Result<(), Stop> {
        let step = runner.next_step();
        if self.saved.newest == Some(step) {
            return Ok(());
        }
        let cells = runner.cells().map_err(Stop::failed)?;
        for (name, state) in &cells {
            check_finite(name, state).map_err(|e| diverged(step.saturating_sub(1), &e))?;
        }
        for AdapterCell { path, .. } in &self.adapters {
            let mut factors = cells.get(path).into_iter().flat_map(|state| &state.tensors);
            let checked = factors.try_for_each(|t| check_range(&t.values, |_| t.name.clone()));
            checked.map_err(|e| diverged(step.saturating_sub(1), &e))?;
        }
        // The metrics of a step must not be lost while a checkpoint says that it was made.
        self.metrics.sync().map_err(Stop::failed)?;
        let sources = Some(self.reader.sources(PATIENCE).clone());
        let (seed, graph) = (self.run.seed, self.resolved.clone());
        self.check()?;
        Checkpoint { step, seed, graph, sources, cells }
            .write(&self.folder.checkpoints())
            .map_err(Stop::failed)?;
        self.saved = Saved { newest: Some(step), at: Instant::now(), ..self.saved };
        Ok(())
    }

    /// Write what was trained; returns the files.
    pub fn export(&self, output: &StepOutput) -> Result<Vec<String>, Stop> {
        let mut written = Vec::new();
        for cell in &self.adapters {
            let kept = output.kept(cell.next);
            let Some(adapter) = kept.and_then(|v| v.downcast_ref::<Adapter>()) else { continue };
            check_adapter(adapter).map_err(|e| diverged(output.step, &e))?;
            let (name, about) = (stem(cell, self.adapters.len()), self.about(output.step + 1));
            let path = self.folder.write_adapter(&name, adapter, AdapterFormat::Diffusers, &about);
            written.push(shown(&path.map_err(|e| self.folder_fault(e))?));
        }
        Ok(written)
    }

    /// What the header of an adapter says of where it comes from.
    fn about(&self, made: u64) -> Vec<(String, String)> {
        about(&self.origin, made)
    }

    /// How a run that has stopped is to be followed up.
    pub fn explain(&mut self, stop: Stop) -> Failure {
        Failure::new(match stop {
            Stop::Failed(message) => format!("{message}\n{}", self.advice()),
            Stop::Lost(message) => format!("{message}\n{}", self.whereabouts()),
            Stop::Diverged(step, message) => format!("{message}\n{}", self.advice_on_divergence(step)),
        })
    }

    fn advice(&self) -> String {
        match self.saved.newest {
            Some(0) | None => "no step is in a checkpoint yet; --resume begins again".into(),
            Some(step) => format!(
                "the checkpoint of step {step} in `{}` is whole; --resume goes on from there",
                shown(&self.folder.checkpoints())
            ),
        }
    }

    fn whereabouts(&self) -> String {
        let newest = self.saved.newest.filter(|step| *step > 0);
        match (self.folder.whereabouts(), newest) {
            (None, _) => "what was saved went with it; the run stops".into(),
            (Some(_), None) => "no step is in a checkpoint yet; the run stops".into(),
            (Some(place), Some(step)) => format!(
                "the run stops; the checkpoint of step {step} is in `{}`, and --resume --out {} goes on from there",
                place.join("checkpoints").display(),
                place.display()
            ),
        }
    }

    /// What is good after `step` has shown that the training has diverged.
    fn advice_on_divergence(&mut self, step: u64) -> String {
        let folder = self.folder.checkpoints();
        let Saved { newest, proven, .. } = self.saved;
        let mut advice =
            "the training has diverged: a lower learning rate helps, or a longer warm-up".to_owned();
        if newest != proven
            && let Some(unproven) = newest
        {
            // No step has been made from it, and the first one would fail again.
            advice += &match set_aside(&folder, unproven) {
                Ok(place) => format!(
                    "\nthe checkpoint of step {unproven} diverges at once; it is now `{}`",
                    shown(&place)
                ),
                Err(e) => {
                    format!("\nthe checkpoint of step {unproven} diverges at once; remove it, since {e}")
                }
            };
            self.saved.newest = proven;
        }
        let sets: Vec<String> = self.rates.iter().map(|rate| format!(" --set {rate}=LOWER")).collect();
        let again = format!("--resume{} --accept-changes", sets.concat());
        advice += &match proven {
            Some(0) | None => format!("\nno step before is in a checkpoint: {again} begins again"),
            Some(good) => format!(
                "\nthe checkpoint of step {good} in `{}` is whole: {again} goes on from there",
                shown(&folder)
            ),
        };
        if proven == Some(step) && step > 0 {
            advice += &format!(
                "; if it diverges whatever the rate, remove `step-{step}` to go on from the one before"
            );
        }
        advice
    }
}

fn diverged(step: u64, what: &str) -> Stop {
    Stop::Diverged(step, format!("step {step}: after its update {what}, which is not written"))
}

fn about(origin: &[(String, String)], made: u64) -> Vec<(String, String)> {
    origin.iter().cloned().chain([(STEP.into(), made.to_string())]).collect()
}

fn check_adapter(adapter: &Adapter) -> Result<(), String> {
    check_range(&adapter.values, |at| module_of(&adapter.layout, at).to_owned())
}

/// The linear whose factors hold a value.
fn module_of(layout: &AdapterLayout, at: usize) -> &str {
    let found = layout.ranges().iter().position(|(a, b)| a.contains(&at) || b.contains(&at));
    found.map_or("?", |i| layout.modules[i].name.as_str())
}

/// Write the adapters of a complete run that has none, or older ones; returns the files that were written.
pub(super) fn complete(
    folder: &mut RunFolder,
    graph: &Graph,
    plan: &Plan,
    checkpoint: &Checkpoint,
) -> Result<Vec<String>, Failure> {
    let cells = adapter_cells(graph);
    let mut written = Vec::new();
    for cell in &cells {
        let stem = stem(cell, cells.len());
        let path = folder.path().join(AdapterFormat::Diffusers.file_name(&stem));
        let made = checkpoint.step.to_string();
        let there = AdapterFile::open(&path, "").is_ok_and(|file| file.metadata().get(STEP) == Some(&made));
        let Some(state) = checkpoint.cells.get(&cell.path).filter(|_| !there) else { continue };
        let adapter = restored(graph, plan, cell.value, state)?;
        check_adapter(&adapter).map_err(|e| Failure::new(format!("the adapter is not written: {e}")))?;
        folder.keep();
        let about = about(&origin(graph), checkpoint.step);
        let path = folder.write_adapter(&stem, &adapter, AdapterFormat::Diffusers, &about);
        written.push(shown(&path.map_err(Failure::new)?));
    }
    Ok(written)
}

fn restored(graph: &Graph, plan: &Plan, cell: Endpoint, state: &NamedState) -> Result<Adapter, Failure> {
    let fault = |e: &dyn std::fmt::Display| Failure::new(format!("cell `{}`: {e}", graph.path(cell)));
    let carry = graph.port_type(cell).map_err(|e| fault(&e))?.carry;
    let restore = carry.ok_or_else(|| fault(&"it cannot be carried"))?.restore;
    let value = restore(&plan.shape(graph, cell), state).map_err(|e| fault(&e))?;
    value.downcast_ref::<Adapter>().cloned().ok_or_else(|| fault(&"it is no adapter"))
}

/// The loss of an update of several micro-batches: the mean of theirs.
#[derive(Clone, Debug, Default)]
pub(super) struct Updates {
    sum: f64,
    count: u64,
}

impl Updates {
    /// A step has these metrics; the loss of the update that it ends, where several micro-batches make one.
    pub fn step(&mut self, metrics: &Metrics) -> Option<f64> {
        let number = |name: &str| metrics.get(name).and_then(Metric::mean);
        self.add(number("micro_batch")?, number("micro_batches")?, number("loss")?)
    }

    /// A step that was made before the run was resumed, as metrics.jsonl has it.
    pub fn recall(&mut self, line: &serde_json::Value) {
        let number = |name: &str| line.get(name)?.as_f64();
        if let (Some(batch), Some(of), Some(loss)) =
            (number("micro_batch"), number("micro_batches"), number("loss"))
        {
            self.add(batch, of, loss);
        }
    }

    fn add(&mut self, batch: f64, of: f64, loss: f64) -> Option<f64> {
        if batch <= 1.0 {
            *self = Self::default();
        }
        self.sum += loss;
        self.count += 1;
        // Where a line of metrics.jsonl was lost, so was the mean.
        (batch >= of && self.count as f64 == batch).then(|| self.sum / self.count as f64)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
