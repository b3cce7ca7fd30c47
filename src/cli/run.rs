//! `graph-run GRAPH`: the loop over steps.

use std::path::PathBuf;

use prefgraph_nn as nn;

use super::{
    Failure, INTERRUPTED, args, fill, first,
    health::Health,
    prepare::{Prepared, prepare},
    progress::Progress,
    session::{Session, adapter_cells, origin},
    system,
};
use crate::{
    checkpoint::Checkpoint,
    folder::{MetricsFile, RunFolder},
    registry::Registry,
    run::{RunOptions, Runner, StepOutput},
    spec::diff,
};

/// Run a graph to its end, or until somebody interrupts.
pub(super) fn run(args: &args::Run, registry: &Registry) -> Result<u8, Failure> {
    let mut prepared = prepare(&args.graph, registry)?;
    prepared.check_memory(registry)?;
    let path = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&prepared.graph.name));
    let folder = RunFolder::open(&path, args.resume).map_err(Failure::new)?;
    for note in &folder.notes {
        eprintln!("note: {note}");
    }
    let found = if args.resume { find_checkpoint(&folder, &prepared, args.accept_changes)? } else { None };
    let start = found.as_ref().map_or(0, |c| c.step);
    introduce(&prepared, &path);
    system::watch_interrupts()?;
    let cpu = nn::Cpu::new(prepared.run.threads).map_err(Failure::new)?;
    // Before anything of the run is written: a filling that is interrupted leaves the folder as it was.
    if start < prepared.run.steps && !fill::fill(&mut prepared, &cpu)? {
        return Ok(INTERRUPTED);
    }
    folder.write_text("graph.ron", &prepared.resolved).map_err(Failure::new)?;
    let picture = prepared.plan.to_dot(&prepared.graph).to_string();
    folder.write_text("graph.dot", &picture).map_err(Failure::new)?;
    let (metrics, cut) = MetricsFile::open(folder.path(), start).map_err(Failure::new)?;
    if cut > 0 {
        eprintln!(
            "note: {cut} lines of metrics.jsonl from step {start} on were cut off; they are made again"
        );
    }
    let Prepared { graph, plan, run, resolved, .. } = prepared;
    let steps = run.steps;
    if start >= steps {
        eprintln!("the run is complete: it has {start} steps of {steps}; --steps asks for more");
        return Ok(0);
    }
    let options = RunOptions { last: Some(steps - 1), ..RunOptions::new(run.seed, cpu) };
    let (cells, origin) = (adapter_cells(&graph), origin(&graph));
    let health = Health::new(&graph);
    let mut runner = Runner::new(graph, plan, options).map_err(Failure::new)?;
    if let Some(checkpoint) = &found {
        runner.restore(checkpoint.step, &checkpoint.cells).map_err(Failure::new)?;
    }
    for (_, value, next) in &cells {
        runner.keep(*next).map_err(Failure::new)?;
        if start == 0 {
            runner.keep(*value).map_err(Failure::new)?;
        }
    }
    let progress = Progress::new(start, steps, run.log_every);
    let adapters = cells.iter().map(|(name, _, next)| (name.clone(), *next)).collect();
    let checkpoint = found.map(|c| c.step);
    let session = Session { folder, metrics, run, resolved, checkpoint, adapters, origin };
    let mut running = Loop { runner, session, progress, health, json: args.json };
    let done = running.go(steps, &|output| {
        let values = cells.iter().filter_map(|(_, at, _)| output.kept(*at)?.downcast_ref::<nn::Adapter>());
        values.cloned().collect()
    });
    running.progress.end();
    done.map_err(|failure| match failure {
        Failure::Message(message) => Failure::new(format!("{message}\n{}", running.session.advice())),
        other => other,
    })
}

