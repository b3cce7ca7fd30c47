//! Where a resumed run continues, and what has changed since. Nothing here writes to disk.

use std::collections::{BTreeMap, BTreeSet};

use prefgraph_nn::Adapter;
use prefgraph_ops::{InputSpec, Operator, PortType, Restart, Restated, guard, operators::measure::Measure};

use super::{Failure, interrupt, measured::of_other_pairs, progress::Counter, say::say};
use crate::{
    checkpoint::Checkpoint,
    folder::{Accepted, Command, RunFolder},
    graph::{Endpoint, Graph, Tap},
    plan::Plan,
    registry::Registry,
    run::restored,
    sources::{Comparison, Survey},
    spec::{Change, RunSettings, diff, nodes},
};

/// Where a run starts.
pub(super) enum Found {
    /// At the beginning: the folder holds no run.
    Nothing,
    /// At a checkpoint, with changes that were accepted.
    At(Resumed),
    /// Interrupted while the data was being compared.
    Interrupted,
}

/// What a run goes on from.
pub(super) struct Resumed {
    pub checkpoint: Box<Checkpoint>,
    pub accepted: Option<Accepted>,
    /// Are other pairs measured than before?
    pub other_pairs: bool,
}

/// What a resumed run is compared with.
pub(super) struct Resuming<'a> {
    pub folder: &'a RunFolder,
    pub graph: &'a Graph,
    pub plan: &'a Plan,
    /// The same as a flat file.
    pub resolved: &'a str,
    /// Those of the whole run.
    pub steps: u64,
    pub registry: &'a Registry,
    /// Settings and accepted changes of earlier command lines.
    pub command: &'a Command,
    /// Was `--accept-changes` given?
    pub accept: bool,
}

/// Changes, by how much they matter: lines of text.
#[derive(Default)]
pub(super) struct Changes {
    /// No effect on what is trained.
    pub free: Vec<String>,
    /// A consequence of the number of steps: shown, and not asked about.
    pub follow: Vec<String>,
    /// To be accepted.
    pub grave: Vec<String>,
    /// Their effects, in words.
    pub effects: Vec<String>,
    /// What changes values that nodes compute, whether these are trained on or not: a setting, or a sentence that begins with a node.
    pub touched: BTreeSet<String>,
}

