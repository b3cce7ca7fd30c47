//! The loop over the steps of a sweep.
//!
//! A variant that diverges is left out from then on, and the others go on with the bits that they would have had: the graph of
//! those that are left is another one, but each of their nodes computes what it did before.

use std::{collections::BTreeMap, path::PathBuf};

use prefgraph_nn::{self as nn, Adapter, cpu::map};
use prefgraph_ops::{
    Fault,
    ports::{Metric, Metrics},
    words::count,
};

use super::{
    member::{Member, Place},
    report::{Diverged, NAME, Report},
    variants::Sweep,
};
use crate::{
    cli::{Failure, INTERRUPTED, first, interrupt, progress::Progress, session::PATIENCE, steps, stop::Stop},
    folder::RunFolder,
    run::{RunError, RunOptions, Runner, StepOutput},
    sources::Reader,
};

pub(super) struct Loop<'a> {
    pub sweep: &'a Sweep,
    /// That of the whole sweep.
    pub folder: RunFolder,
    pub options: RunOptions,
    pub runner: Runner,
    pub members: Vec<Member>,
    pub diverged: Diverged,
    pub reader: Reader,
    pub progress: Progress,
}

/// Variants that cannot go on, by their place among the members.
type Gone = BTreeMap<usize, Stop>;

