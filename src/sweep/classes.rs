//! Which variants a node computes the same values for.
//!
//! A value is a function of the node's settings, of what it reads, of the random numbers of its node, and, for a cell, of what was
//! carried into it in the steps before. So two variants share a node if they agree in its settings, share all that it reads, and, if it
//! is a cell, share what is carried into it. All are taken to share all, and told apart until nothing changes: the coarsest classes with
//! that property.

use super::Part;
use crate::graph::{Endpoint, NodeId, Tap};

/// What two variants have to agree in to share a node: by input and wire, the class of what it reads.
#[derive(PartialEq)]
struct Key<'a> {
    settings: &'a str,
    reads: Vec<usize>,
}

/// By node, by variant: the first variant that it shares the node with.
pub(super) fn classes(parts: &[Part<'_>]) -> Vec<Vec<usize>> {
    let Some(base) = parts.first() else { return Vec::new() };
    let mut classes = vec![vec![0usize; parts.len()]; base.graph.len()];
    loop {
        let mut changed = false;
        for index in 0..classes.len() {
            let node = NodeId::new(index);
            let keys: Vec<Key<'_>> = (0..parts.len()).map(|v| key(parts, &classes, node, v)).collect();
            let old = &classes[index];
            let alike =
                |variant: usize, first: usize| old[first] == old[variant] && keys[first] == keys[variant];
            let first = |variant: usize| (0..variant).find(|first| alike(variant, *first)).unwrap_or(variant);
            let new: Vec<usize> = (0..parts.len()).map(first).collect();
            if new != classes[index] {
                classes[index] = new;
                changed = true;
            }
        }
        if !changed {
            return classes;
        }
    }
}

fn key<'a>(parts: &[Part<'a>], classes: &[Vec<usize>], node: NodeId, variant: usize) -> Key<'a> {
    let Part { graph, settings, .. } = parts[variant];
    let class = |at: &Endpoint| classes[at.node.index()][variant];
    let mut reads = Vec::new();
    for from in graph[node].wires.iter().flatten() {
        reads.push(class(from));
        // A derivative depends on all that the loss depends on.
        if from.tap == Tap::Cotangent {
            reads.extend(graph.losses().iter().map(class));
        }
    }
    let carried = graph.carries().iter().filter(|carry| carry.cell.node == node);
    reads.extend(carried.map(|carry| class(&carry.next)));
    Key { settings: settings.get(node.index()).map_or("", String::as_str), reads }
}
