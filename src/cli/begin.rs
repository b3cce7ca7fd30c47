//! The files that precede the first step of a run.

use std::{collections::BTreeMap, path::Path, time::Duration};

use prefgraph_ops::words::{count, form};

use super::{
    Failure,
    measured::Measurements,
    say::say,
    session::{Saved, Session},
    trained::{adapter_cells, origin, rates},
    updates::Updates,
};
use crate::{
    checkpoint::{Checkpoint, Kept},
    folder::{Accepted, Command, MetricsFile, RunFolder, Survey as Lines},
    graph::Graph,
    plan::Plan,
    sources::Sources,
    spec::RunSettings,
};

/// What a run is of.
pub(super) struct Subject<'a> {
    pub graph: &'a Graph,
    pub plan: &'a Plan,
    pub run: &'a RunSettings,
    /// The graph as a flat file.
    pub resolved: &'a str,
    /// Settings over the graph file, with absolute paths.
    pub sets: &'a [String],
    /// The graph file, as it was named.
    pub file: Option<&'a Path>,
}

/// What is known when a run starts to write.
pub(super) struct Begin {
    pub command: Command,
    pub accepted: Option<Accepted>,
    /// Step of the checkpoint it continues from.
    pub newest: Option<u64>,
    pub lines: Lines,
    pub updates: Updates,
    /// What the checkpoint remembers of the effects of nodes.
    pub kept: BTreeMap<String, Kept>,
}

impl Begin {
    /// Take the folder over and write the files that precede the first step. `sources` gives the data and weights of the run, after
    /// waiting at most so long for their contents to be read.
    pub fn write(
        self,
        mut folder: RunFolder,
        subject: &Subject<'_>,
        sources: &mut dyn FnMut(Duration) -> Sources,
    ) -> Result<Session, Failure> {
        let Subject { graph, plan, run, resolved, sets, file } = *subject;
        folder.check().map_err(Failure::new)?;
        let mut measurements = Measurements::new(graph);
        measurements.recall(graph, plan, &self.kept)?;
        folder.keep();
        let newest = match self.newest {
            Some(step) => step,
            None => mark(&folder, subject, sources)?,
        };
        let accepted = self.accepted.or(self.command.accepted);
        let command = Command { graph: shown(file), set: remembered(sets), accepted, over: Vec::new() };
        folder.write_command(&command).map_err(Failure::new)?;
        folder.write_text("graph.ron", resolved).map_err(Failure::new)?;
        let picture = plan.to_dot(graph).to_string();
        folder.write_text("graph.dot", &picture).map_err(Failure::new)?;
        if self.lines.later > 0 {
            say!(
                "note: {} of metrics.jsonl, from step {newest} on, {} cut off; {} again",
                count(self.lines.later, "line"),
                form(self.lines.later, "is", "are"),
                form(self.lines.later, "this step runs", "these steps run")
            );
        }
        let origin = origin(graph);
        // Files of steps that run again are none of this run yet.
        measurements.put_right(&folder, &origin).map_err(Failure::new)?;
        let metrics = MetricsFile::open(folder.path(), newest).map_err(Failure::new)?;
        Ok(Session {
            folder,
            metrics,
            run: run.clone(),
            resolved: resolved.to_owned(),
            saved: Saved::new(newest),
            adapters: adapter_cells(graph),
            rates: rates(graph),
            origin,
            updates: self.updates,
            measurements,
        })
    }
}

/// The graph file, as it was named.
pub(super) fn shown(file: Option<&Path>) -> String {
    file.unwrap_or(Path::new("")).display().to_string()
}

/// The settings that a resumed run need not be told again; those of the machine are not of the run.
pub(super) fn remembered(sets: &[String]) -> Vec<String> {
    let machine = |set: &String| set.starts_with("run.lanes=") || set.starts_with("run.threads=");
    let mut set = Command::default().over(sets);
    set.retain(|set| !machine(set));
    set
}

/// Write the checkpoint of step 0: the folder holds a run from now on, and starting over loses nothing.
fn mark(
    folder: &RunFolder,
    subject: &Subject<'_>,
    sources: &mut dyn FnMut(Duration) -> Sources,
) -> Result<u64, Failure> {
    // Enough for a small data set; a large one is not worth the wait.
    const PATIENCE: Duration = Duration::from_secs(1);
    let sources = Some(sources(PATIENCE));
    let (seed, graph) = (subject.run.seed, subject.resolved.to_owned());
    let (cells, kept) = Default::default();
    let checkpoint = Checkpoint { step: 0, seed, graph, sources, cells, kept };
    checkpoint.write(&folder.checkpoints()).map_err(Failure::new)?;
    Ok(0)
}