impl Resuming<'_> {
    /// The newest intact checkpoint, if the changes since are acceptable.
    pub fn find(&self, survey: &mut Survey) -> Result<Found, Failure> {
        let (found, notes) = Checkpoint::newest(&self.folder.checkpoints())
            .map_err(|e| Failure::new(format!("{e}\nnothing was changed; {NEW_RUN}")))?;
        for note in notes {
            say!("warning: {note}");
        }
        let Some(mut found) = found else { return self.nothing() };
        let comparison = match &found.sources {
            Some(old) => self.compare(old, survey),
            None => {
                say!(
                    "note: the checkpoint was written by a version that recorded neither data nor weights; they are not compared"
                );
                Some(Comparison::default())
            }
        };
        let Some(comparison) = comparison else { return Ok(Found::Interrupted) };
        self.note_graph(&found)?;
        let changes = self.changes(&found, &comparison)?;
        let other_pairs = begin_anew(&mut found, self.graph, &changes.touched)?;
        if !changes.grave.is_empty()
            && let Err(e) = restored(self.graph, self.plan, &found.cells)
        {
            return Err(Failure::new(format!(
                "the checkpoint of step {} was trained with something else:\n{}\nwith that it cannot go on, accepted or not: {e}\nnothing was changed; {NEW_RUN}",
                found.step,
                changes.grave.join("\n"),
            )));
        }
        let accepted = self.judge(found.step, changes)?;
        Ok(Found::At(Resumed { checkpoint: Box::new(found), accepted, other_pairs }))
    }

    /// Without a checkpoint a run starts at step 0, unless that would overwrite one.
    fn nothing(&self) -> Result<Found, Failure> {
        let remains = self.folder.remains().map_err(Failure::new)?;
        let path = self.folder.path().display();
        if remains.is_empty() {
            say!("note: `{path}` holds no run yet; starting at step 0");
            return Ok(Found::Nothing);
        }
        if remains.iter().any(|name| name == "sweep.json") {
            return Err(Failure::new(format!(
                "`{path}` holds a sweep: `graph-run sweep GRAPH --resume --out {path}` continues it, and `--out {path}/VARIANT` one variant alone"
            )));
        }
        Err(Failure::new(format!(
            "`{path}` holds a run ({}) but no checkpoint; starting at step 0 would overwrite it\nnothing was changed; put its \
             `checkpoints` back, or use --out to start a new run elsewhere",
            remains.join(", ")
        )))
    }

    fn compare(&self, old: &crate::sources::Sources, survey: &mut Survey) -> Option<Comparison> {
        let mut counter: Option<Counter> = None;
        let comparison = survey.compare(old, &mut |done, all| {
            counter.get_or_insert_with(|| Counter::new("comparing data with the checkpoint", all)).at(done);
            !interrupt::interrupted()
        });
        if let Some(counter) = counter {
            counter.end();
        }
        comparison
    }

    /// Mention a third graph: the run was resumed with it and killed before the next checkpoint.
    fn note_graph(&self, found: &Checkpoint) -> Result<(), Failure> {
        let last = self.folder.graph().map_err(Failure::new)?;
        if last.is_some_and(|last| last != found.graph && last != *self.resolved) {
            say!(
                "note: graph.ron differs from the graph of the checkpoint of step {}: the run was resumed with another graph \
                 after it, and those steps are lost",
                found.step
            );
        }
        Ok(())
    }

    /// What is not as the checkpoint records it.
    pub fn changes(&self, found: &Checkpoint, comparison: &Comparison) -> Result<Changes, Failure> {
        let mut all = Changes::default();
        let restated = self.restated(found);
        let explained = |change: &Change| {
            restated.iter().find(|(node, what)| {
                what.settings.iter().any(|setting| format!("{node}.{setting}") == change.what)
            })
        };
        let idle = self.idle();
        for change in diff(&found.graph, self.resolved)? {
            let line = format!("  {change}");
            if comparison.same.contains(&change.what) {
                all.free.push(format!("{line} (moved: same contents)"));
            } else if self.trains_nothing(&idle, &change) {
                if !self.changes_nothing(&change) {
                    all.touched.insert(change.what.clone());
                }
                all.free.push(line);
            } else if explained(&change).is_some_and(|(_, what)| what.follows) {
                all.follow.push(line);
            } else {
                all.touched.insert(change.what.clone());
                all.grave.push(line);
            }
        }
        for change in &comparison.changes {
            // Data of nodes that train nothing, such as held-out pairs.
            all.touched.insert(node_of(change).to_owned());
            let list = if idle.contains(node_of(change)) { &mut all.free } else { &mut all.grave };
            list.push(format!("  {change}"));
        }
        // What has only moved has no effect.
        let moved = |(node, what): &(String, Restated)| {
            let mut named = what.settings.iter().map(|setting| format!("{node}.{setting}"));
            !what.settings.is_empty() && named.all(|name| comparison.same.contains(&name))
        };
        all.effects = restated
            .into_iter()
            .filter(|one| !moved(one))
            .map(|(node, what)| format!("  {node}: {}", what.effect))
            .collect();
        Ok(all)
    }

    /// Report the changes; returns those that were accepted.
    pub fn judge(&self, step: u64, changes: Changes) -> Result<Option<Accepted>, Failure> {
        let Changes { free, follow, grave, effects, touched: _ } = changes;
        if !free.is_empty() {
            say!("changed since the checkpoint, without effect on what is trained:\n{}", free.join("\n"));
        }
        if !follow.is_empty() {
            say!("changed since the checkpoint, following the number of steps:\n{}", follow.join("\n"));
        }
        let shown: Vec<String> = grave.iter().map(|line| line.trim().to_owned()).collect();
        let accepted = (!shown.is_empty()).then_some(Accepted { step, changes: shown });
        let before = accepted.is_some() && accepted == self.command.accepted;
        let effects = effects.join("\n");
        if !grave.is_empty() && !self.accept && !before {
            let mut list = grave.join("\n");
            if !effects.is_empty() {
                list += &format!("\nas a result\n{effects}");
            }
            return Err(Failure::new(format!(
                "the checkpoint of step {step} was trained with something else:\n{list}\nnothing was changed; --accept-changes \
                 continues with the changes, {NEW_RUN}"
            )));
        }
        if !grave.is_empty() {
            let when = if before { "accepted before" } else { "accepted" };
            say!("warning: changed since the checkpoint, and {when}:\n{}", grave.join("\n"));
        }
        if !effects.is_empty() {
            say!("{effects}");
        }
        Ok(accepted)
    }

    /// What operators say about their old settings.
    fn restated(&self, found: &Checkpoint) -> Vec<(String, Restated)> {
        let graph = self.graph;
        let mut all = Vec::new();
        for (id, op, settings) in nodes(&found.graph) {
            let Ok(node) = graph.find(&id) else { continue };
            let node = &graph[node];
            let Some(entry) = self.registry.get(&op).filter(|_| node.op.name() == op) else { continue };
            let Some(old) = entry.json(&settings) else { continue };
            let mut cells = BTreeMap::new();
            for (input, wires) in node.inputs.iter().zip(&node.wires) {
                if let [Endpoint { tap: Tap::Value, .. }] = wires[..]
                    && let Some(state) = found.cells.get(&graph.path(wires[0]))
                {
                    cells.insert(input.name.to_owned(), state);
                }
            }
            let restart = Restart { step: found.step, steps: self.steps, cells };
            // A courtesy: a panic here must not stop the run.
            let said = guard::catch(|| node.op.restated(&old, &restart)).ok().flatten();
            all.extend(said.map(|restated| (id, restated)));
        }
        all
    }

    /// Nodes that do not influence the carried state.
    fn idle(&self) -> BTreeSet<&str> {
        let graph = self.graph;
        let counts = graph.shapes_state();
        graph.nodes().filter(|(id, _)| !counts[id.index()]).map(|(_, node)| node.id.as_str()).collect()
    }

    /// Do two graphs train the same, bit for bit, for as many steps?
    pub fn is_one_run(&self, old: &str, new: &str) -> Result<bool, Failure> {
        let idle = self.idle();
        let same = |change: &Change| change.what != "run.steps" && self.trains_nothing(&idle, change);
        Ok(old == new || diff(old, new)?.iter().all(same))
    }

    /// Has a change no effect on what is trained, whatever its values? `idle` nodes train nothing.
    fn trains_nothing(&self, idle: &BTreeSet<&str>, change: &Change) -> bool {
        idle.contains(node_of(&change.what)) || self.changes_nothing(change)
    }

    /// Does every node compute what it computed before?
    fn changes_nothing(&self, change: &Change) -> bool {
        change.harmless || self.is_free(change) || self.is_new_default(change)
    }

    /// A setting that changes no bit of what its operator computes.
    fn is_free(&self, change: &Change) -> bool {
        let Some((node, setting)) = change.what.split_once('.') else { return false };
        let Ok(node) = self.graph.find(node) else { return false };
        let entry = self.registry.get(self.graph[node].op.name());
        entry.is_some_and(|entry| entry.free_settings.contains(&setting))
    }

    /// A setting that older versions lacked, at its default.
    fn is_new_default(&self, change: &Change) -> bool {
        let (None, Some(new), Some((node, setting))) =
            (&change.old, &change.new, change.what.split_once('.'))
        else {
            return false;
        };
        if change.what == "run.device" {
            return RunSettings::default().device == new.trim_matches('"');
        }
        let graph = self.graph;
        let Ok(node) = graph.find(node) else { return false };
        let entry = self.registry.get(graph[node].op.name());
        entry.and_then(|entry| entry.setting(setting)).is_some_and(|known| known.default == *new)
    }
}

