//! The loop over steps.
//!
//! Results reach the disk before a line about them reaches the terminal, which may be gone.

use std::path::PathBuf;

use prefgraph_nn::{self as nn, Adapter, cpu::map};
use prefgraph_ops::{
    Fault,
    ports::{Metric, Metrics},
    words::count,
};

use super::{
    INTERRUPTED, first,
    health::Health,
    interrupt,
    progress::Progress,
    session::{PATIENCE, Session},
    stop::Stop,
    system,
};
use crate::{
    run::{RunError, Runner, StepOutput},
    sources::Reader,
};

pub(super) struct Loop {
    pub runner: Runner,
    pub session: Session,
    /// Reads the data that the run is made from, for checkpoints.
    pub reader: Reader,
    pub progress: Progress,
    pub health: Health,
    /// Are metrics printed on standard output?
    pub json: bool,
}

impl Loop {
    /// All steps up to `steps`; the exit code.
    pub fn go(&mut self, steps: u64) -> Result<u8, Stop> {
        // Later requests are seen at the end of a step, where its checkpoint is written.
        if self.runner.next_step() < steps && interrupt::interrupted() {
            self.progress.say("interrupted before the first step; --resume starts it");
            return Ok(INTERRUPTED);
        }
        while self.runner.next_step() < steps {
            map::check_lengths().map_err(|e: nn::Error| Stop::Failed(e.to_string()))?;
            let output = match self.runner.step() {
                Ok(output) => output,
                Err(e) => return Err(self.keep_what_was_made(stop(e))),
            };
            self.session.check()?;
            let (metrics, line) = self.session.effects(&output)?;
            if let Some(loss) = output.loss.filter(|l| !l.is_finite()) {
                return Err(Stop::Diverged(
                    output.step,
                    format!(
                        "step {}: the loss is {loss}; the run stops before it spoils the adapter. metrics.jsonl holds the \
                         numbers of the step",
                        output.step
                    ),
                ));
            }
            self.session.prove(output.step);
            let made = output.step + 1;
            let interrupted = interrupt::interrupted();
            let ends = interrupted || made == steps;
            let mut adapters = Vec::new();
            if ends || self.session.is_due(made) {
                self.checkpoint(made)?;
                if ends || self.session.run.checkpoint_adapter {
                    adapters = self.session.export(&output)?;
                }
            }
            if let Err(stop) = self.session.write_best() {
                // The checkpoint remembers the best adapter: no step is lost with its file.
                self.checkpoint(made)?;
                return Err(stop);
            }
            self.tell(&output, &metrics, &format!("{line}\n"));
            if ends {
                self.tell_end(made, steps, &metrics, &adapters);
            }
            if made < steps && interrupted {
                return Ok(INTERRUPTED);
            }
        }
        self.session.prune();
        Ok(0)
    }

    /// The steps before one that has failed are worth a checkpoint: what failed is mostly a file, and the run goes on from there once that is mended.
    fn keep_what_was_made(&mut self, stop: Stop) -> Stop {
        let made = self.runner.next_step();
        if matches!(stop, Stop::Failed(_)) && made > 0 {
            // Where the state cannot be read or written either, the first reason is the one to be told.
            let _ = self.checkpoint(made);
        }
        stop
    }

    fn checkpoint(&mut self, step: u64) -> Result<(), Stop> {
        if self.session.is_saved(step) {
            return Ok(());
        }
        let cells = self.runner.cells().map_err(Stop::failed)?;
        let sources = self.reader.sources(PATIENCE).clone();
        self.session.checkpoint(step, cells, sources)
    }

    fn tell(&mut self, output: &StepOutput, metrics: &Metrics, line: &str) {
        if self.json
            && let Err(super::Failure::Message(message)) = system::print(line)
        {
            self.json = false;
            self.progress.say(&format!("warning: {message}; metrics.jsonl has every line"));
        }
        let adapters = || {
            let cells = self.session.adapters.iter();
            let values = cells.filter_map(|cell| output.kept(cell.value)?.downcast_ref::<Adapter>());
            values.cloned().collect::<Vec<_>>()
        };
        if output.step == 0
            && let Some((warning, text)) = first::check(&adapters(), metrics)
        {
            self.progress.say(&if warning { format!("WARNING: {text}") } else { text });
        }
        self.progress.step(output.step, metrics, output.seconds, output.data_seconds);
        for warning in self.health.observe(output.step, metrics) {
            self.progress.say(&format!("WARNING: {warning}"));
        }
    }

    fn tell_end(&mut self, made: u64, steps: u64, metrics: &Metrics, adapters: &[PathBuf]) {
        for path in adapters {
            self.progress.say(&format!("the adapter is in `{}`, read back and compared", path.display()));
        }
        if let Some(left) = left_over(metrics) {
            self.progress.say(&left);
        }
        if made == steps {
            self.health.complete();
        }
        self.health.summary().iter().for_each(|line| self.progress.say(line));
        let measurements = &self.session.measurements;
        for line in measurements.sentences(self.session.folder.path(), made) {
            self.progress.say(&line);
        }
        self.progress.say(&match made == steps {
            true => format!("complete: {}", count(steps, "step")),
            false => interrupted(made, steps),
        });
    }
}

/// What is said of a run that ends before its last step.
pub(super) fn interrupted(made: u64, steps: u64) -> String {
    format!("interrupted after {made} of {}; --resume continues from there", count(steps, "step"))
}

/// A note about gradients that the run ends without using.
pub(super) fn left_over(metrics: &Metrics) -> Option<String> {
    let number = |name: &str| metrics.get(name).and_then(Metric::mean);
    let (batch, of) = (number("micro_batch")?, number("micro_batches")?);
    (batch < of).then(|| {
        format!(
            "note: the run ends {} into an update of {of}: their gradients are in the checkpoint and count if the run is \
             continued; the adapter does not include them",
            count(batch, "micro-batch")
        )
    })
}

pub(super) fn stop(e: RunError) -> Stop {
    match &e {
        RunError::Node { step, source, .. } if source.fault() == Fault::Training => {
            Stop::Diverged(*step, e.to_string())
        }
        _ => Stop::Failed(e.to_string()),
    }
}
