//! Which nodes may run before their step: those that no cell reaches, that read no cotangent and have no effect.
//!
//! Data, encoding, noise and the whole reference pass follow from this one rule: what they compute does not depend
//! on what the steps before learn.

use prefgraph_ops::{PortType, ports::Effects};

use crate::graph::{Graph, Node, Tap};

/// Does the node ask for something to be written?
pub(super) fn has_effects(node: &Node) -> bool {
    let effects = PortType::of::<Effects>();
    node.outputs.iter().any(|o| o.ty.fits(&effects))
}

/// By node.
pub(super) fn derive(graph: &Graph, cells: &[bool]) -> Vec<bool> {
    let mut ahead: Vec<bool> = Vec::with_capacity(graph.len());
    for (id, node) in graph.nodes() {
        let mut wires = node.wires.iter().flatten();
        let reached = wires.any(|w| w.tap == Tap::Cotangent || !ahead[w.node.index()]);
        ahead.push(!reached && !cells[id.index()] && !has_effects(node));
    }
    ahead
}
