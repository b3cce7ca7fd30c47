//! The ancestors of a cached node: whether it can be cached at all, and which parts of the graph its entries depend on.

use std::collections::{BTreeMap, BTreeSet};

use prefgraph_ops::{ErasedShape, Identity, guard};

use super::{CacheError, Hash, Recipe};
use crate::graph::{Endpoint, Graph, NodeId, Tap};

/// A cached node and all that it is computed from.
#[derive(Clone, Debug)]
pub(super) struct Lineage {
    /// The one source of its samples.
    pub source: NodeId,
    /// What runs for it, in the order of the graph: the nodes between, and itself at the end.
    pub needs: Vec<NodeId>,
    /// Of operators, settings and wires from the source on.
    pub hash: Hash,
    pub recipe: Recipe,
}

/// Wires of a node whose values it looks at.
pub(super) fn read_wires<'a>(
    graph: &'a Graph,
    node: NodeId,
    identity: Option<&'a Identity>,
) -> impl Iterator<Item = (usize, Endpoint)> + 'a {
    let node = &graph[node];
    let all = node.inputs.iter().zip(&node.wires).enumerate();
    let read = all.filter(move |(_, (spec, _))| identity.is_none_or(|i| !i.is_shape_only(spec.name)));
    read.flat_map(|(input, (_, wires))| wires.iter().map(move |wire| (input, *wire)))
}

/// The lineage of a node that is to be cached, of a run with this GPU.
///
/// # Errors
/// If it cannot be; the error names the node, and the ancestor that is at fault.
pub(super) fn lineage(graph: &Graph, node: NodeId, gpu: Option<&str>) -> Result<Lineage, CacheError> {
    let id = &graph[node].id;
    let identity = own(graph, node)?;
    let identities = ancestors(graph, node, identity.clone())?;
    let mut sources = Vec::new();
    let mut needs = Vec::new();
    for (&ancestor, identity) in &identities {
        match identity {
            Some(_) => needs.push(ancestor),
            None => sources.push(ancestor),
        }
    }
    let source = match sources[..] {
        [source] => source,
        [] => return Err(CacheError::of(id, "it reads no samples: it is the same in every step")),
        [first, second, ..] => {
            let (first, second) = (&graph[first].id, &graph[second].id);
            let why = format!(
                "it reads samples of two sources, `{first}` and `{second}`, which have no common number"
            );
            return Err(CacheError::of(id, why));
        }
    };
    let mut hashes: BTreeMap<NodeId, Hash> = BTreeMap::new();
    let mut recipe = None;
    for (&ancestor, identity) in &identities {
        let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 lineage of a cached node");
        if let Some(identity) = identity {
            let (name, op) = (&graph[ancestor].id, graph[ancestor].op.name());
            let found = Recipe::new(name, op, &with_shapes(graph, ancestor, source, identity.clone()), gpu)?;
            hash.update(found.hash().as_bytes());
            for (input, wire) in read_wires(graph, ancestor, Some(identity)) {
                hash.update(format!("{input} {}", graph[wire.node].outputs[wire.port].name).as_bytes());
                hash.update(hashes[&wire.node].as_bytes());
            }
            recipe = Some(found);
        }
        hashes.insert(ancestor, hash.finalize());
    }
    let recipe = recipe.ok_or_else(|| CacheError::of(id, "internal error, please report it: no recipe"))?;
    Ok(Lineage { source, needs, hash: hashes[&node], recipe })
}

/// What the node itself says of what it depends on.
fn own(graph: &Graph, node: NodeId) -> Result<Identity, CacheError> {
    let at = &graph[node];
    let refuse = |why: String| Err(CacheError::of(&at.id, why));
    if graph.is_cell(node) {
        return refuse("it is a cell, whose value is another in every step".into());
    }
    if let Some(why) = at.op.random() {
        return refuse(format!("its operator `{}` is random: {why}", at.op.name()));
    }
    let identity = at.op.cacheable();
    let Some(identity) =
        identity.filter(|_| at.outputs.iter().all(|o| o.ty.rows.is_some_and(|r| r.keep.is_some())))
    else {
        return refuse(format!(
            "its operator `{}` does not give one row a sample that depends on that sample only",
            at.op.name()
        ));
    };
    for (input, from) in read_wires(graph, node, Some(&identity)) {
        if at.inputs[input].ty.rows.is_none() && from.tap == Tap::Value {
            return refuse(format!("its input `{}` has no row for every sample", at.inputs[input].name));
        }
    }
    Ok(identity)
}

