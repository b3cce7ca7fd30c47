//! What the steps of a run write into its folder.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use prefgraph_nn::{Adapter, lora::AdapterFormat};
use prefgraph_ops::{
    NamedState,
    ports::{Effect, Metric, Metrics},
};

use super::{
    measured::Measurements,
    stop::Stop,
    trained::{AdapterCell, about, check_adapter, stem},
    updates::Updates,
};
use crate::{
    checkpoint::{Checkpoint, check_finite, check_range, prune},
    folder::{FolderError, Line, MetricsFile, RunFolder},
    run::StepOutput,
    sources::Sources,
    spec::RunSettings,
};

/// How long a checkpoint waits for the reader of the data.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

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
    pub measurements: Measurements,
}

/// The checkpoints written so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    /// The newest.
    pub newest: u64,
    /// The newest from which a step has succeeded: the last known good one.
    pub proven: u64,
    /// When the newest was written.
    pub at: Instant,
}

impl Saved {
    /// Those of a run that continues from a checkpoint.
    pub fn new(step: u64) -> Self {
        Self { newest: step, proven: step, at: Instant::now() }
    }
}

impl Session {
    /// Is the folder still in its place?
    pub fn check(&self) -> Result<(), Stop> {
        self.folder.check().map_err(|e| Stop::Lost(e.to_string()))
    }

    fn folder_fault(&self, e: FolderError) -> Stop {
        // A write may have failed because the folder went away a moment ago.
        match self.folder.check() {
            Ok(()) => Stop::failed(e),
            Err(lost) => Stop::Lost(lost.to_string()),
        }
    }

    /// Write what a step asks for; returns its metrics and its line. If the loss is not finite, only the line is written.
    pub fn effects(&mut self, output: &StepOutput) -> Result<(Metrics, Line), Stop> {
        let good = output.loss.is_none_or(f32::is_finite);
        let mut metrics = Metrics::default();
        for (node, effect) in &output.effects {
            match effect {
                Effect::Record(record) => record.0.iter().for_each(|(name, value)| {
                    metrics.push_unique(name, value.clone());
                }),
                _ if !good => {}
                Effect::Preview(name, picture) => {
                    self.folder.write_preview(name, picture).map_err(|e| self.folder_fault(e))?;
                }
                Effect::Measure(part) => {
                    let sums = self.measurements.observe(node, output.step, part);
                    for (name, value) in sums.map_err(|what| Stop::spoilt(output.step, &what))?.0 {
                        metrics.push_unique(&name, value);
                    }
                }
                Effect::Export(adapter, formats) => {
                    let stem = stem(node, self.adapters.len());
                    for format in formats {
                        self.write_adapter(&stem, adapter, *format, output.step)?;
                    }
                }
            }
        }
        if let (Some(loss), None) = (output.loss, metrics.get("loss")) {
            metrics.0.insert(0, ("loss".into(), Metric::Number(f64::from(loss))));
        }
        if let Some(loss) = self.updates.step(output.step, &metrics) {
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

    /// Write the best adapters that the step has found.
    pub fn write_best(&mut self) -> Result<(), Stop> {
        let written = self.measurements.write_changed(&self.folder, &self.origin);
        written.map_err(|e| self.folder_fault(e))
    }

    /// A step has succeeded: if it started from the newest checkpoint, older ones are no longer needed.
    pub fn prove(&mut self, step: u64) {
        if self.saved.newest == step && self.saved.proven != step {
            self.saved.proven = step;
            self.prune();
        }
    }

    /// Remove surplus checkpoints.
    pub fn prune(&self) {
        prune(&self.folder.checkpoints(), self.saved.newest, self.run.keep_checkpoints);
    }

    /// Is a checkpoint due after so many steps?
    pub fn is_due(&self, made: u64) -> bool {
        let RunSettings { checkpoint_every: every, checkpoint_minutes: minutes, .. } = self.run;
        let by_steps = every > 0 && made.is_multiple_of(every);
        by_steps || (minutes > 0.0 && self.saved.at.elapsed().as_secs_f64() >= 60.0 * minutes)
    }

    /// Has the state before this step a checkpoint?
    pub fn is_saved(&self, step: u64) -> bool {
        self.saved.newest == step
    }

    /// Is the state one to go on from? If not, what is wrong with it.
    pub fn check_cells(&self, cells: &BTreeMap<String, NamedState>) -> Result<(), String> {
        for (name, state) in cells {
            check_finite(name, state)?;
        }
        for AdapterCell { path, .. } in &self.adapters {
            let mut factors = cells.get(path).into_iter().flat_map(|state| &state.tensors);
            factors.try_for_each(|t| check_range(&t.values, |_| t.name.clone()))?;
        }
        Ok(())
    }

    /// Write the state before `step` as a checkpoint; values out of range are refused.
    pub fn checkpoint(
        &mut self,
        step: u64,
        cells: BTreeMap<String, NamedState>,
        sources: Sources,
    ) -> Result<(), Stop> {
        self.check_cells(&cells).map_err(|what| Stop::spoilt(step.saturating_sub(1), &what))?;
        // A checkpoint must not claim steps whose metrics could still be lost.
        self.metrics.sync().map_err(Stop::failed)?;
        let (seed, graph) = (self.run.seed, self.resolved.clone());
        let kept = self.measurements.kept(step).map_err(Stop::failed)?;
        let checkpoint = Checkpoint { step, seed, graph, sources: Some(sources), cells, kept };
        self.check()?;
        checkpoint.write(&self.folder.checkpoints()).map_err(Stop::failed)?;
        self.saved = Saved { newest: step, at: Instant::now(), ..self.saved };
        Ok(())
    }

    /// Write what was trained; returns the files.
    pub fn export(&self, output: &StepOutput) -> Result<Vec<PathBuf>, Stop> {
        let mut written = Vec::new();
        for cell in &self.adapters {
            let kept = output.kept(cell.next);
            let Some(adapter) = kept.and_then(|v| v.downcast_ref::<Adapter>()) else { continue };
            let stem = stem(&cell.node, self.adapters.len());
            for format in adapter.layout.formats() {
                written.push(self.write_adapter(&stem, adapter, format, output.step)?);
            }
        }
        Ok(written)
    }

    fn write_adapter(
        &self,
        stem: &str,
        adapter: &Adapter,
        format: AdapterFormat,
        step: u64,
    ) -> Result<PathBuf, Stop> {
        check_adapter(adapter).map_err(|what| Stop::spoilt(step, &what))?;
        let about = about(&self.origin, step + 1);
        self.folder.write_adapter(stem, adapter, format, &about).map_err(|e| self.folder_fault(e))
    }
}