/// Measurements of which anything but the adapter has changed begin anew: half of their pairs may have been measured already, and what was
/// best was best among others. Are there any?
///
/// # Errors
/// If what the checkpoint remembers of them is of no use.
pub(super) fn begin_anew(
    found: &mut Checkpoint,
    graph: &Graph,
    touched: &BTreeSet<String>,
) -> Result<bool, Failure> {
    let is_adapter = |input: &InputSpec| input.ty == PortType::of::<Adapter>();
    let nodes: BTreeSet<&str> = touched.iter().map(|change| node_of(change)).collect();
    let mut others = false;
    for (_, node) in graph.nodes().filter(|(_, node)| node.op.name() == Measure::NAME) {
        let read = node.inputs.iter().zip(&node.wires).filter(|(input, _)| !is_adapter(input));
        let read = read.flat_map(|(_, wires)| wires).map(|wire| wire.node);
        let before = graph.behind(read, |input| !is_adapter(input));
        // Of its own settings, how often it measures and what it writes says nothing about the pairs.
        let rewired = touched.iter().any(|change| change.starts_with(&format!("{}.in.", node.id)));
        if rewired || before.iter().any(|at| nodes.contains(graph[*at].id.as_str())) {
            others = true;
            if let Some(kept) = found.kept.get_mut(&node.id) {
                kept.text = of_other_pairs(&node.id, &kept.text)?;
            }
        }
    }
    Ok(others)
}

pub(super) const NEW_RUN: &str = "--out starts a new run elsewhere";

/// The node of a setting, or of a sentence that starts with one.
fn node_of(change: &str) -> &str {
    change.split_once('.').map_or(change, |(node, _)| node)
}
