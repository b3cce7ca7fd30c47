//! Lifetimes of values, and the peak of memory.

use std::collections::BTreeMap;

use prefgraph_nn::size;
use prefgraph_ops::Shared;

use super::{Gradient, Phase, PlanOptions, PlannedTask, Slots, Task, TaskId, Variant, lanes::Seconds};
use crate::graph::{Graph, Tap};

/// Predicted memory of a run, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// At the fullest moment of a step, all of the below included.
    pub peak: usize,
    /// The task at whose start that is.
    pub at: Option<TaskId>,
    /// Weights and the like: held from the first run of their node on.
    pub resident: usize,
    /// Values of cells.
    pub cells: usize,
    /// Values of later steps, made ahead.
    pub ahead: usize,
    /// What the process holds besides: [`PlanOptions::process`].
    pub process: usize,
}

/// Something that takes memory for a part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    kind: Kind,
    /// By variant.
    bytes: Box<[usize]>,
    /// From the start of this task.
    born: TaskId,
    /// To the end of the last of these.
    uses: Vec<TaskId>,
    /// To the end of the step.
    pinned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The value of an output.
    Value(usize),
    /// The sum of the cotangents of an output.
    Cotangent(usize),
    /// The value of a cell, which lives as long as the run.
    Cell(usize),
    /// What a forward keeps for its backward, a cotangent on its way along a wire, working memory.
    Other,
}

/// All that takes memory in a step.
pub(super) fn items(
    graph: &Graph,
    slots: &Slots,
    variants: &[Variant],
    gradient: &Gradient,
    tasks: &[PlannedTask],
    cells: &[bool],
) -> Vec<Item> {
    let mut backward: Vec<Option<TaskId>> = vec![None; graph.len()];
    for (id, planned) in tasks.iter().enumerate().skip(graph.len()) {
        backward[planned.task.node().index()] = Some(id);
    }
    let mut pinned = vec![false; slots.len()];
    for endpoint in graph.carries().iter().map(|c| c.next).chain(graph.loss()) {
        pinned[slots.at(endpoint)] = true;
    }
    let mut items = Vec::with_capacity(2 * tasks.len());
    for (id, node) in graph.nodes() {
        // The backward that calls the operator holds what the operator read and gave.
        let holder = backward[id.index()].filter(|_| gradient.runs_operator(id));
        let effects = super::ahead::has_effects(node);
        let edges = graph.edges_from(id);
        for (port, slot) in slots.all(id).enumerate() {
            let bytes =
                |_: usize| variants.iter().map(|v| v.outputs[id.index()][port].bytes()).collect::<Box<[_]>>();
            let readers = |tap| edges.iter().filter(move |(_, _, e)| e.port == port && e.tap == tap);
            let mut uses: Vec<TaskId> = std::iter::once(id.index()).chain(holder).collect();
            for (_, target, _) in readers(Tap::Value) {
                uses.push(target.index());
                uses.extend(backward[target.index()].filter(|_| gradient.runs_operator(*target)));
            }
            let kind = if cells[id.index()] { Kind::Cell(slot) } else { Kind::Value(slot) };
            items.push(Item {
                kind,
                bytes: bytes(0),
                born: id.index(),
                uses,
                pinned: pinned[slot] || effects,
            });

            let Some(own) = backward[id.index()] else { continue };
            for (_, target, _) in readers(Tap::Value).filter(|(index, ..)| gradient.along(*index)) {
                let born = backward[target.index()].expect("a cotangent comes from a backward");
                items.push(Item { kind: Kind::Other, bytes: bytes(0), born, uses: vec![own], pinned: false });
            }
            if gradient.computes(slot) {
                let readers = readers(Tap::Cotangent).map(|(_, target, _)| target.index());
                let uses = std::iter::once(own).chain(readers).collect();
                items.push(Item {
                    kind: Kind::Cotangent(slot),
                    bytes: bytes(0),
                    born: own,
                    uses,
                    pinned: false,
                });
            }
        }
        let of = |f: fn(&prefgraph_ops::Cost) -> usize| -> Box<[usize]> {
            variants.iter().map(|v| f(&v.costs[id.index()])).collect()
        };
        let saved = of(|c| c.saved_bytes);
        let (forward, back) =
            (of(|c| c.scratch_bytes), of(|c| c.scratch_bytes.max(c.backward_scratch_bytes)));
        let uses = vec![holder.unwrap_or(id.index())];
        items.push(Item { kind: Kind::Other, bytes: saved, born: id.index(), uses, pinned: false });
        for (task, scratch) in std::iter::once((id.index(), forward)).chain(holder.map(|h| (h, back))) {
            items.push(Item {
                kind: Kind::Other,
                bytes: scratch,
                born: task,
                uses: vec![task],
                pinned: false,
            });
        }
    }
    items.retain(|item| !matches!(item.kind, Kind::Other) || item.bytes.iter().any(|&b| b > 0));
    items
}

