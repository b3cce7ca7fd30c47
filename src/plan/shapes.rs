//! The shape of every port, for the whole graph, before the first step.

use prefgraph_ops::{Cost, ErasedShape, OpError, guard};

use super::{PlanError, Slots};
use crate::graph::{Endpoint, Graph, NodeId, Tap};

/// One set of shapes that a step may have. There are several where a source gives batches that differ, e.g. in the
/// number of references.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// By node and output.
    pub(super) outputs: Vec<Vec<ErasedShape>>,
    /// By node.
    pub(super) costs: Vec<Cost>,
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

    fn bytes(&self) -> usize {
        let outputs = self.outputs.iter().flatten().map(ErasedShape::bytes).sum::<usize>();
        outputs + self.costs.iter().map(|c| c.saved_bytes).sum::<usize>()
    }
}

/// The variant that holds most bytes; the first of several.
pub(super) fn largest(variants: &[Variant]) -> usize {
    (0..variants.len()).rev().max_by_key(|&v| variants[v].bytes()).unwrap_or(0)
}

/// Infer the shapes of all variants.
pub(super) fn infer(graph: &Graph, slots: &Slots, cells: &[bool]) -> Result<Vec<Variant>, PlanError> {
    let mut source: Option<(NodeId, usize)> = None;
    for (id, node) in graph.nodes() {
        let count = node.op.variants();
        match source {
            _ if count == 0 => {
                return Err(PlanError::new(
                    graph,
                    id,
                    "it has no variant of its output shapes; it must have one",
                ));
            }
            Some((first, _)) if count > 1 => {
                let message = format!(
                    "its batches differ in shape, and so do those of `{}`; only one source in a graph may have batches \
                     that differ",
                    graph[first].id
                );
                return Err(PlanError::new(graph, id, message));
            }
            None if count > 1 => source = Some((id, count)),
            _ => {}
        }
    }
    let count = source.map_or(1, |(_, count)| count);
    let variants =
        (0..count).map(|v| variant(graph, source.map(|(id, _)| id), v)).collect::<Result<Vec<_>, _>>()?;
    check_cells(graph, slots, cells, &variants)?;
    Ok(variants)
}

fn variant(graph: &Graph, source: Option<NodeId>, index: usize) -> Result<Variant, PlanError> {
    let mut variant =
        Variant { outputs: Vec::with_capacity(graph.len()), costs: Vec::with_capacity(graph.len()) };
    for (id, node) in graph.nodes() {
        let inputs = variant.inputs(graph, id);
        let at = if source == Some(id) { index } else { 0 };
        let outputs = guarded(|| node.op.shapes(&inputs, at)).map_err(|e| refused(graph, id, &inputs, &e))?;
        if outputs.len() != node.outputs.len() {
            let message =
                format!("it states {} output shapes for {} outputs", outputs.len(), node.outputs.len());
            return Err(PlanError::new(graph, id, OpError::internal(message).to_string()));
        }
        let cost =
            guarded(|| Ok(node.op.cost(&inputs, &outputs))).map_err(|e| refused(graph, id, &inputs, &e))?;
        variant.outputs.push(outputs);
        variant.costs.push(cost);
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
