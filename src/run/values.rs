//! The values of one step: each is dropped when its last reader has finished.

use std::collections::BTreeSet;

use prefgraph_ops::{PortType, Value, operator::Residuals, ports::Effects};

use crate::{
    graph::{EdgeIndex, Endpoint, Graph, NodeId, Tap},
    plan::{Plan, Slots},
};

/// How often everything is read in a step: the same for every step.
pub(super) struct Reads {
    values: Vec<u32>,
    cotangents: Vec<u32>,
    /// Outputs that carry effects, in the order of the graph.
    pub effects: Vec<Endpoint>,
}

impl Reads {
    pub fn new(graph: &Graph, slots: &Slots, kept: &BTreeSet<Endpoint>) -> Self {
        let mut reads =
            Self { values: vec![0; slots.len()], cotangents: vec![0; slots.len()], effects: Vec::new() };
        let effects = PortType::of::<Effects>();
        for (id, node) in graph.nodes() {
            for (port, output) in node.outputs.iter().enumerate() {
                if output.ty.fits(&effects) {
                    reads.effects.push(Endpoint::value(id, port));
                }
            }
        }
        let wires = graph.nodes().flat_map(|(_, node)| node.wires.iter().flatten().copied());
        // What is looked at when the step has ended counts as a reader that never finishes.
        let losses = graph.losses().iter().copied();
        let at_end = graph.carries().iter().map(|c| c.next).chain(losses).chain(kept.iter().copied());
        let all: Vec<Endpoint> = wires.chain(at_end).chain(reads.effects.iter().copied()).collect();
        for at in all {
            *reads.of(at, slots) += 1;
        }
        reads
    }

    fn of(&mut self, at: Endpoint, slots: &Slots) -> &mut u32 {
        match at.tap {
            Tap::Value => &mut self.values[slots.at(at)],
            Tap::Cotangent => &mut self.cotangents[slots.at(at)],
        }
    }
}

#[derive(Clone, Default)]
struct Slot {
    value: Option<Value>,
    reads: u32,
}

/// See the module.
pub(super) struct Values {
    values: Vec<Slot>,
    cotangents: Vec<Slot>,
    /// By node.
    saved: Vec<Option<Residuals>>,
    /// Cotangents on their way back, by wire.
    travelling: Vec<Option<Value>>,
}

impl Values {
    pub fn new(graph: &Graph, reads: &Reads) -> Self {
        let slots = |reads: &[u32]| reads.iter().map(|&reads| Slot { value: None, reads }).collect();
        Self {
            values: slots(&reads.values),
            cotangents: slots(&reads.cotangents),
            saved: (0..graph.len()).map(|_| None).collect(),
            travelling: vec![None; graph.wire_count()],
        }
    }

    /// What is at an endpoint now.
    pub fn get(&self, at: Endpoint, slots: &Slots) -> Option<Value> {
        let slot = match at.tap {
            Tap::Value => &self.values[slots.at(at)],
            Tap::Cotangent => &self.cotangents[slots.at(at)],
        };
        slot.value.clone()
    }

    pub fn put_outputs(
        &mut self,
        node: NodeId,
        outputs: Vec<Value>,
        saved: Option<Residuals>,
        slots: &Slots,
    ) {
        for (slot, value) in slots.all(node).zip(outputs) {
            put(&mut self.values[slot], Some(value));
        }
        self.saved[node.index()] = saved;
    }

    pub fn put_cotangents(
        &mut self,
        graph: &Graph,
        plan: &Plan,
        node: NodeId,
        sums: Vec<Option<Value>>,
        mut to_inputs: Vec<Vec<Option<Value>>>,
    ) {
        for (slot, sum) in plan.slots().all(node).zip(sums) {
            put(&mut self.cotangents[slot], sum);
        }
        if to_inputs.is_empty() {
            return;
        }
        for (index, edge) in graph.edges_into(node) {
            if plan.gradient().along(index) {
                self.travelling[index.index()] = to_inputs[edge.input][edge.position].take();
            }
        }
    }

    /// What the forward of a node kept.
    pub fn take_saved(&mut self, node: NodeId) -> Option<Residuals> {
        self.saved[node.index()].take()
    }

    /// The cotangent that came along a wire, unless it is zero.
    pub fn take_travelling(&mut self, edge: EdgeIndex) -> Option<Value> {
        self.travelling[edge.index()].take()
    }

    /// The forward of a node has finished: it reads its inputs no more.
    pub fn release(&mut self, graph: &Graph, node: NodeId, slots: &Slots) {
        for from in graph[node].wires.iter().flatten() {
            let slot = match from.tap {
                Tap::Value => &mut self.values[slots.at(*from)],
                Tap::Cotangent => &mut self.cotangents[slots.at(*from)],
            };
            slot.reads -= 1;
            if slot.reads == 0 {
                slot.value = None;
            }
        }
    }
}

fn put(slot: &mut Slot, value: Option<Value>) {
    if slot.reads > 0 {
        slot.value = value;
    }
}

/// How many tasks every task still waits for.
pub(super) fn open_tasks(plan: &Plan) -> Vec<usize> {
    plan.tasks().iter().map(|t| t.after.len()).collect()
}
