//! Which nodes run in a step: those whose outputs are needed.
//!
//! Losses, what is carried and what is kept are wanted at every step. A node that nobody reads, e.g. one that has pictures
//! written, says itself at which steps it is due. All else follows: what only pictures read is computed only where
//! pictures are drawn.

use prefgraph_ops::guard;

use crate::graph::{Endpoint, Graph};

/// By node: does it run at `step`?
pub(crate) fn due(graph: &Graph, step: u64, kept: impl IntoIterator<Item = Endpoint>) -> Vec<bool> {
    let mut wanted = vec![false; graph.len()];
    let mut read = vec![false; graph.len()];
    let carried = graph.carries().iter().flat_map(|c| [c.cell, c.next]);
    for at in carried.chain(graph.losses().iter().copied()).chain(kept) {
        wanted[at.node.index()] = true;
    }
    let nodes: Vec<_> = graph.nodes().collect();
    // A node stands behind all that it reads. What lies on the way to the loss is wanted by it, so that no gradient
    // misses a forward.
    for (id, node) in nodes.into_iter().rev() {
        let id = id.index();
        // An operator that panics here is run, and panics where somebody reports it.
        wanted[id] |= !read[id] && guard::catch(|| node.op.due(step)).unwrap_or(true);
        for wire in node.wires.iter().flatten() {
            read[wire.node.index()] = true;
            wanted[wire.node.index()] |= wanted[id];
        }
    }
    wanted
}
