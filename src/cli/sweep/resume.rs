//! Where a resumed sweep continues: at the newest checkpoint that all its variants have.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    member::Place,
    variants::{Sweep, Variant},
};
use crate::{
    checkpoint::Checkpoint,
    cli::{
        Failure, interrupt,
        progress::Counter,
        resume::{Changes, Resuming, begin_anew},
        say::say,
    },
    folder::{Accepted, Command, RunFolder},
    registry::Registry,
    sources::{Sources, Survey},
};

/// Where a sweep starts.
pub(super) enum Found {
    /// At the beginning: no variant has made a step.
    Nothing,
    /// At the checkpoints of its variants, with changes that were accepted.
    At(Common, Option<Accepted>),
    /// Interrupted while the data was being compared.
    Interrupted,
}

/// The checkpoints that a sweep goes on from.
pub(super) struct Common {
    /// Of each variant, all of one step.
    pub found: Vec<Checkpoint>,
    /// The newest step of each variant; empty where they are all at this one.
    pub newest: Vec<u64>,
}

/// What a resumed sweep is compared with.
pub(super) struct Resume<'a> {
    pub sweep: &'a Sweep,
    /// The variants that are still trained: their places among all, their folders, and where their nodes are in the graph
    /// of all.
    pub active: &'a [usize],
    pub folders: &'a [RunFolder],
    pub places: &'a [Place],
    pub registry: &'a Registry,
    pub command: &'a Command,
    pub accept: bool,
}

impl Resume<'_> {
    fn variants(&self) -> impl Iterator<Item = &Variant> {
        self.active.iter().map(|at| &self.sweep.variants[*at])
    }

    /// The newest intact checkpoints of one step, if the changes since are acceptable.
    pub fn find(&self, survey: &mut Survey) -> Result<Found, Failure> {
        let Some(mut common) = self.common()? else { return Ok(Found::Nothing) };
        let found = &mut common.found;
        let mut old = Sources::default();
        for (checkpoint, place) in found.iter().zip(self.places) {
            if let Some(sources) = &checkpoint.sources {
                place.add_sources(sources, &mut old);
            }
        }
        let mut counter: Option<Counter> = None;
        let comparison = survey.compare(&old, &mut |done, all| {
            counter.get_or_insert_with(|| Counter::new("comparing data with the checkpoints", all)).at(done);
            !interrupt::interrupted()
        });
        if let Some(counter) = counter {
            counter.end();
        }
        let Some(comparison) = comparison else { return Ok(Found::Interrupted) };
        let mut all = Vec::new();
        for ((variant, folder), (checkpoint, place)) in
            self.variants().zip(self.folders).zip(found.iter_mut().zip(self.places))
        {
            let changes =
                self.resuming(variant, folder).changes(checkpoint, &place.comparison(&comparison))?;
            begin_anew(checkpoint, variant.graph(), &changes.touched)?;
            all.push((variant.number, changes));
        }
        let step = found.first().map_or(0, |checkpoint| checkpoint.step);
        let Some((variant, folder)) = self.variants().zip(self.folders).next() else {
            return Ok(Found::Nothing);
        };
        let accepted = self.resuming(variant, folder).judge(step, merged(all))?;
        Ok(Found::At(common, accepted))
    }

    fn resuming<'b>(&'b self, variant: &'b Variant, folder: &'b RunFolder) -> Resuming<'b> {
        Resuming {
            folder,
            graph: variant.graph(),
            plan: &variant.plan,
            resolved: &variant.loaded.resolved,
            steps: self.sweep.all.run.steps,
            registry: self.registry,
            command: self.command,
            accept: self.accept,
        }
    }

    /// The checkpoints of the newest step of which every variant has an intact one, and the newest step of each variant where they differ; none
    /// if no variant has made a step.
    fn common(&self) -> Result<Option<Common>, Failure> {
        let mut said = BTreeSet::new();
        let mut most = u64::MAX;
        // The newest of each variant, by which it is ahead of the others: its step, and its graph.
        let mut newest_of: Vec<(u64, String)> = Vec::new();
        loop {
            let mut found = Vec::new();
            let mut without = None;
            for (variant, folder) in self.variants().zip(self.folders) {
                let (newest, notes) = Checkpoint::newest_up_to(&folder.checkpoints(), most)
                    .map_err(|e| Failure::new(format!("{}: {e}\nnothing was changed", variant.name())))?;
                for note in notes.into_iter().filter(|note| said.insert(note.clone())) {
                    say!("warning: {}: {note}", variant.name());
                }
                match newest {
                    Some(checkpoint) => found.push(checkpoint),
                    None => without = Some(variant),
                }
            }
            let least = found.iter().map(|checkpoint| checkpoint.step).min().unwrap_or(0);
            let made = found.iter().map(|checkpoint| checkpoint.step).max().unwrap_or(0);
            match without {
                None if made == least => {
                    self.check_ahead(&newest_of, &found)?;
                    let newest = newest_of.into_iter().map(|(step, _)| step).collect();
                    return Ok(Some(Common { found, newest }));
                }
                None => {
                    if most == u64::MAX {
                        newest_of = found.into_iter().map(|c| (c.step, c.graph)).collect();
                    }
                    most = least;
                }
                // Killed while the folders were made.
                Some(_) if made == 0 && most == u64::MAX => return Ok(None),
                Some(variant) => {
                    return Err(Failure::new(format!(
                        "{} has no checkpoint of step {} or before, which others have: it went on alone and has only later ones, or has lost \
                         them\nnothing was changed; put its `checkpoints` back, or use --out to start a new sweep elsewhere",
                        variant.name(),
                        most.min(made)
                    )));
                }
            }
        }
    }

    /// A variant may have a later checkpoint than the others: of the same run, killed between two of them, which makes its steps again with the
    /// same bits; or it went on alone, with other settings, and would lose what it has trained.
    fn check_ahead(&self, newest: &[(u64, String)], found: &[Checkpoint]) -> Result<(), Failure> {
        let step = found.first().map_or(0, |checkpoint| checkpoint.step);
        let Some(most) = newest.iter().map(|(step, _)| *step).max().filter(|most| *most > step) else {
            return Ok(());
        };
        let mut alone = Vec::new();
        for ((variant, folder), ((made, graph), found)) in
            self.variants().zip(self.folders).zip(newest.iter().zip(found))
        {
            if *made == step {
                continue;
            }
            let resuming = self.resuming(variant, folder);
            if !resuming.is_one_run(graph, &variant.loaded.resolved)?
                && !resuming.is_one_run(graph, &found.graph)?
            {
                alone.push(format!("  {}: step {made} in `{}`", variant.name(), folder.path().display()));
            }
        }
        let alone = alone.join("\n");
        let is_complete = step >= self.sweep.all.run.steps;
        if !alone.is_empty() && (is_complete || !self.accept) {
            let way_on = match is_complete {
                true => "the sweep is complete, so there is nothing to go on with; more --steps make more of all variants".to_owned(),
                false => format!("--accept-changes takes them back to step {step}, and what they made since is lost; copies of their folders keep it"),
            };
            return Err(Failure::new(format!(
                "the sweep is at step {step}, and these variants went on without it, or with other settings:\n{alone}\nnothing was changed; {way_on}"
            )));
        }
        if !alone.is_empty() {
            say!(
                "warning: these variants lose what they made after step {step}, which is accepted:\n{alone}"
            );
        }
        let least = newest.iter().map(|(step, _)| *step).min().unwrap_or(step);
        say!(
            "note: the variants have checkpoints of steps {least} to {most}; all of them go on from step {step}"
        );
        Ok(())
    }
}

