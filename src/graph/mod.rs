//! The description of a training step: operators, wires between their ports, the loss, and the state carried from step
//! to step. A graph holds no values and runs nothing.

mod connect;
mod error;
mod lookup;
mod path;
mod reach;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use petgraph::{Direction, graph::DiGraph, visit::EdgeRef};
use prefgraph_ops::{
    Arity, DynOperator, InputSpec, Operator, OutputSpec, PortType, Scalar, T, port::Carried,
};

pub use connect::{Arguments, Connect, ConnectAll, Wired};
pub use error::GraphError;
pub(crate) use path::Path;
pub use petgraph::graph::EdgeIndex;
pub use wire::{Endpoint, NodeId, Tap, Wire};

/// An operator with a name and its wires.
pub struct Node {
    /// Unique in the graph.
    pub id: String,
    /// What it computes. Several graphs may hold one operator.
    pub op: Arc<dyn DynOperator>,
    /// Of the operator.
    pub inputs: Vec<InputSpec>,
    /// Of the operator.
    pub outputs: Vec<OutputSpec>,
    /// For every input, what it reads.
    pub wires: Vec<Vec<Endpoint>>,
    /// The name that its random numbers are drawn by: its id, or the id of the node that it is a copy of.
    pub draws_as: String,
    /// Its turn among parts of the graph that do not depend on each other; 0 for what belongs to no part. A plan works on
    /// as many turns at once as it has lanes, so that not all of them hold values for their backward at the same time.
    pub turn: u32,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.id, self.op.name())
    }
}

/// One wire, from an output of its source to an input of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Index of the output.
    pub port: usize,
    /// What is read from it.
    pub tap: Tap,
    /// Index of the input.
    pub input: usize,
    /// Place among the wires of that input.
    pub position: usize,
}

/// A cell and what it holds in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarryWire {
    /// The port of the cell.
    pub cell: Endpoint,
    /// Its next value.
    pub next: Endpoint,
}

/// A training step: a directed acyclic graph of operators, a loss, and carried state.
///
/// There may be several losses: what is differentiated is their sum, which nobody computes. Where no value reaches two of
/// them, each cotangent is that of one loss.
///
/// A node whose outputs are carried is a *cell*: its forward runs once, while the cell is empty, and from then on it
/// gives what [`carry`](Self::carry) put there at the end of the step before.
#[derive(Default)]
pub struct Graph {
    /// Shown in listings.
    pub name: String,
    dag: DiGraph<Node, Edge>,
    by_id: HashMap<String, NodeId>,
    losses: Vec<Endpoint>,
    carries: Vec<CarryWire>,
    /// By cell, its place among them.
    by_cell: BTreeMap<Endpoint, usize>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Add an operator; the wires are checked by the compiler.
    ///
    /// # Panics
    /// If `id` is taken or malformed: in Rust code that is a typo, not an input error.
    #[track_caller]
    pub fn add<O: Operator>(
        &mut self,
        id: &str,
        op: O,
        wires: impl ConnectAll<O::In>,
    ) -> <O::Out as Wired>::Wires
    where
        O::Out: Wired,
    {
        match self.insert(id, Box::new(op), &wires.endpoints()) {
            Ok(node) => O::Out::wires(node),
            Err(e) => panic!("{e}"),
        }
    }

    /// Add a function of one to six dfdx tensors; its gradient comes from dfdx's tape.
    ///
    /// # Panics
    /// If `id` is taken or malformed.
    #[track_caller]
    pub fn op<W: Arguments<F>, F>(&mut self, id: &str, wires: W, function: F) -> Wire<T<W::Out>> {
        match self.insert(id, W::operator(function), &wires.endpoints()) {
            Ok(node) => Wire::new(Endpoint::value(node, 0)),
            Err(e) => panic!("{e}"),
        }
    }

    /// Add an operator whose type is known at run time only; one list of endpoints for every input.
    ///
    /// # Errors
    /// If the id or a wire does not fit; the graph is then unchanged.
    pub fn insert(
        &mut self,
        id: &str,
        op: Box<dyn DynOperator>,
        inputs: &[Vec<Endpoint>],
    ) -> Result<NodeId, GraphError> {
        self.check_id(id)?;
        let specs = op.inputs();
        if specs.len() != inputs.len() {
            return Err(GraphError::Inputs {
                node: id.into(),
                op: op.name().into(),
                expected: specs.iter().map(|s| s.name).collect(),
                got: inputs.len(),
            });
        }
        for (spec, wires) in specs.iter().zip(inputs) {
            self.check_input(id, op.name(), spec, wires)?;
        }
        let outputs = op.outputs();
        let wires = inputs.to_vec();
        let (id, draws_as, op) = (id.to_owned(), id.to_owned(), Arc::from(op));
        Ok(self.push(Node { id, op, inputs: specs, outputs, wires, draws_as, turn: 0 }))
    }

