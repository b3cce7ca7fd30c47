//! Which nodes need a backward: those on a path of differentiable operators from a port whose cotangent is read to the
//! loss.

use super::{PlanError, Slots};
use crate::graph::{EdgeIndex, Endpoint, Graph, NodeId, Tap};

/// The part of a graph that reverse mode visits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gradient {
    /// By node: for every input, does somebody need its cotangent? `None` where no backward is needed.
    wanted: Vec<Option<Vec<bool>>>,
    /// By wire: does a cotangent travel back along it?
    edges: Vec<bool>,
    /// By output: is its cotangent computed?
    outputs: Vec<bool>,
}

impl Gradient {
    /// Has this node a backward?
    pub fn reaches(&self, node: NodeId) -> bool {
        self.wanted[node.index()].is_some()
    }

    /// For every input of a node, is its cotangent wanted? `None` where the node has no backward.
    pub fn wanted(&self, node: NodeId) -> Option<&[bool]> {
        self.wanted[node.index()].as_deref()
    }

    /// Does the backward call the operator, rather than only sum the cotangents that somebody reads?
    pub fn runs_operator(&self, node: NodeId) -> bool {
        self.wanted(node).is_some_and(|w| w.contains(&true))
    }

    pub(crate) fn computes(&self, slot: usize) -> bool {
        self.outputs[slot]
    }

    /// Does a cotangent travel back along this wire?
    pub fn along(&self, edge: EdgeIndex) -> bool {
        self.edges[edge.index()]
    }
}

struct Search<'a> {
    graph: &'a Graph,
    slots: &'a Slots,
    cells: &'a [bool],
    /// By output: does a differentiable path lead to the loss?
    down: Vec<bool>,
    /// By node: does one of its outputs?
    node_down: Vec<bool>,
}

/// Derive it from the cotangents that are read.
pub(super) fn derive(graph: &Graph, slots: &Slots, cells: &[bool]) -> Result<Gradient, PlanError> {
    let mut gradient = Gradient {
        wanted: vec![None; graph.len()],
        edges: vec![false; graph.wire_count()],
        outputs: vec![false; slots.len()],
    };
    let mut tapped = vec![false; slots.len()];
    let taps: Vec<(NodeId, usize, Endpoint)> = taps(graph).collect();
    if graph.losses().is_empty() {
        return match taps.first() {
            None => Ok(gradient),
            Some(&(node, input, from)) => {
                let message =
                    format!("it reads `{}`, but the graph has no loss to differentiate", graph.path(from));
                Err(PlanError::new(graph, node, message).at_input(graph[node].inputs[input].name))
            }
        };
    }
    for &loss in graph.losses() {
        before_the_gradient(graph, loss)?;
    }

    let mut search =
        Search { graph, slots, cells, down: vec![false; slots.len()], node_down: vec![false; graph.len()] };
    for &loss in graph.losses() {
        search.down[slots.at(loss)] = true;
    }
    for index in (0..graph.len()).rev() {
        search.visit(NodeId::new(index));
    }
    for &(node, input, from) in &taps {
        if !search.down[slots.at(from)] {
            return Err(search.unreached(node, input, from));
        }
        tapped[slots.at(from)] = true;
    }

    // By output: is its cotangent read, or needed to compute one that is?
    let mut needed = vec![false; slots.len()];
    for (id, node) in graph.nodes() {
        let passes = search.passes(id) && search.node_down[id.index()];
        let wanted: Vec<bool> = node
            .wires
            .iter()
            .map(|wires| passes && wires.iter().any(|w| w.tap == Tap::Value && needed[slots.at(*w)]))
            .collect();
        let any = wanted.contains(&true);
        for (slot, output) in slots.all(id).zip(&node.outputs) {
            needed[slot] = output.ty.differentiable && (any || tapped[slot]);
        }
        if any {
            for (index, edge) in graph.edges_into(id) {
                let from = node.wires[edge.input][edge.position];
                gradient.edges[index.index()] =
                    edge.tap == Tap::Value && wanted[edge.input] && needed[slots.at(from)];
            }
        }
        for slot in slots.all(id) {
            gradient.outputs[slot] = needed[slot] && search.down[slot];
        }
        if slots.all(id).any(|slot| gradient.outputs[slot]) {
            gradient.wanted[id.index()] = Some(wanted);
        }
    }
    Ok(gradient)
}