impl Loop<'_> {
    /// All steps up to `steps`; the exit code.
    pub fn go(&mut self, steps: u64) -> Result<u8, Failure> {
        if self.runner.next_step() < steps && interrupt::interrupted() {
            self.progress.say("interrupted before the first step; --resume starts it");
            return Ok(INTERRUPTED);
        }
        self.keep()?;
        if self.members.len() > 1 {
            let without = if self.sweep.one_loss {
                ""
            } else {
                "; their losses differ in what they are, and are not shown"
            };
            self.progress.say(&format!(
                "numbers on the way are means over {}{without}",
                count(self.members.len(), "variant")
            ));
        }
        while self.runner.next_step() < steps {
            map::check_lengths().map_err(|e: nn::Error| Failure::new(e))?;
            let output = match self.runner.step() {
                Ok(output) => output,
                Err(error) => {
                    self.keep_what_was_made(&error);
                    let gone = self.gone(error)?;
                    self.leave_out(gone)?;
                    continue;
                }
            };
            self.folder.check().map_err(Failure::new)?;
            let (mut gone, metrics) = self.effects(&output)?;
            let made = output.step + 1;
            let interrupted = interrupt::interrupted();
            let ends = interrupted || made == steps;
            let mut adapters = Vec::new();
            if ends || self.members.first().is_some_and(|m| m.session.is_due(made)) {
                self.checkpoint(made, &mut gone)?;
                if ends || self.sweep.all.run.checkpoint_adapter {
                    adapters = self.export(&output, &mut gone)?;
                }
            }
            if let Err(failure) = self.write_best() {
                self.checkpoint(made, &mut gone)?;
                return Err(failure);
            }
            self.tell(&output, &metrics);
            if !gone.is_empty() {
                self.leave_out(gone)?;
            }
            if ends {
                self.tell_end(made, steps, &metrics, &adapters);
                self.write_report()?;
            }
            if made < steps && interrupted {
                return Ok(INTERRUPTED);
            }
        }
        self.members.iter().for_each(|member| member.session.prune());
        Ok(0)
    }

    /// The steps before one that has failed, and not diverged, are worth a checkpoint, as those of a single run.
    fn keep_what_was_made(&mut self, error: &RunError) {
        let diverged = matches!(error, RunError::Node { source, .. } if source.fault() == Fault::Training);
        let made = self.runner.next_step();
        if !diverged && made > 0 {
            // Where the state cannot be read or written either, the first reason is the one to be told.
            let _ = self.checkpoint(made, &mut Gone::new());
        }
    }

    /// Have the runner keep what is looked at after a step.
    fn keep(&mut self) -> Result<(), Failure> {
        let start = self.runner.next_step();
        for cell in self.members.iter().flat_map(|member| member.place.adapters()) {
            self.runner.keep(cell.next).map_err(Failure::new)?;
            if start == 0 {
                self.runner.keep(cell.value).map_err(Failure::new)?;
            }
        }
        Ok(())
    }

    /// Write the best adapters that the step has found.
    fn write_best(&mut self) -> Result<(), Failure> {
        for member in &mut self.members {
            member.session.write_best().map_err(|stop| member.session.explain(stop))?;
        }
        Ok(())
    }

    /// Write what the step asks for, for every variant; returns those that have diverged, and the metrics of all.
    fn effects(&mut self, output: &StepOutput) -> Result<(Gone, Vec<Metrics>), Failure> {
        let (mut gone, mut all) = (Gone::new(), Vec::new());
        for (at, member) in self.members.iter_mut().enumerate() {
            let part = member.place.part(output);
            let written = member.session.check().and_then(|()| member.session.effects(&part));
            let metrics = match written {
                Ok((metrics, _)) => metrics,
                Err(stop @ Stop::Diverged(..)) => {
                    gone.insert(at, stop);
                    all.push(Metrics::default());
                    continue;
                }
                Err(stop) => return Err(member.session.explain(stop)),
            };
            match part.loss.filter(|loss| !loss.is_finite()) {
                Some(loss) => {
                    let why = format!("step {}: the loss is {loss}", output.step);
                    gone.insert(at, Stop::Diverged(output.step, why));
                }
                None => member.session.prove(output.step),
            }
            all.push(metrics);
        }
        Ok((gone, all))
    }

    /// Write a checkpoint of every variant that goes on.
    fn checkpoint(&mut self, step: u64, gone: &mut Gone) -> Result<(), Failure> {
        let sources = self.reader.sources(PATIENCE).clone();
        for (at, member) in self.members.iter_mut().enumerate() {
            if gone.contains_key(&at) || member.session.is_saved(step) {
                continue;
            }
            let cells = member.place.cells(&self.runner).map_err(Failure::new)?;
            match member.session.checkpoint(step, cells, member.read_at.sources(&sources)) {
                Ok(()) => {}
                Err(stop @ Stop::Diverged(..)) => drop(gone.insert(at, stop)),
                Err(stop) => return Err(member.session.explain(stop)),
            }
        }
        Ok(())
    }

    /// Write what every variant that goes on has trained; returns the files.
    fn export(&mut self, output: &StepOutput, gone: &mut Gone) -> Result<Vec<PathBuf>, Failure> {
        let mut written = Vec::new();
        for (at, member) in self.members.iter_mut().enumerate() {
            if gone.contains_key(&at) {
                continue;
            }
            match member.session.export(output) {
                Ok(paths) => written.extend(paths),
                Err(stop @ Stop::Diverged(..)) => drop(gone.insert(at, stop)),
                Err(stop) => return Err(member.session.explain(stop)),
            }
        }
        Ok(written)
    }

    /// The variants whose training has made a node fail: it says so, or their state shows it. An error if it is something else.
    fn gone(&mut self, error: RunError) -> Result<Gone, Failure> {
        let RunError::Node { node, step, source, .. } = &error else { return Err(Failure::new(error)) };
        let (node, step, fault) = (node.clone(), *step, source.fault());
        let why = error.to_string();
        let mut gone = Gone::new();
        for (at, member) in self.members.iter().enumerate().filter(|(_, m)| m.place.has(&node)) {
            let cells = member.place.cells(&self.runner).map_err(Failure::new)?;
            let spoilt = member.session.check_cells(&cells).err();
            if fault == Fault::Training || spoilt.is_some() {
                let spoilt = spoilt.map(|what| format!("; {what}")).unwrap_or_default();
                gone.insert(at, Stop::Diverged(step, format!("{why}{spoilt}")));
            }
        }
        let shared = self.members.iter().all(|m| m.place.has(&node)) && self.members.len() > 1;
        match gone.is_empty() || shared {
            false => Ok(gone),
            true => Err(match self.members.first_mut() {
                Some(member) => member.session.explain(steps::stop(error)),
                None => Failure::new(error),
            }),
        }
    }

    /// Go on without these variants.
    fn leave_out(&mut self, gone: Gone) -> Result<(), Failure> {
        let step = self.runner.next_step();
        let mut kept: Vec<(Member, BTreeMap<String, prefgraph_ops::NamedState>)> = Vec::new();
        let mut gone = gone;
        for (at, mut member) in std::mem::take(&mut self.members).into_iter().enumerate() {
            match gone.remove(&at) {
                None => {
                    let cells = member.place.cells(&self.runner).map_err(Failure::new)?;
                    kept.push((member, cells));
                }
                Some(stop) => {
                    let variant = &self.sweep.variants[member.variant];
                    let Failure::Message(why) = member.session.explain(stop) else { continue };
                    self.progress.say(&format!(
                        "WARNING: {} is left out from now on: {why}\nthe folder of the variant is that of a run, which can be resumed \
                         alone with --out {}",
                        variant.name(),
                        member.session.folder.path().display()
                    ));
                    self.diverged.insert(variant.number, why.lines().next().unwrap_or_default().to_owned());
                }
            }
        }
        self.write_report()?;
        if kept.is_empty() {
            return Err(Failure::new("every variant has diverged"));
        }
        let some: Vec<usize> = kept.iter().map(|(member, _)| member.variant).collect();
        let (joined, graph, plan) = self.sweep.joined(&some)?;
        let mut cells = BTreeMap::new();
        for (at, (mut member, own)) in kept.into_iter().enumerate() {
            member.place = Place::new(&self.sweep.variants[member.variant], &joined, at, &graph);
            member.session.adapters = member.place.adapters().to_vec();
            member.place.add_cells(&own, &mut cells);
            self.members.push(member);
        }
        let mut runner = Runner::new(graph, plan, self.options.clone()).map_err(Failure::new)?;
        runner.restore(step, &cells).map_err(Failure::new)?;
        self.runner = runner;
        self.keep()
    }

    /// Write `sweep.json` as of now.
    fn write_report(&self) -> Result<(), Failure> {
        let report = Report::read(self.sweep, self.folder.path(), &self.diverged)?;
        let text = format!("{:#}\n", report.json(self.sweep.all.run.steps));
        self.folder.write_text(NAME, &text).map_err(Failure::new)
    }

    fn tell(&mut self, output: &StepOutput, metrics: &[Metrics]) {
        if output.step == 0 {
            self.tell_first(output, metrics);
        }
        let shown = together(metrics, self.sweep.one_loss);
        self.progress.step(output.step, &shown, output.seconds, output.data_seconds);
        for (member, metrics) in self.members.iter_mut().zip(metrics) {
            for warning in member.health.observe(output.step, metrics) {
                let number = self.sweep.variants[member.variant].number;
                self.progress.say(&format!("WARNING: variant {number}: {warning}"));
            }
        }
    }

    /// What the first step shows of policy and reference: of every variant where it is a warning, else once.
    fn tell_first(&self, output: &StepOutput, metrics: &[Metrics]) {
        let mut good = None;
        for (member, metrics) in self.members.iter().zip(metrics) {
            let cells = member.place.adapters().iter();
            let adapters: Vec<Adapter> = cells
                .filter_map(|cell| output.kept(cell.value)?.downcast_ref::<Adapter>().cloned())
                .collect();
            match first::check(&adapters, metrics) {
                Some((true, text)) => {
                    let number = self.sweep.variants[member.variant].number;
                    self.progress.say(&format!("WARNING: variant {number}: {text}"));
                }
                Some((false, text)) => good = good.or(Some(text)),
                None => {}
            }
        }
        good.iter().for_each(|text| self.progress.say(text));
    }

    fn tell_end(&self, made: u64, steps: u64, metrics: &[Metrics], adapters: &[PathBuf]) {
        if !adapters.is_empty() {
            let out = self.folder.path().display();
            self.progress.say(&format!(
                "the adapters of {} are in their folders in `{out}`, read back and compared",
                count(self.members.len(), "variant")
            ));
        }
        for member in &self.members {
            let number = self.sweep.variants[member.variant].number;
            for line in member.session.measurements.sentences(member.session.folder.path(), made) {
                self.progress.say(&format!("variant {number}: {line}"));
            }
        }
        if let Some(left) = metrics.first().and_then(steps::left_over) {
            self.progress.say(&left);
        }
        self.progress.say(&match made == steps {
            true => format!("complete: {} of {}", count(steps, "step"), count(self.members.len(), "variant")),
            false => steps::interrupted(made, steps),
        });
    }
}

/// Metrics of all variants as those of one: the samples of all, and means of numbers; their loss only if it is `one_loss`.
fn together(all: &[Metrics], one_loss: bool) -> Metrics {
    let mut joined = Metrics::default();
    let names = all.iter().flat_map(|m| &m.0).map(|(name, _)| name);
    let mut seen = std::collections::BTreeSet::new();
    let shown = |name: &str| one_loss || !matches!(name, "loss" | "update_loss");
    for name in names.filter(|name| shown(name) && seen.insert(name.as_str())) {
        let (mut samples, mut numbers) = (Vec::new(), Vec::new());
        for metric in all.iter().filter_map(|m| m.get(name)) {
            match metric {
                Metric::Number(x) => numbers.push(*x),
                Metric::PerSample(xs) => samples.extend(xs),
                Metric::Texts(_) => {}
            }
        }
        if !samples.is_empty() {
            joined.per_sample(name, samples);
        } else if !numbers.is_empty() {
            joined.number(name, numbers.iter().sum::<f64>() / numbers.len() as f64);
        }
    }
    joined
}
