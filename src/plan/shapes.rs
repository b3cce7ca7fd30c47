//! The shape of every port, for the whole graph, before the first step.

use prefgraph_nn::size;
use prefgraph_ops::{Cost, ErasedShape, OpError, guard};

use super::{Gradient, Place, PlanError, Slots};
use crate::graph::{Endpoint, Graph, NodeId, Tap};

/// One set of shapes that a step may have. There are several where a source gives batches that differ, e.g. in the
/// number of references.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// By node and output.
    pub(super) outputs: Vec<Vec<ErasedShape>>,
    /// By node.
    pub(super) costs: Vec<Cost>,
    /// Where each node works.
    pub(super) places: Vec<Place>,
}

impl Variant {
    /// The shape of a port; of a [`Grad`](prefgraph_ops::Grad) where the cotangent is read.
    pub fn shape(&self, graph: &Graph, at: Endpoint) -> ErasedShape {
        let shape = &self.outputs[at.node.index()][at.port];
        match at.tap {
            Tap::Value => shape.clone(),
            Tap::Cotangent => (graph[at.node].outputs[at.port].ty.grad_shape)(shape),
        }
    }

    /// The shapes of a node's outputs.
    pub fn outputs(&self, node: NodeId) -> &[ErasedShape] {
        &self.outputs[node.index()]
    }

    /// The shapes of a node's inputs, one list an input.
    pub fn inputs(&self, graph: &Graph, node: NodeId) -> Vec<Vec<ErasedShape>> {
        let wires = graph[node].wires.iter();
        wires.map(|wires| wires.iter().map(|&from| self.shape(graph, from)).collect()).collect()
    }

    /// Now that it is known which nodes have a backward: the costs of the others.
    pub(super) fn leave_out_backwards(&mut self, gradient: &Gradient) {
        let alone = |node: &usize| !gradient.runs_operator(NodeId::new(*node));
        for node in (0..self.costs.len()).filter(alone) {
            self.costs[node] = self.costs[node].without_backward();
        }
    }

    fn bytes(&self) -> usize {
        let outputs = self.outputs.iter().flatten().map(ErasedShape::bytes);
        size::sum(outputs.chain(self.costs.iter().map(|c| c.saved_bytes)))
    }
}

/// The variant that holds most bytes; the first of several.
pub(super) fn largest(variants: &[Variant]) -> usize {
    (0..variants.len()).rev().max_by_key(|&v| variants[v].bytes()).unwrap_or(0)
}

/// Bytes of a value that no machine holds. Below it, costs can be computed from a shape without a thought for overflow.
const TOO_LARGE: usize = 1 << 47;

/// Refuse outputs that no machine holds, before anything is computed from their shapes.
fn check_sizes(graph: &Graph, id: NodeId, outputs: &[ErasedShape]) -> Result<(), PlanError> {
    match outputs.iter().zip(&graph[id].outputs).find(|(shape, _)| shape.bytes() >= TOO_LARGE) {
        Some((shape, output)) => {
            let shape = shape.describe();
            let message = format!("its output `{}`, {shape}, is larger than any memory", output.name);
            Err(PlanError::new(graph, id, message))
        }
        None => Ok(()),
    }
}

/// Sets of shapes that a plan looks at; beyond them, planning would take longer than it is worth.
const MOST: usize = 1024;

/// Infer the shapes of all variants. Where several sources give batches that differ, every combination may occur.
pub(super) fn infer(
    graph: &Graph,
    slots: &Slots,
    cells: &[bool],
    networks: Place,
) -> Result<Vec<Variant>, PlanError> {
    let mut counts = Vec::with_capacity(graph.len());
    let mut all = 1usize;
    for (id, node) in graph.nodes() {
        let count = node.op.variants();
        if count == 0 {
            let message = "it has no variant of its output shapes; it must have one";
            return Err(PlanError::new(graph, id, message));
        }
        all = all.saturating_mul(count);
        if all > MOST {
            let message = format!(
                "its batches have {count} shapes, which with those of the sources before it makes {all} combinations, \
                 more than {MOST}: let each source read samples of fewer kinds, e.g. by `reference_counts`"
            );
            return Err(PlanError::new(graph, id, message));
        }
        counts.push(count);
    }
    let variants = (0..all).map(|v| variant(graph, &counts, v, networks)).collect::<Result<Vec<_>, _>>()?;
    check_cells(graph, slots, cells, &variants)?;
    Ok(variants)
}