/// The changes of all variants: each line once, with the variants that it is of where it is not of all.
fn merged(all: Vec<(u32, Changes)>) -> Changes {
    let count = all.len();
    let lines = |of: fn(&Changes) -> &Vec<String>| {
        let mut order: Vec<&String> = Vec::new();
        let mut whose: BTreeMap<&String, Vec<u32>> = BTreeMap::new();
        for (number, changes) in &all {
            for line in of(changes) {
                let whose = whose.entry(line).or_default();
                if whose.is_empty() {
                    order.push(line);
                }
                whose.push(*number);
            }
        }
        let shown = |line: &&String| {
            let whose = &whose[*line];
            let numbers: Vec<String> = whose.iter().map(u32::to_string).collect();
            match whose.len() {
                whose if whose == count => (*line).clone(),
                1 => format!("{line} (variant {})", numbers[0]),
                _ => format!("{line} (variants {})", numbers.join(", ")),
            }
        };
        order.iter().map(shown).collect::<Vec<String>>()
    };
    Changes {
        free: lines(|c| &c.free),
        follow: lines(|c| &c.follow),
        grave: lines(|c| &c.grave),
        effects: lines(|c| &c.effects),
        // Looked at variant by variant.
        touched: BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_variants_have_changed_in_is_said_once() {
        let changes = |grave: &[&str]| Changes {
            grave: grave.iter().map(|line| (*line).to_owned()).collect(),
            ..Changes::default()
        };
        let all =
            merged(vec![(1, changes(&["a", "b"])), (2, changes(&["a"])), (3, changes(&["a", "b", "c"]))]);
        assert_eq!(all.grave, ["a", "b (variants 1, 3)", "c (variant 3)"]);
    }
}