/// What stands at the start of a run, for people.
fn introduce(prepared: &Prepared, path: &std::path::Path) {
    eprintln!(
        "{}: {} steps into `{}`, {} trainable values, {:.2e} FLOP a step, predicted peak memory {}",
        prepared.graph.name,
        prepared.run.steps,
        path.display(),
        prepared.trainable(),
        prepared.flops(),
        system::bytes(prepared.plan.memory().peak as u64),
    );
    for note in prepared.notes.iter().chain(&prepared.cache_lines()) {
        eprintln!("  {note}");
    }
}

/// The newest whole checkpoint, if the graph is still the one that it is of.
fn find_checkpoint(
    folder: &RunFolder,
    prepared: &Prepared,
    accept: bool,
) -> Result<Option<Checkpoint>, Failure> {
    let (found, notes) = Checkpoint::newest(&folder.checkpoints()).map_err(Failure::new)?;
    for note in notes {
        eprintln!("warning: {note}");
    }
    let Some(found) = found else {
        eprintln!("note: `{}` holds no checkpoint; the run begins at step 0", folder.path().display());
        return Ok(None);
    };
    let changes = diff(&found.graph, &prepared.resolved)?;
    let list = |harmless: bool| -> Vec<String> {
        changes.iter().filter(|c| c.harmless == harmless).map(|c| format!("  {c}")).collect()
    };
    let (free, grave) = (list(true), list(false));
    if !free.is_empty() {
        eprintln!("changed since the checkpoint, without effect on results:\n{}", free.join("\n"));
    }
    if !grave.is_empty() {
        let list = grave.join("\n");
        if !accept {
            return Err(Failure::new(format!(
                "the graph is not the one that the checkpoint of step {} is of:\n{list}\n--accept-changes goes on \
                 with the new one; --out begins a new run",
                found.step
            )));
        }
        eprintln!("warning: changed since the checkpoint, and accepted:\n{list}");
    }
    eprintln!("resumed at step {}", found.step);
    Ok(Some(found))
}

struct Loop {
    runner: Runner,
    session: Session,
    progress: Progress,
    health: Health,
    json: bool,
}

impl Loop {
    /// All steps up to `steps`; `adapters` finds the adapters as they were before a step.
    fn go(&mut self, steps: u64, adapters: &dyn Fn(&StepOutput) -> Vec<nn::Adapter>) -> Result<u8, Failure> {
        let every = self.session.run.checkpoint_every;
        while self.runner.next_step() < steps {
            let output = self.runner.step().map_err(Failure::new)?;
            let (metrics, line) = self.session.effects(&output)?;
            if self.json {
                system::print(&format!("{line}\n"))?;
            }
            if output.step == 0
                && let Some((warning, text)) = first::check(&adapters(&output), &metrics)
            {
                self.progress.say(&if warning { format!("WARNING: {text}") } else { text });
            }
            self.progress.step(output.step, &metrics, output.seconds, output.data_seconds);
            for warning in self.health.observe(output.step, &metrics) {
                self.progress.say(&format!("WARNING: {warning}"));
            }
            if let Some(loss) = output.loss.filter(|l| !l.is_finite()) {
                return Err(Failure::new(format!(
                    "step {}: the loss is {loss}; the run stops before it spoils the adapter. metrics.jsonl holds the \
                     numbers of the step",
                    output.step
                )));
            }
            let made = output.step + 1;
            let interrupted = system::interrupted();
            if interrupted || made == steps || (every > 0 && made.is_multiple_of(every)) {
                self.session.checkpoint(&self.runner)?;
            }
            if made == steps {
                for path in self.session.export(&output)? {
                    self.progress.say(&format!("the adapter is in `{path}`, read back and compared"));
                }
            }
            if interrupted && made < steps {
                let advice = "--resume goes on from there";
                self.progress.say(&format!("interrupted after {made} steps of {steps}; {advice}"));
                return Ok(INTERRUPTED);
            }
        }
        self.health.summary().iter().for_each(|line| self.progress.say(line));
        self.progress.say(&format!("complete: {steps} steps"));
        Ok(0)
    }
}
