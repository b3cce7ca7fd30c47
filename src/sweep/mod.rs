//! Several graphs as one: variants of a graph that differ in settings share every node that the difference does not reach.
//!
//! ```text
//!  classes   which variants a node computes the same values for
//!  mod       one graph of all variants, each node once for every class
//!  saved     what a step of it costs, against a step of every variant by itself
//! ```
//!
//! A node that all variants share keeps its id. A copy has the number of the first variant that it works for behind it,
//! `policy#3`, and draws the random numbers of the node that it is a copy of. So every value has the bits that it has when the
//! variant runs alone.

mod classes;
mod saved;

use std::collections::BTreeSet;

use crate::graph::{Endpoint, Graph, GraphError, NodeId};

pub use saved::{Cost, Saved, flops};

/// One variant.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its number, from 1: the same when other variants are left out.
    pub number: u32,
    /// Its graph: the same nodes and wires as that of every other variant, with other settings.
    pub graph: &'a Graph,
    /// The settings of every node, in the order of the graph.
    pub settings: &'a [String],
}

/// Several variants as one graph.
#[derive(Debug)]
pub struct Joined {
    /// All of them. Its losses are those of the variants.
    pub graph: Graph,
    /// By node of a variant's graph, by variant: the variant that it shares its node with; the first of those that share.
    pub classes: Vec<Vec<usize>>,
    /// By variant, by node of its graph: the node that computes it.
    nodes: Vec<Vec<NodeId>>,
}

/// Why graphs are no variants of each other.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// They differ in more than settings.
    #[error("variants {first} and {second} differ in more than settings: node `{node}`")]
    Structure {
        /// Number of a variant.
        first: u32,
        /// Number of another one.
        second: u32,
        /// Where they differ.
        node: String,
    },
    /// There is nothing to join.
    #[error("there are no variants")]
    Empty,
    /// The graph of all cannot be built.
    #[error(transparent)]
    Copied(#[from] GraphError),
}

/// The graph of all these variants; there is at least one.
///
/// # Errors
/// If the graphs differ in more than their settings.
pub fn join(name: &str, parts: &[Part<'_>]) -> Result<Joined, JoinError> {
    check(parts)?;
    let classes = classes::classes(parts);
    let mut graph = Graph::new(name);
    let mut nodes: Vec<Vec<NodeId>> = vec![Vec::new(); parts.len()];
    let base = parts.first().ok_or(JoinError::Empty)?.graph;
    // Node by node: each comes after what it reads, and the nodes of a variant in the order that they have alone, so that
    // cotangents are summed and metrics joined in the same order.
    for (index, class) in classes.iter().enumerate() {
        let shared = class.iter().all(|first| *first == 0);
        for (variant, &first) in class.iter().enumerate() {
            let node = if first == variant {
                let Part { number, graph: own, .. } = parts[variant];
                let node = &own[NodeId::new(index)];
                let moved = |at: &Endpoint| Endpoint { node: nodes[variant][at.node.index()], ..*at };
                let wires = node.wires.iter().map(|wires| wires.iter().map(moved).collect()).collect();
                let (id, turn) =
                    if shared { (node.id.clone(), 0) } else { (format!("{}#{number}", node.id), number) };
                graph.insert_copy(id, node, wires, turn)?
            } else {
                nodes[first][index]
            };
            nodes[variant].push(node);
        }
    }
    let mut joined = Joined { graph, classes, nodes };
    for variant in 0..parts.len() {
        for loss in base.losses() {
            let loss = joined.endpoint(variant, *loss);
            joined.graph.add_loss_at(loss)?;
        }
    }
    let mut carried = BTreeSet::new();
    for carry in base.carries() {
        for variant in 0..parts.len() {
            let (cell, next) = (joined.endpoint(variant, carry.cell), joined.endpoint(variant, carry.next));
            if carried.insert(cell) {
                joined.graph.carry_at(cell, next)?;
            }
        }
    }
    Ok(joined)
}

/// Have all the same nodes, wires, losses and cells?
fn check(parts: &[Part<'_>]) -> Result<(), JoinError> {
    let Some((base, others)) = parts.split_first() else { return Err(JoinError::Empty) };
    for other in others {
        let differ = |node: &str| JoinError::Structure {
            first: base.number,
            second: other.number,
            node: node.to_owned(),
        };
        let same = |a: &Graph, b: &Graph| {
            a.len() == b.len() && a.losses() == b.losses() && a.carries() == b.carries()
        };
        if !same(base.graph, other.graph) {
            return Err(differ("all"));
        }
        for ((_, a), (_, b)) in base.graph.nodes().zip(other.graph.nodes()) {
            if a.id != b.id || a.op.name() != b.op.name() || a.wires != b.wires {
                return Err(differ(&a.id));
            }
        }
    }
    Ok(())
}

impl Joined {
    /// What computes an output of a variant.
    pub fn endpoint(&self, variant: usize, at: Endpoint) -> Endpoint {
        Endpoint { node: self.node(variant, at.node), ..at }
    }

    /// What computes a node of a variant.
    pub fn node(&self, variant: usize, node: NodeId) -> NodeId {
        self.nodes[variant][node.index()]
    }

    /// Do all variants share this node of theirs?
    pub fn is_shared(&self, node: NodeId) -> bool {
        self.classes[node.index()].iter().all(|first| *first == 0)
    }

    /// How many times this node of the variants is computed.
    pub fn copies(&self, node: NodeId) -> usize {
        self.classes[node.index()].iter().enumerate().filter(|(variant, first)| variant == *first).count()
    }

    /// Let a variant's graph hold the operators that the joined graph runs, so that those of its own are dropped.
    pub fn lend(&self, variant: usize, graph: &mut Graph) {
        for index in 0..graph.len() {
            let node = NodeId::new(index);
            drop(graph.replace_operator(node, self.graph[self.node(variant, node)].op.clone()));
        }
    }
}
