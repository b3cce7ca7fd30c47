//! What nodes record, and sum up over the pairs of a set: metrics of these pairs, at their times, over as many steps as the set has batches. A wrong
//! wire there would show at the first measurement only, which may be hours after the first step.

use std::collections::BTreeSet;

use prefgraph_ops::{Part, PortType, Sum, ports::Timesteps};

use super::PlanError;
use crate::graph::{Endpoint, Graph, Node, NodeId};

// The inputs of a node that sums up, by name.
const ADAPTER: &str = "adapter";
const METRICS: &str = "metrics";
const TIMES: &str = "t";
const IDS: &str = "ids";

/// What a source exports that goes through its samples batch by batch: how many batches they make.
const BATCHES: &str = "batches_per_epoch";

/// Check all of it.
pub(super) fn check(graph: &Graph) -> Result<(), PlanError> {
    for (id, node) in graph.nodes() {
        if let Part::Sum(sum) = node.op.part() {
            best(graph, id, &sum)?;
            samples(graph, id)?;
            batches(graph, id, &sum)?;
        }
    }
    records(graph)
}

/// Can it be told which samples a record is of? Two nodes that record samples of different sources under the same names would mix them up.
fn records(graph: &Graph) -> Result<(), PlanError> {
    let mut seen: Vec<(String, NodeId, BTreeSet<NodeId>)> = Vec::new();
    for (id, node) in graph.nodes() {
        let Part::Record { prefix } = node.op.part() else { continue };
        let of_samples =
            |from: &&Endpoint| graph[from.node].op.metrics().iter().any(|metric| metric.name == "id");
        let own: BTreeSet<NodeId> = wires(node, METRICS)
            .iter()
            .filter(of_samples)
            .flat_map(|from| sources(graph, from.node))
            .collect();
        let other = seen.iter().find(|(other, _, theirs)| {
            *other == prefix && !own.is_empty() && !theirs.is_empty() && *theirs != own
        });
        if let Some((_, other, _)) = other {
            let under = match prefix.as_str() {
                "" => "without a prefix".to_owned(),
                prefix => format!("under the prefix `{prefix}`"),
            };
            let message = format!(
                "`{}` records other samples {under}, too: which is which could not be told. Set `prefix` of one of the two to another name",
                graph[*other].id
            );
            return Err(PlanError::new(graph, id, message));
        }
        seen.push((prefix, id, own));
    }
    Ok(())
}

/// The wires of an input.
fn wires<'a>(node: &'a Node, input: &str) -> &'a [Endpoint] {
    node.inputs.iter().position(|spec| spec.name == input).map_or(&[], |at| &node.wires[at])
}

/// May any connected node have measured what the best is told by? One that declares no metrics may have measured anything.
fn best(graph: &Graph, id: NodeId, sum: &Sum) -> Result<(), PlanError> {
    let metrics = wires(&graph[id], METRICS);
    let may = |from: &Endpoint| {
        let declared = graph[from.node].op.metrics();
        declared.is_empty() || declared.iter().any(|metric| sum.takes.contains(&metric.name))
    };
    if wires(&graph[id], ADAPTER).is_empty() || metrics.iter().any(may) {
        return Ok(());
    }
    let names: Vec<String> = metrics.iter().map(|from| format!("`{}`", graph[from.node].id)).collect();
    let lacking = match &names[..] {
        [] => "nothing measures, for none are connected".to_owned(),
        [one] => format!("{one} does not measure"),
        [rest @ .., last] => format!("neither {} nor {last} measures", rest.join(", ")),
    };
    Err(PlanError::new(graph, id, sum.cannot_be_told(&lacking)).at_input(METRICS))
}

/// Are metrics, times and ids those of the same samples?
fn samples(graph: &Graph, id: NodeId) -> Result<(), PlanError> {
    let node = &graph[id];
    for metrics in wires(node, METRICS) {
        let measured = sources(graph, metrics.node);
        if measured.is_empty() {
            continue;
        }
        for (input, from) in [IDS, TIMES].into_iter().flat_map(|i| wires(node, i).iter().map(move |w| (i, w)))
        {
            let other = sources(graph, from.node);
            let Some(strange) = other.difference(&measured).next() else { continue };
            let of: Vec<String> = measured.iter().map(|source| format!("`{}`", graph[*source].id)).collect();
            let message = format!(
                "`{}` is of the samples of `{}`, but `{}` measures those of {}: connect metrics, `t` and `ids` of the same samples",
                graph.path(*from),
                graph[*strange].id,
                graph.path(*metrics),
                of.join(" and ")
            );
            return Err(PlanError::new(graph, id, message).at_input(input));
        }
        let pair = (wires(node, TIMES).first(), wires(&graph[metrics.node], TIMES).first());
        if let (Some(&own), Some(&theirs)) = pair
            && drawn(graph, own) != drawn(graph, theirs)
        {
            let message = format!(
                "`{}` is not the time that `{}` measures at, which is `{}`: connect that one, or levels of noise would be mixed up",
                graph.path(own),
                graph[metrics.node].id,
                graph.path(theirs)
            );
            return Err(PlanError::new(graph, id, message).at_input(TIMES));
        }
    }
    Ok(())
}

/// Is the set measured as a whole?
fn batches(graph: &Graph, id: NodeId, sum: &Sum) -> Result<(), PlanError> {
    let Some(ids) = wires(&graph[id], IDS).first() else { return Ok(()) };
    for source in sources(graph, ids.node) {
        let Some(batches) = batches_of(&graph[source]).filter(|found| *found != sum.over) else { continue };
        let name = &graph[source].id;
        let message = format!(
            "`over` is {}, but `{name}` has {batches} batches: a measurement takes one step for each batch, so that every pair is in \
             it once. Set `over` to {batches}, or better to `@{name}.{BATCHES}`",
            sum.over
        );
        return Err(PlanError::new(graph, id, message));
    }
    Ok(())
}

/// How many batches all samples of a source make.
fn batches_of(node: &Node) -> Option<u64> {
    let exports = node.op.exports();
    exports.into_iter().find(|(name, _)| name == BATCHES).and_then(|(_, value)| value.as_u64())
}

/// Where the samples of a node come from: the sources behind it that go through samples batch by batch. What has no rows, such as an
/// adapter, says nothing about them.
fn sources(graph: &Graph, node: NodeId) -> BTreeSet<NodeId> {
    let times = PortType::of::<Timesteps>();
    let mut found = graph.behind([node], |input| input.ty.rows.is_some() || input.ty == times);
    found.retain(|node| graph[*node].inputs.is_empty() && batches_of(&graph[*node]).is_some());
    found
}

/// Where times are drawn: nodes that read a `t` and give a `t` pass it on.
fn drawn(graph: &Graph, mut at: Endpoint) -> Endpoint {
    while graph[at.node].outputs[at.port].name == TIMES {
        match wires(&graph[at.node], TIMES) {
            [from] => at = *from,
            _ => break,
        }
    }
    at
}
