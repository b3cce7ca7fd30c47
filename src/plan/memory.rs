//! Lifetimes of values, and the peak of memory.

use std::collections::BTreeMap;

use prefgraph_nn::size;
use prefgraph_ops::Shared;

use super::{
    Gradient, Phase, Place, PlanOptions, PlannedTask, Slots, Task, TaskId, Variant, lanes::Seconds, place,
};
use crate::graph::{Graph, Tap};

/// Predicted memory of a run at one place, in bytes.
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
    /// What queues of a GPU hold besides the values of passes.
    pub queues: usize,
    /// Values of later steps, made ahead.
    pub ahead: usize,
    /// What the process holds besides: [`PlanOptions::process`]; on a GPU what its driver does.
    pub process: usize,
}

/// Something that takes memory for a part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    kind: Kind,
    place: Place,
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
    Cell,
    /// What a forward keeps for its backward, a cotangent on its way along a wire, working memory.
    Other,
    /// A queue, lent for a while.
    Queue { urgent: bool },
}

/// All that takes memory in a step.
pub(super) fn items(
    graph: &Graph,
    slots: &Slots,
    variants: &[Variant],
    gradient: &Gradient,
    tasks: &[PlannedTask],
    cells: &[bool],
    networks: Place,
) -> Vec<Item> {
    let mut backward: Vec<Option<TaskId>> = vec![None; graph.len()];
    for (id, planned) in tasks.iter().enumerate().skip(graph.len()) {
        backward[planned.task.node().index()] = Some(id);
    }
    let mut pinned = vec![false; slots.len()];
    for endpoint in graph.carries().iter().map(|c| c.next).chain(graph.losses().iter().copied()) {
        pinned[slots.at(endpoint)] = true;
    }
    let mut items = Vec::with_capacity(2 * tasks.len());
    for (id, node) in graph.nodes() {
        // The backward that calls the operator holds what the operator read and gave.
        let holder = backward[id.index()].filter(|_| gradient.runs_operator(id));
        let effects = super::ahead::has_effects(node);
        let edges = graph.edges_from(id);
        for (port, slot) in slots.all(id).enumerate() {
            let bytes = || variants.iter().map(|v| v.outputs[id.index()][port].bytes()).collect::<Box<[_]>>();
            let readers = |tap| edges.iter().filter(move |(_, _, e)| e.port == port && e.tap == tap);
            let mut uses: Vec<TaskId> = std::iter::once(id.index()).chain(holder).collect();
            for (_, target, _) in readers(Tap::Value) {
                uses.push(target.index());
                uses.extend(backward[target.index()].filter(|_| gradient.runs_operator(*target)));
            }
            let kind = if cells[id.index()] { Kind::Cell } else { Kind::Value(slot) };
            let place = place::of_value(&variants[0].outputs[id.index()][port], networks);
            items.push(Item {
                kind,
                place,
                bytes: bytes(),
                born: id.index(),
                uses,
                pinned: pinned[slot] || effects,
            });

            let Some(own) = backward[id.index()] else { continue };
            for (_, target, _) in readers(Tap::Value).filter(|(index, ..)| gradient.along(*index)) {
                let born = backward[target.index()].expect("a cotangent comes from a backward");
                let uses = vec![own];
                items.push(Item { kind: Kind::Other, place, bytes: bytes(), born, uses, pinned: false });
            }
            if gradient.computes(slot) {
                let readers = readers(Tap::Cotangent).map(|(_, target, _)| target.index());
                let uses = std::iter::once(own).chain(readers).collect();
                items.push(Item {
                    kind: Kind::Cotangent(slot),
                    place,
                    bytes: bytes(),
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
        let place = variants[0].places[id.index()];
        let mut held = |kind, place, bytes, born, until| {
            items.push(Item { kind, place, bytes, born, uses: vec![until], pinned: false });
        };
        let (born, end) = (id.index(), holder.unwrap_or(id.index()));
        held(Kind::Other, place, saved, born, end);
        let more_of_cells = of(|c| c.cell_bytes);
        if more_of_cells.iter().any(|&bytes| bytes > 0) {
            held(Kind::Cell, place, more_of_cells, born, end);
        }
        let queue = Kind::Queue { urgent: variants[0].costs[id.index()].urgent };
        held(queue, place, of(|c| c.queue_bytes), born, end);
        held(queue, Place::Cpu, of(|c| c.host_bytes), born, end);
        for (task, scratch) in std::iter::once((born, forward)).chain(holder.map(|h| (h, back))) {
            held(Kind::Other, place, scratch, task, task);
        }
    }
    let is_value = |kind| !matches!(kind, Kind::Other | Kind::Queue { .. });
    items.retain(|item| is_value(item.kind) || item.bytes.iter().any(|&b| b > 0));
    items
}

/// Of the uses of an item that are in its own step, the one that is planned to finish last.
fn last_use(item: &Item, tasks: &[PlannedTask]) -> TaskId {
    // What runs ahead finished in a step before: with any use in this step, those decide.
    let here = |id: &&TaskId| tasks[**id].phase != Phase::Ahead;
    let last =
        |uses: &mut dyn Iterator<Item = &TaskId>| uses.max_by_key(|&&id| Seconds(tasks[id].end)).copied();
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

/// Bytes of weights and the like at a place: each node's own, and what values hold for those that read them, once for each
/// value.
pub(super) fn resident(graph: &Graph, slots: &Slots, variant: &Variant, place: Place) -> usize {
    let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
    let mut own = 0usize;
    for (id, node) in graph.nodes().filter(|(id, _)| variant.places[id.index()] == place) {
        let cost = &variant.costs[id.index()];
        own = own.saturating_add(cost.resident_bytes);
        let Some(Shared { input, bytes }) = cost.shared else { continue };
        for &wire in node.wires.get(input).into_iter().flatten() {
            let held = shared.entry(slots.at(wire)).or_default();
            *held = bytes.max(*held);
        }
    }
    size::sum(shared.into_values().chain([own]))
}

/// Play a step through at one place, for every variant, and keep the fullest; `resident` is by variant.
pub(super) fn predict(
    items: &[Item],
    tasks: &[PlannedTask],
    resident: &[usize],
    place: Place,
    options: &PlanOptions,
) -> Memory {
    let there: Vec<&Item> = items.iter().filter(|item| item.place == place).collect();
    let one = |variant: usize| Step { tasks, options, variant }.at(&there, resident[variant], place);
    (0..resident.len()).map(one).rev().max_by_key(|m| m.peak).unwrap_or_default()
}

/// A step of one variant.
struct Step<'a> {
    tasks: &'a [PlannedTask],
    options: &'a PlanOptions,
    variant: usize,
}

/// What a step holds of some items.
#[derive(Default)]
struct Swept {
    peak: usize,
    /// The task at whose start that is.
    at: Option<TaskId>,
    /// Of later steps, made ahead.
    ahead: usize,
}

impl Step<'_> {
    fn at(&self, items: &[&Item], resident: usize, place: Place) -> Memory {
        let process = match (place, &self.options.gpu) {
            (Place::Cpu, _) => self.options.process,
            (Place::Cuda(_), gpu) => gpu.map_or(0, |gpu| gpu.driver),
        };
        let of = |kind: fn(Kind) -> bool| items.iter().copied().filter(move |item| kind(item.kind));
        let cells = of(|kind| kind == Kind::Cell);
        let cells = size::sum(cells.map(|item| item.bytes[self.variant]));
        // Queues are kept for the next pass of their kind, so the most that are ever used at once are always there.
        let queues = size::sum([
            self.sweep(of(|kind| kind == Kind::Queue { urgent: true })).peak,
            self.sweep(of(|kind| kind == Kind::Queue { urgent: false })).peak,
        ]);
        let values = self.sweep(of(|kind| !matches!(kind, Kind::Cell | Kind::Queue { .. })));
        let peak = size::sum([process, resident, cells, queues, values.peak]);
        Memory { peak, at: values.at, resident, cells, queues, ahead: values.ahead, process }
    }

    /// Play the step through with these items.
    fn sweep<'i>(&self, items: impl Iterator<Item = &'i Item>) -> Swept {
        let Self { tasks, options, variant } = *self;
        let ahead = |id: TaskId| options.ahead > 0 && tasks[id].phase == Phase::Ahead;
        let finish = tasks.iter().map(|t| t.end).fold(0.0, f64::max);
        let mut swept = Swept::default();
        let mut grown = vec![0usize; tasks.len()];
        // Of each pass that may run ahead, what it takes while it runs.
        let mut alone = vec![0usize; tasks.len()];
        let mut at_start = 0usize;
        // (time, freed bytes), beside what each start adds.
        let mut frees: Vec<(Seconds, usize)> = Vec::new();
        for item in items {
            let bytes = item.bytes[variant];
            let last = last_use(item, tasks);
            if ahead(item.born) && (item.pinned || !ahead(last)) {
                // Made in a step before, and once more for every step that is ahead.
                swept.ahead = swept.ahead.saturating_add(options.made_ahead().saturating_mul(bytes));
                at_start = at_start.saturating_add(bytes);
            } else {
                grown[item.born] = grown[item.born].saturating_add(bytes);
                // A pass of the step that only data are made of waits for a gradient, and what it reads waits with it.
                let waits = |id: &TaskId| *id != item.born && ahead(*id) && tasks[*id].place != Place::Cpu;
                if ahead(item.born) && item.uses.iter().any(waits) {
                    let more = options.made_ahead() - options.ahead;
                    swept.ahead = swept.ahead.saturating_add(more.saturating_mul(bytes));
                }
                if ahead(item.born) && tasks[item.born].place != Place::Cpu && last == item.born {
                    alone[item.born] = alone[item.born].saturating_add(bytes);
                }
            }
            let until = if item.pinned { finish } else { tasks[last].end };
            frees.push((Seconds(until), bytes));
        }
        frees.sort_unstable();
        // Behind what comes first a pass of a later step may run beside the rest, if the plan has none there.
        let first = tasks.iter().filter(|t| t.comes_first()).map(|t| Seconds(t.end)).max();
        let looks_further = options.made_ahead() > options.ahead && options.lanes > 1;
        let first = first.filter(|_| looks_further);
        let passes: Vec<TaskId> = (0..tasks.len()).filter(|&id| alone[id] > 0).collect();
        let largest = passes.iter().map(|&id| alone[id]).max().unwrap_or(0);
        let beside = |now: f64| {
            let there = passes.iter().filter(|&&id| tasks[id].start <= now && now < tasks[id].end);
            let later = first.is_some_and(|end| end.0 <= now);
            if later { largest.saturating_sub(size::sum(there.map(|&id| alone[id]))) } else { 0 }
        };
        let mut order: Vec<TaskId> = (0..tasks.len()).collect();
        order.sort_unstable_by_key(|&id| (Seconds(tasks[id].start), id));

        let mut frees = frees.into_iter().peekable();
        // Sums that have stopped at the largest number stay far above any memory.
        let mut alive = swept.ahead.saturating_add(at_start);
        swept.peak = alive;
        for id in order {
            while let Some((_, bytes)) = frees.next_if(|(time, _)| time.0 <= tasks[id].start) {
                alive = alive.saturating_sub(bytes);
            }
            alive = alive.saturating_add(grown[id]);
            let held = alive.saturating_add(beside(tasks[id].start));
            if held > swept.peak {
                (swept.peak, swept.at) = (held, Some(id));
            }
        }
        swept
    }
}

/// The node whose task it is, as people read it.
pub(super) fn task_name(graph: &Graph, task: Task) -> String {
    let id = &graph[task.node()].id;
    match task {
        Task::Forward(_) => id.clone(),
        Task::Backward(_) => format!("grad {id}"),
    }
}
