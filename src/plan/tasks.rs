//! Forwards and backwards as one set of tasks: the gradient is planned and overlapped like any other work.

use super::{Gradient, Phase, Place, PlannedTask, Task, TaskId, ahead::has_effects};
use crate::graph::{Graph, Tap};

/// The forward of node `i` is task `i`; the backwards follow, the last node first.
pub(super) fn tasks(graph: &Graph, gradient: &Gradient, ahead: &[bool]) -> Vec<PlannedTask> {
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
