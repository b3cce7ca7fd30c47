//! What the steps of a run leave in its folder.

use std::path::Path;

use prefgraph_nn::{Adapter, lora::AdapterFormat};
use prefgraph_ops::{
    PortType,
    ports::{Effect, Metrics},
};

use super::Failure;
use crate::{
    checkpoint::Checkpoint,
    folder::{Line, MetricsFile, RunFolder},
    graph::{Endpoint, Graph},
    run::{Runner, StepOutput},
    spec::RunSettings,
};

/// The cells that hold adapters: their value in a step, and the one that the step leaves.
pub(super) fn adapter_cells(graph: &Graph) -> Vec<(String, Endpoint, Endpoint)> {
    let ty = PortType::of::<Adapter>();
    let carries = graph.carries().iter();
    let adapters = carries.filter(|c| graph.port_type(c.cell).is_ok_and(|t| t.fits(&ty)));
    adapters.map(|c| (graph[c.cell.node].id.clone(), c.cell, c.next)).collect()
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

/// The files of a run.
pub(super) struct Session {
    pub folder: RunFolder,
    pub metrics: MetricsFile,
    pub run: RunSettings,
    pub resolved: String,
    /// Number of the last checkpoint.
    pub checkpoint: Option<u64>,
    /// Names of cells with adapters, and where a step leaves their values.
    pub adapters: Vec<(String, Endpoint)>,
    /// What adapter files say of where they come from.
    pub origin: Vec<(String, String)>,
}

impl Session {
    /// Write what a step asks for; returns its metrics and its line.
    pub fn effects(&mut self, output: &StepOutput) -> Result<(Metrics, Line), Failure> {
        let mut metrics = Metrics::default();
        for (_, effect) in &output.effects {
            match effect {
                Effect::Record(record) => metrics.0.extend(record.0.iter().cloned()),
                Effect::Preview(name, picture) => {
                    self.folder.write_preview(name, picture).map_err(Failure::new)?;
                }
                Effect::Export(adapter, formats) => {
                    let about = self.about(output);
                    for format in formats {
                        self.folder
                            .write_adapter("adapter", adapter, *format, &about)
                            .map_err(Failure::new)?;
                    }
                }
            }
        }
        if let (Some(loss), None) = (output.loss, metrics.get("loss")) {
            metrics.0.insert(0, ("loss".into(), prefgraph_ops::ports::Metric::Number(f64::from(loss))));
        }
        let mut line = Line::default();
        line.push("step", output.step);
        line.metrics(&metrics);
        line.push("seconds", output.seconds);
        line.push("data_seconds", output.data_seconds);
        self.metrics.append(&line).map_err(Failure::new)?;
        Ok((metrics, line))
    }

    /// Write a checkpoint, unless there is one of this step.
    pub fn checkpoint(&mut self, runner: &Runner) -> Result<(), Failure> {
        let step = runner.next_step();
        if self.checkpoint == Some(step) {
            return Ok(());
        }
        // The metrics of a step must not be lost while a checkpoint says that it was made.
        self.metrics.sync().map_err(Failure::new)?;
        let cells = runner.cells().map_err(Failure::new)?;
        let checkpoint = Checkpoint { step, seed: self.run.seed, graph: self.resolved.clone(), cells };
        checkpoint.write(&self.folder.checkpoints(), self.run.keep_checkpoints).map_err(Failure::new)?;
        self.checkpoint = Some(step);
        Ok(())
    }

    /// Write what was trained; returns the files.
    pub fn export(&self, output: &StepOutput) -> Result<Vec<String>, Failure> {
        let mut written = Vec::new();
        for (name, at) in &self.adapters {
            let Some(adapter) = output.kept(*at).and_then(|v| v.downcast_ref::<Adapter>()) else { continue };
            let name = if self.adapters.len() == 1 { "adapter".into() } else { format!("adapter-{name}") };
            let about = self.about(output);
            let written_to = self.folder.write_adapter(&name, adapter, AdapterFormat::Diffusers, &about);
            let path = written_to.map_err(Failure::new)?;
            written.push(shown(&path));
        }
        Ok(written)
    }

    /// What the header of an adapter says of where it comes from.
    fn about(&self, output: &StepOutput) -> Vec<(String, String)> {
        let mut about = self.origin.clone();
        about.push(("prefgraph.step".into(), (output.step + 1).to_string()));
        about
    }

    /// How a failure is to be followed up.
    pub fn advice(&self) -> String {
        match self.checkpoint {
            Some(step) => format!(
                "the checkpoint of step {step} in `{}` is whole; --resume goes on from there",
                shown(&self.folder.checkpoints())
            ),
            None => "no checkpoint has been written yet".into(),
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
