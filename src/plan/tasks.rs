//! Forwards and backwards as one set of tasks: the gradient is planned and overlapped like any other work.
//!
//! Parts of a graph that do not depend on each other take turns, or else all their forwards, which are the most urgent, would come
//! before the first backward, and each of them holds what its backward needs.

use std::collections::BTreeMap;

use super::{Gradient, Phase, Place, PlannedTask, Task, TaskId, ahead::has_effects};
use crate::graph::{Graph, Tap};

/// The forward of node `i` is task `i`; the backwards follow, the last node first. At most so many turns are `abreast`.
pub(super) fn tasks(graph: &Graph, gradient: &Gradient, ahead: &[bool], abreast: usize) -> Vec<PlannedTask> {
    let turns = turns(graph, ahead, abreast);
    let mut backward: Vec<Option<TaskId>> = vec![None; graph.len()];
    let mut all: Vec<Task> = graph.nodes().map(|(id, _)| Task::Forward(id)).collect();
    for (id, _) in graph.nodes().filter(|(id, _)| gradient.reaches(*id)).collect::<Vec<_>>().into_iter().rev()
    {
        backward[id.index()] = Some(all.len());
        all.push(Task::Backward(id));
    }

    // By node: does it depend on a cotangent?
    let mut updates = vec![false; graph.len()];
    for (id, node) in graph.nodes() {
        updates[id.index()] =
            node.wires.iter().flatten().any(|w| w.tap == Tap::Cotangent || updates[w.node.index()]);
    }
    let mut carries = vec![false; graph.len()];
    graph.carries().iter().for_each(|carry| carries[carry.next.node.index()] = true);
    let mut tasks: Vec<PlannedTask> = Vec::with_capacity(all.len());
    for task in all {
        let node = task.node();
        let backward_of =
            |node: crate::NodeId| backward[node.index()].expect("a cotangent that is read has a backward");
        let mut after: Vec<TaskId> = match task {
            Task::Forward(_) => graph[node]
                .wires
                .iter()
                .flatten()
                .map(|from| match from.tap {
                    Tap::Value => from.node.index(),
                    Tap::Cotangent => backward_of(from.node),
                })
                .collect(),
            Task::Backward(_) => {
                let edges = graph.edges_from(node).into_iter().filter(|(index, ..)| gradient.along(*index));
                let readers = edges.map(|(_, target, _)| backward_of(target));
                std::iter::once(node.index()).chain(readers).collect()
            }
        };
        if let Task::Forward(node) = task {
            after.extend(turns.get(&node.index()).into_iter().flatten());
        }
        after.sort_unstable();
        after.dedup();
        let phase = match task {
            Task::Backward(_) => Phase::Backward,
            Task::Forward(_) if ahead[node.index()] => Phase::Ahead,
            Task::Forward(_) if has_effects(&graph[node]) => Phase::Effects,
            Task::Forward(_) if updates[node.index()] => Phase::Update,
            Task::Forward(_) => Phase::Forward,
        };
        tasks.push(PlannedTask {
            task,
            phase,
            place: Place::Cpu,
            carries: matches!(task, Task::Forward(node) if carries[node.index()]),
            after,
            before: Vec::new(),
            seconds: 0.0,
            flops: 0.0,
            urgency: 0.0,
            lane: 0,
            start: 0.0,
            end: 0.0,
        });
    }
    for id in 0..tasks.len() {
        for before in std::mem::take(&mut tasks[id].after) {
            tasks[before].before.push(id);
            tasks[id].after.push(before);
        }
    }
    tasks
}

/// The forwards that begin a turn, by node, and what they wait for: that an earlier turn has carried what it learned, and holds
/// nothing for its backward any more. What is carried is needed in every step, so nobody waits for what is not due.
fn turns(graph: &Graph, ahead: &[bool], abreast: usize) -> BTreeMap<TaskId, Vec<TaskId>> {
    let mut ends: BTreeMap<u32, Vec<TaskId>> = BTreeMap::new();
    for carry in graph.carries() {
        let node = carry.next.node;
        match graph[node].turn {
            0 => {}
            turn => ends.entry(turn).or_default().push(node.index()),
        }
    }
    let order: Vec<u32> = ends.keys().copied().collect();
    let mut waits = BTreeMap::new();
    for (id, node) in graph.nodes().filter(|(id, _)| !ahead[id.index()]) {
        // A node of a turn that carries nothing goes with the turn before.
        let place = order.partition_point(|turn| *turn <= node.turn);
        let begins = node.wires.iter().flatten().all(|from| graph[from.node].turn != node.turn);
        if node.turn > 0 && begins && place > abreast {
            waits.insert(id.index(), ends[&order[place - 1 - abreast]].clone());
        }
    }
    waits
}