fn end(task: &PlannedTask) -> f64 {
    task.start + task.seconds
}

/// Of the uses of an item that are in its own step, the one that is planned to finish last.
fn last_use(item: &Item, tasks: &[PlannedTask]) -> TaskId {
    // What runs ahead finished in a step before: with any use in this step, those decide.
    let here = |id: &&TaskId| tasks[**id].phase != Phase::Ahead;
    let last =
        |uses: &mut dyn Iterator<Item = &TaskId>| uses.max_by_key(|&&id| Seconds(end(&tasks[id]))).copied();
    last(&mut item.uses.iter().filter(here)).or_else(|| last(&mut item.uses.iter())).unwrap_or(item.born)
}

/// See `Plan::freed_after`.
pub(super) fn freed_after(
    items: &[Item],
    tasks: &[PlannedTask],
    slot: usize,
    cotangent: bool,
) -> Option<TaskId> {
    let kind = if cotangent { Kind::Cotangent(slot) } else { Kind::Value(slot) };
    items.iter().find(|i| i.kind == kind && !i.pinned).map(|item| last_use(item, tasks))
}

/// By output: the task after which its value is freed, for all at once.
pub(super) fn all_freed(items: &[Item], tasks: &[PlannedTask], outputs: usize) -> Vec<Option<TaskId>> {
    let mut freed = vec![None; outputs];
    for item in items.iter().filter(|i| !i.pinned) {
        if let Kind::Value(slot) = item.kind {
            freed[slot] = Some(last_use(item, tasks));
        }
    }
    freed
}

/// Bytes of weights and the like: each node's own, and what values hold for those that read them, once for each value.
pub(super) fn resident(graph: &Graph, slots: &Slots, variant: &Variant) -> usize {
    let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
    for (id, node) in graph.nodes() {
        let Some(Shared { input, bytes }) = variant.costs[id.index()].shared else { continue };
        for &wire in node.wires.get(input).into_iter().flatten() {
            let held = shared.entry(slots.at(wire)).or_default();
            *held = bytes.max(*held);
        }
    }
    size::sum(variant.costs.iter().map(|c| c.resident_bytes).chain(shared.into_values()))
}

/// Play a step through, for every variant, and keep the fullest.
pub(super) fn predict(
    items: &[Item],
    tasks: &[PlannedTask],
    resident: &[usize],
    options: &PlanOptions,
) -> Memory {
    let one = |variant: usize| predict_one(items, variant, tasks, resident[variant], options);
    (0..resident.len()).map(one).rev().max_by_key(|m| m.peak).unwrap_or_default()
}

fn predict_one(
    items: &[Item],
    variant: usize,
    tasks: &[PlannedTask],
    resident: usize,
    options: &PlanOptions,
) -> Memory {
    let ahead = |id: TaskId| options.ahead > 0 && tasks[id].phase == Phase::Ahead;
    let finish = tasks.iter().map(end).fold(0.0, f64::max);
    let mut memory = Memory { resident, process: options.process, ..Memory::default() };
    let mut grown = vec![0usize; tasks.len()];
    let mut at_start = 0usize;
    // (time, freed bytes), beside what each start adds.
    let mut frees: Vec<(Seconds, usize)> = Vec::with_capacity(items.len());
    for item in items {
        let bytes = item.bytes[variant];
        let last = last_use(item, tasks);
        if let Kind::Cell(_) = item.kind {
            memory.cells = memory.cells.saturating_add(bytes);
            continue;
        }
        if ahead(item.born) && (item.pinned || !ahead(last)) {
            // Made in a step before, and once more for every step that is ahead.
            memory.ahead = memory.ahead.saturating_add(options.ahead.saturating_mul(bytes));
            at_start = at_start.saturating_add(bytes);
        } else {
            grown[item.born] = grown[item.born].saturating_add(bytes);
        }
        let until = if item.pinned { finish } else { end(&tasks[last]) };
        frees.push((Seconds(until), bytes));
    }
    frees.sort_unstable();
    let mut order: Vec<TaskId> = (0..tasks.len()).collect();
    order.sort_unstable_by_key(|&id| (Seconds(tasks[id].start), id));

    let mut frees = frees.into_iter().peekable();
    // Sums that have stopped at the largest number stay far above any memory.
    let mut alive = size::sum([options.process, resident, memory.cells, memory.ahead, at_start]);
    memory.peak = alive;
    for id in order {
        while let Some((_, bytes)) = frees.next_if(|(time, _)| time.0 <= tasks[id].start) {
            alive = alive.saturating_sub(bytes);
        }
        alive = alive.saturating_add(grown[id]);
        if alive > memory.peak {
            (memory.peak, memory.at) = (alive, Some(id));
        }
    }
    memory
}

/// The node whose task it is, as people read it.
pub(super) fn task_name(graph: &Graph, task: Task) -> String {
    let id = &graph[task.node()].id;
    match task {
        Task::Forward(_) => id.clone(),
        Task::Backward(_) => format!("grad {id}"),
    }
}