    /// These nodes and those behind them, as far back as inputs are followed.
    pub(crate) fn behind(
        &self,
        nodes: impl IntoIterator<Item = NodeId>,
        followed: impl Fn(&InputSpec) -> bool,
    ) -> BTreeSet<NodeId> {
        let mut open: Vec<NodeId> = nodes.into_iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(at) = open.pop() {
            if seen.insert(at) {
                let read = self[at].inputs.iter().zip(&self[at].wires).filter(|(input, _)| followed(input));
                open.extend(read.flat_map(|(_, wires)| wires).map(|wire| wire.node));
            }
        }
        seen
    }

    /// Add a copy of a node of another graph: the same operator, which draws the same random numbers. Its wires lead to copies of
    /// what it reads there, so their types need no second look; its id may have characters that are not those of files.
    pub(crate) fn insert_copy(
        &mut self,
        id: String,
        of: &Node,
        wires: Vec<Vec<Endpoint>>,
        turn: u32,
    ) -> Result<NodeId, GraphError> {
        if self.by_id.contains_key(&id) {
            return Err(GraphError::Duplicate { id });
        }
        let (op, draws_as) = (of.op.clone(), of.draws_as.clone());
        let (inputs, outputs) = (of.inputs.clone(), of.outputs.clone());
        Ok(self.push(Node { id, op, inputs, outputs, wires, draws_as, turn }))
    }

    fn push(&mut self, node: Node) -> NodeId {
        let (id, wires) = (node.id.clone(), node.wires.clone());
        let node = self.dag.add_node(node);
        for (input, wires) in wires.iter().enumerate() {
            for (position, from) in wires.iter().enumerate() {
                let edge = Edge { port: from.port, tap: from.tap, input, position };
                self.dag.add_edge(from.node, node, edge);
            }
        }
        self.by_id.insert(id, node);
        node
    }

    /// Put another operator with the same ports in the place of a node's; returns the old one.
    pub(crate) fn replace_operator(
        &mut self,
        node: NodeId,
        op: Arc<dyn DynOperator>,
    ) -> Arc<dyn DynOperator> {
        std::mem::replace(&mut self.dag[node].op, op)
    }

    /// Name the port that is differentiated.
    pub fn set_loss(&mut self, loss: Wire<Scalar>) {
        self.losses = vec![loss.endpoint()];
    }

    /// [`set_loss`](Self::set_loss) for a port whose type is known at run time only.
    ///
    /// # Errors
    /// If it does not carry one number.
    pub fn set_loss_at(&mut self, loss: Endpoint) -> Result<(), GraphError> {
        self.check_loss(loss)?;
        self.losses = vec![loss];
        Ok(())
    }

    /// Name one more port that is differentiated; one that is named already is not counted twice.
    ///
    /// # Errors
    /// If it does not carry one number.
    pub fn add_loss_at(&mut self, loss: Endpoint) -> Result<(), GraphError> {
        self.check_loss(loss)?;
        if !self.losses.contains(&loss) {
            self.losses.push(loss);
        }
        Ok(())
    }

    fn check_loss(&self, loss: Endpoint) -> Result<(), GraphError> {
        let ty = self.port_type(loss)?;
        if loss.tap == Tap::Cotangent || !ty.is_scalar() {
            return Err(GraphError::Loss { from: self.path(loss), found: carried(loss, ty) });
        }
        Ok(())
    }

    /// At the end of every step, put the value of `next` into `cell`.
    ///
    /// # Panics
    /// If `cell` has a next value already, or one of the two is of another graph.
    #[track_caller]
    pub fn carry<P: Carried>(&mut self, cell: Wire<P>, next: Wire<P>) {
        if let Err(e) = self.carry_at(cell.endpoint(), next.endpoint()) {
            panic!("{e}");
        }
    }