/// The node, its ancestors, and what each says of itself; a source says nothing. In the order of the graph.
fn ancestors(
    graph: &Graph,
    node: NodeId,
    own: Identity,
) -> Result<BTreeMap<NodeId, Option<Identity>>, CacheError> {
    let id = &graph[node].id;
    let mut found = BTreeMap::from([(node, Some(own))]);
    let mut open = vec![node];
    // What is random is looked for first: it is the fault behind other faults.
    let mut faults: Vec<(bool, String)> = Vec::new();
    while let Some(reader) = open.pop() {
        let wires: Vec<_> = read_wires(graph, reader, found[&reader].as_ref()).collect();
        for (_, wire) in wires {
            let (name, op) = (&graph[wire.node].id, &graph[wire.node].op);
            if wire.tap == Tap::Cotangent {
                faults.push((false, format!("it depends on a derivative of the loss by `{name}`")));
                continue;
            }
            if found.contains_key(&wire.node) {
                continue;
            }
            if graph.is_cell(wire.node) {
                let why = format!("it depends on the cell `{name}`, whose value is another in every step");
                faults.push((false, why));
                continue;
            }
            if let Some(why) = op.random() {
                let why = format!(
                    "it depends on `{name}` (`{}`), which is random, so that a sample is never the same again: {why}",
                    op.name()
                );
                faults.push((true, why));
            }
            let is_source = read_wires(graph, wire.node, None).next().is_none();
            let identity = if is_source { None } else { op.cacheable() };
            if is_source && op.samples().is_none() {
                let why = format!(
                    "its samples come from `{name}` (`{}`), which cannot list them, so that the cache cannot be filled",
                    op.name()
                );
                faults.push((false, why));
            } else if !is_source && identity.is_none() {
                let why = format!(
                    "it depends on `{name}` (`{}`), whose rows do not depend on one sample only",
                    op.name()
                );
                faults.push((false, why));
            }
            found.insert(wire.node, identity);
            open.push(wire.node);
        }
    }
    match faults.iter().find(|(random, _)| *random).or(faults.first()) {
        Some((_, why)) => Err(CacheError::of(id, why)),
        None => Ok(found),
    }
}

/// With the axes of the outputs, where they come from inputs of which only the shape is looked at.
fn with_shapes(graph: &Graph, node: NodeId, source: NodeId, identity: Identity) -> Identity {
    let at = &graph[node];
    if !at.inputs.iter().zip(&at.wires).any(|(i, w)| identity.is_shape_only(i.name) && !w.is_empty()) {
        return identity;
    }
    let mut axes: BTreeSet<Vec<String>> = BTreeSet::new();
    for variant in 0..graph[source].op.variants() {
        // Shapes that do not go together are the plan's to complain about.
        let Some(shapes) = shapes_of(graph, node, source, variant) else { continue };
        let one = |(spec, shape): (&prefgraph_ops::OutputSpec, &ErasedShape)| {
            let measure = spec.ty.rows.and_then(|r| r.keep).map(|k| k.measure);
            measure.and_then(|m| m(shape)).map_or_else(|| shape.describe(), |(_, axes)| axes)
        };
        axes.insert(at.outputs.iter().zip(&shapes).map(one).collect());
    }
    let named = |axes: &Vec<String>| {
        let each = at.outputs.iter().zip(axes).map(|(o, axes)| format!("{} {axes}", o.name));
        each.collect::<Vec<_>>().join(", ")
    };
    identity.setting("shape", axes.iter().map(named).collect::<Vec<_>>().join(" or "))
}

fn shapes_of(graph: &Graph, node: NodeId, source: NodeId, variant: usize) -> Option<Vec<ErasedShape>> {
    let mut needed = BTreeSet::from([node]);
    let mut open = vec![node];
    while let Some(reader) = open.pop() {
        let wires = graph[reader].wires.iter().flatten();
        open.extend(wires.map(|w| w.node).filter(|n| needed.insert(*n)));
    }
    let mut shapes: BTreeMap<NodeId, Vec<ErasedShape>> = BTreeMap::new();
    for id in needed {
        let at = &graph[id];
        let shape = |wire: &Endpoint| {
            (wire.tap == Tap::Value).then(|| shapes.get(&wire.node)?.get(wire.port).cloned())?
        };
        let inputs = at.wires.iter().map(|wires| wires.iter().map(shape).collect::<Option<Vec<_>>>());
        let inputs = inputs.collect::<Option<Vec<_>>>()?;
        let variant = if id == source { variant } else { 0 };
        let found = guard::catch(|| at.op.shapes(&inputs, variant)).ok()?.ok()?;
        shapes.insert(id, found);
    }
    shapes.remove(&node)
}