fn taps(graph: &Graph) -> impl Iterator<Item = (NodeId, usize, Endpoint)> {
    graph.nodes().flat_map(|(id, node)| {
        let wires = node.wires.iter().enumerate();
        wires.flat_map(move |(input, wires)| {
            let taps = wires.iter().filter(|w| w.tap == Tap::Cotangent);
            taps.map(move |&from| (id, input, from))
        })
    })
}

/// Nothing that the loss depends on may read a cotangent of it.
fn before_the_gradient(graph: &Graph, loss: Endpoint) -> Result<(), PlanError> {
    let mut before = vec![false; graph.len()];
    before[loss.node.index()] = true;
    for index in (0..=loss.node.index()).rev().filter(|&i| i < graph.len()) {
        let id = NodeId::new(index);
        if !before[index] {
            continue;
        }
        for (input, wires) in graph[id].wires.iter().enumerate() {
            for &from in wires {
                if from.tap == Tap::Cotangent {
                    let message = format!(
                        "it reads `{}`, a derivative of the loss `{}`, and the loss depends on it",
                        graph.path(from),
                        graph.path(loss)
                    );
                    return Err(PlanError::new(graph, id, message).at_input(graph[id].inputs[input].name));
                }
                before[from.node.index()] = true;
            }
        }
    }
    Ok(())
}

impl Search<'_> {
    /// Can a cotangent cross this node? What a cell holds is no function of its inputs after the first step.
    fn passes(&self, node: NodeId) -> bool {
        self.graph[node].op.differentiable() && !self.cells[node.index()]
    }

    fn visit(&mut self, node: NodeId) {
        for (_, target, edge) in self.graph.edges_from(node) {
            let differentiable = self.graph[node].outputs[edge.port].ty.differentiable;
            if edge.tap == Tap::Value
                && differentiable
                && self.passes(target)
                && self.node_down[target.index()]
            {
                self.down[self.slots.of(node, edge.port)] = true;
            }
        }
        self.node_down[node.index()] = self.slots.all(node).any(|slot| self.down[slot]);
    }

    fn unreached(&self, reader: NodeId, input: usize, from: Endpoint) -> PlanError {
        let port = Endpoint { tap: Tap::Value, ..from };
        let losses: Vec<String> = self.graph.losses().iter().map(|l| self.graph.path(*l)).collect();
        let loss = losses.join("`, `");
        let mut message = format!("no gradient reaches `{}`: ", self.graph.path(port));
        let ends = self.ends(from);
        if ends.is_empty() {
            message += &format!("no path leads from it to the loss `{loss}`");
        } else {
            let ends: Vec<String> = ends
                .iter()
                .map(|&n| format!("`{}` ({})", self.graph[n].id, self.graph[n].op.name()))
                .collect();
            message += &format!(
                "its paths to the loss `{loss}` end at {}, which no derivative crosses",
                ends.join(", ")
            );
        }
        PlanError::new(self.graph, reader, message).at_input(self.graph[reader].inputs[input].name)
    }

    /// Where the differentiable paths from a port end; at most three places.
    fn ends(&self, from: Endpoint) -> Vec<NodeId> {
        let mut ends = Vec::new();
        let mut seen = vec![false; self.graph.len()];
        let mut open = vec![(from.node, Some(from.port))];
        while let Some((node, port)) = open.pop() {
            for (_, target, edge) in self.graph.edges_from(node) {
                if edge.tap == Tap::Cotangent || port.is_some_and(|p| p != edge.port) || seen[target.index()]
                {
                    continue;
                }
                seen[target.index()] = true;
                if self.passes(target) {
                    open.push((target, None));
                } else if ends.len() < 3 {
                    ends.push(target);
                }
            }
        }
        ends.sort_unstable();
        ends
    }
}
