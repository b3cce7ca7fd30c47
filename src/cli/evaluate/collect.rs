//! Runs the graph of a benchmark over all its pictures, and keeps what they are to the encoders.

use std::collections::BTreeMap;

use prefgraph_nn as nn;
use prefgraph_ops::{
    Operator,
    operators::{
        benchmark::Benchmark, cosine::Cosine, picture_embedding::PictureEmbedding,
        stored_embedding::StoredEmbedding,
    },
    port::take,
    ports::{Embeddings, PerSample, Texts},
    words::count,
};

use crate::{
    cli::{Failure, args, device, fits, prepare::prepare, say::say, system},
    graph::{Endpoint, Graph},
    registry::Registry,
    run::{RunOptions, Runner},
};

/// What there is of every picture and photograph, by id.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// By the node that embeds pictures, in the order of the graph.
    pub embeddings: Vec<(String, BTreeMap<String, Vec<f32>>)>,
    /// By the node that compares pictures with their prompts.
    pub prompts: Vec<(String, BTreeMap<String, f64>)>,
}

/// The ids of the nodes of operator `O`, in the order of the graph, and where each gives its only output.
fn nodes<O: Operator>(graph: &Graph) -> Result<Vec<(String, Endpoint)>, Failure> {
    let ids = graph.nodes().filter(|(_, node)| node.op.name() == O::NAME).map(|(_, node)| node.id.clone());
    ids.map(|id| Ok((id.clone(), graph.endpoint(&id).map_err(Failure::new)?))).collect()
}

/// Run every batch of the node `benchmark`. Prompts are left alone where pictures are not compared with them.
pub(super) fn collect(
    args: &args::Graph,
    benchmark: &str,
    with_prompts: bool,
    registry: &Registry,
) -> Result<Collected, Failure> {
    let prepared = prepare(args, registry)?;
    if prepared.cache.is_some() {
        return Err(Failure::new("`cache`: a graph that evaluates keeps nothing on the disk; remove it"));
    }
    fits::check(&prepared, device::memory(&prepared.run.device), registry)?;
    let gpu = device::open(&prepared.run.device)?;
    let graph = prepared.graph.clone();
    let mut pictures = nodes::<PictureEmbedding>(&graph)?;
    pictures.extend(nodes::<StoredEmbedding>(&graph)?);
    if pictures.is_empty() {
        return Err(Failure::new(format!(
            "the graph has no node `{}`, which gives what is compared",
            PictureEmbedding::NAME
        )));
    }
    let prompts = if with_prompts { nodes::<Cosine>(&graph)? } else { Vec::new() };
    let ids = graph.wire::<Texts>(&format!("{benchmark}.ids")).map_err(Failure::new)?;
    let batches = batches(&graph, benchmark)?;

    let cpu = nn::Cpu::new(prepared.run.threads).map_err(Failure::new)?;
    let options = RunOptions { last: Some(batches - 1), gpu, ..RunOptions::new(prepared.run.seed, cpu) };
    let mut runner = Runner::new(graph, prepared.plan, options).map_err(Failure::new)?;
    for at in pictures.iter().chain(&prompts).map(|(_, at)| *at).chain([ids.endpoint()]) {
        runner.keep(at).map_err(Failure::new)?;
    }
    let internal = || Failure::new("internal error, please report it: a value was not kept");
    let mut found = Collected {
        embeddings: pictures.iter().map(|(id, _)| (id.clone(), BTreeMap::new())).collect(),
        prompts: prompts.iter().map(|(id, _)| (id.clone(), BTreeMap::new())).collect(),
    };
    let (mut seconds, mut told) = (0.0, 0);
    for batch in 0..batches {
        let output = runner.step().map_err(Failure::new)?;
        let ids = output.value(ids).ok_or_else(internal)?;
        for ((_, at), (_, all)) in pictures.iter().zip(&mut found.embeddings) {
            let embeddings = take::<Embeddings>(output.kept(*at).ok_or_else(internal)?).1.as_vec();
            let width = embeddings.len() / ids.0.len();
            all.extend(ids.0.iter().cloned().zip(embeddings.chunks_exact(width).map(<[f32]>::to_vec)));
        }
        for ((_, at), (_, all)) in prompts.iter().zip(&mut found.prompts) {
            let cosines = take::<PerSample>(output.kept(*at).ok_or_else(internal)?).as_vec();
            all.extend(ids.0.iter().cloned().zip(cosines.into_iter().map(f64::from)));
        }
        seconds += output.seconds;
        let tenth = 10 * (batch + 1) / batches;
        if tenth > told && seconds > 5.0 {
            told = tenth;
            say!("  {} of {}, {}", batch + 1, count(batches, "batch"), system::seconds(seconds));
        }
    }
    Ok(found)
}

fn batches(graph: &Graph, benchmark: &str) -> Result<u64, Failure> {
    let node = graph.nodes().find(|(_, node)| node.id == benchmark && node.op.name() == Benchmark::NAME);
    let exports = node.map(|(_, node)| node.op.exports()).unwrap_or_default();
    let found = exports.into_iter().find(|(name, _)| name == "batches_per_epoch");
    let found = found.and_then(|(_, value)| value.as_u64()).filter(|batches| *batches > 0);
    found.ok_or_else(|| {
        Failure::new(format!("internal error, please report it: `{benchmark}` has no batches"))
    })
}