    /// [`carry`](Self::carry) for ports whose types are known at run time only.
    ///
    /// # Errors
    /// If the types differ, cannot be carried, or `cell` has a next value already.
    pub fn carry_at(&mut self, cell: Endpoint, next: Endpoint) -> Result<(), GraphError> {
        let (holds, found) = (self.port_type(cell)?, self.port_type(next)?);
        if holds.carry.is_none() || cell.tap == Tap::Cotangent {
            return Err(GraphError::NotCarried { cell: self.path(cell), found: carried(cell, holds) });
        }
        if next.tap == Tap::Cotangent || !found.fits(holds) {
            return Err(GraphError::Carry {
                cell: self.path(cell),
                from: self.path(next),
                expected: carried(cell, holds),
                found: carried(next, found),
            });
        }
        if cell == next {
            return Err(GraphError::CarriesItself { cell: self.path(cell) });
        }
        if let Some(before) = self.by_cell.get(&cell) {
            return Err(GraphError::CarriedTwice {
                cell: self.path(cell),
                first: self.path(self.carries[*before].next),
                second: self.path(next),
            });
        }
        self.by_cell.insert(cell, self.carries.len());
        self.carries.push(CarryWire { cell, next });
        Ok(())
    }

    /// The port that is differentiated; of several, the first.
    pub fn loss(&self) -> Option<Endpoint> {
        self.losses.first().copied()
    }

    /// All ports that are differentiated.
    pub fn losses(&self) -> &[Endpoint] {
        &self.losses
    }

    /// All cells and their next values, in the order in which they were stated.
    pub fn carries(&self) -> &[CarryWire] {
        &self.carries
    }

    /// Wires out of a node, in the order in which they were added: the order in which cotangents are summed, so that
    /// a sum does not depend on who finished first.
    pub(crate) fn edges_from(&self, node: NodeId) -> Vec<(EdgeIndex, NodeId, Edge)> {
        let edges = self.dag.edges_directed(node, Direction::Outgoing);
        let mut edges: Vec<_> = edges.map(|e| (e.id(), e.target(), *e.weight())).collect();
        edges.sort_unstable_by_key(|(index, ..)| *index);
        edges
    }

    /// Number of wires.
    pub fn wire_count(&self) -> usize {
        self.dag.edge_count()
    }

    /// The wire at one place of one input.
    pub(crate) fn edges_into(&self, node: NodeId) -> Vec<(EdgeIndex, Edge)> {
        let edges = self.dag.edges_directed(node, Direction::Incoming);
        let mut edges: Vec<_> = edges.map(|e| (e.id(), *e.weight())).collect();
        edges.sort_unstable_by_key(|(index, ..)| *index);
        edges
    }

    fn check_id(&self, id: &str) -> Result<(), GraphError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if id.is_empty() || !id.chars().all(allowed) {
            let lower = id.to_ascii_lowercase();
            let suggestion: String = lower.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
            let suggestion = if suggestion.is_empty() { "node_1".into() } else { suggestion };
            return Err(GraphError::Id { id: id.into(), suggestion });
        }
        if self.by_id.contains_key(id) {
            return Err(GraphError::Duplicate { id: id.into() });
        }
        Ok(())
    }

    fn check_input(
        &self,
        id: &str,
        op: &str,
        spec: &InputSpec,
        wires: &[Endpoint],
    ) -> Result<(), GraphError> {
        let fits = match spec.arity {
            Arity::One => wires.len() == 1,
            Arity::Optional => wires.len() <= 1,
            Arity::Many => true,
        };
        if !fits {
            return Err(GraphError::Arity {
                node: id.into(),
                op: op.into(),
                input: spec.name,
                arity: spec.arity,
                got: wires.len(),
            });
        }
        for &from in wires {
            let found = self.port_type(from)?;
            if from.tap == Tap::Cotangent && !found.differentiable {
                return Err(GraphError::Discrete { from: self.path(from), found: found.to_string() });
            }
            let fits = match from.tap {
                Tap::Value => found.fits(&spec.ty),
                Tap::Cotangent => found.cotangent_fits(&spec.ty),
            };
            if !fits {
                return Err(GraphError::Mismatch {
                    node: id.into(),
                    op: op.into(),
                    input: spec.name,
                    from: self.path(from),
                    expected: spec.ty.to_string().into(),
                    found: carried(from, found).into(),
                });
            }
        }
        Ok(())
    }
}

/// What is read at an endpoint of a port of this type, as people read it.
fn carried(at: Endpoint, ty: &PortType) -> String {
    match at.tap {
        Tap::Value => ty.to_string(),
        Tap::Cotangent => format!("grad {ty}"),
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "graph `{}`: ", self.name)?;
        f.debug_list().entries(self.dag.node_weights()).finish()
    }
}
