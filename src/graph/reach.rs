//! Which nodes the state of a graph depends on.

use super::{Endpoint, Graph, NodeId, Tap};

impl Graph {
    /// By node: does the carried state depend on it? Changing a node on which it does not depend changes pictures and records
    /// at most. In a graph that carries nothing, every node counts.
    pub fn shapes_state(&self) -> Vec<bool> {
        let mut reached = vec![self.carries().is_empty(); self.len()];
        let mut open: Vec<NodeId> = Vec::new();
        let mut reach = |open: &mut Vec<NodeId>, node: NodeId| {
            if !std::mem::replace(&mut reached[node.index()], true) {
                open.push(node);
            }
        };
        for carry in self.carries() {
            reach(&mut open, carry.cell.node);
            reach(&mut open, carry.next.node);
        }
        while let Some(node) = open.pop() {
            for Endpoint { node, tap, .. } in self[node].wires.iter().flatten() {
                reach(&mut open, *node);
                // A derivative depends on all that the loss depends on.
                if *tap == Tap::Cotangent {
                    self.losses().iter().for_each(|loss| reach(&mut open, loss.node));
                }
            }
        }
        reached
    }
}