/// Combination number `index`: every source's own variant is a digit of it, the first source's the lowest.
fn variant(graph: &Graph, counts: &[usize], mut index: usize, networks: Place) -> Result<Variant, PlanError> {
    let mut variant = Variant {
        outputs: Vec::with_capacity(graph.len()),
        costs: Vec::with_capacity(graph.len()),
        places: Vec::with_capacity(graph.len()),
    };
    for (id, node) in graph.nodes() {
        let inputs = variant.inputs(graph, id);
        let count = counts[id.index()];
        let own = index % count;
        index /= count;
        let outputs =
            guarded(|| node.op.shapes(&inputs, own)).map_err(|e| refused(graph, id, &inputs, &e))?;
        if outputs.len() != node.outputs.len() {
            let message =
                format!("it states {} output shapes for {} outputs", outputs.len(), node.outputs.len());
            return Err(PlanError::new(graph, id, OpError::internal(message).to_string()));
        }
        check_sizes(graph, id, &outputs)?;
        let cost = || {
            let on_gpu = if networks == Place::Cpu { None } else { node.op.gpu_cost(&inputs, &outputs) };
            Ok(match on_gpu {
                Some(cost) => (networks, cost),
                None => (Place::Cpu, node.op.cost(&inputs, &outputs)),
            })
        };
        let (place, cost) = guarded(cost).map_err(|e| refused(graph, id, &inputs, &e))?;
        variant.outputs.push(outputs);
        variant.costs.push(cost);
        variant.places.push(place);
    }
    Ok(variant)
}

fn guarded<R>(body: impl FnOnce() -> Result<R, OpError>) -> Result<R, OpError> {
    guard::catch(body).unwrap_or_else(|panic| Err(OpError::new(format!("panicked: {panic}"))))
}

/// What is read at an endpoint: with its role where it is the value.
fn read(graph: &Graph, from: Endpoint, shape: &ErasedShape) -> String {
    match from.tap {
        Tap::Value => graph[from.node].outputs[from.port].ty.describe(shape),
        Tap::Cotangent => shape.describe(),
    }
}

/// What the operator said, and what it was given: names on both sides.
fn refused(graph: &Graph, id: NodeId, inputs: &[Vec<ErasedShape>], error: &OpError) -> PlanError {
    let node = &graph[id];
    let mut given = Vec::new();
    for ((spec, wires), shapes) in node.inputs.iter().zip(&node.wires).zip(inputs) {
        for (&from, shape) in wires.iter().zip(shapes) {
            given.push(format!("{} = `{}` {}", spec.name, graph.path(from), read(graph, from, shape)));
        }
    }
    let given = if given.is_empty() { String::new() } else { format!(" (it reads {})", given.join(", ")) };
    PlanError::new(graph, id, format!("{error}{given}"))
}

/// All outputs of a cell are carried, and what is carried keeps its shape.
fn check_cells(graph: &Graph, slots: &Slots, cells: &[bool], variants: &[Variant]) -> Result<(), PlanError> {
    let mut carried = vec![false; slots.len()];
    for carry in graph.carries() {
        carried[slots.at(carry.cell)] = true;
    }
    for (id, node) in graph.nodes().filter(|(id, _)| cells[id.index()]) {
        if let Some(left) = slots.all(id).position(|slot| !carried[slot]) {
            let message = format!(
                "it is a cell, but its output `{}` is not carried; either all outputs of a node are, or none",
                node.outputs[left].name
            );
            return Err(PlanError::new(graph, id, message));
        }
    }
    for carry in graph.carries() {
        let holds = variants[0].shape(graph, carry.cell);
        for variant in variants {
            let (cell, next) = (variant.shape(graph, carry.cell), variant.shape(graph, carry.next));
            let (gives, from) = if cell == holds { (next, carry.next) } else { (cell, carry.cell) };
            if gives != holds {
                let message = format!(
                    "it holds {}, but `{}` gives {}; a cell keeps its shape from step to step",
                    holds.describe(),
                    graph.path(from),
                    gives.describe()
                );
                return Err(PlanError::new(graph, carry.cell.node, message));
            }
        }
    }
    Ok(())
}
