//! The `cache` section of a graph file, and errors with their place.

use prefgraph_nn::cuda;

use super::{
    CacheSettings, gpu_number,
    merge::Merged,
    scan,
    source::{At, Sources, Span, SpecError},
    text,
};
use crate::{
    cache::{Cache, CacheError},
    graph::Graph,
};

/// Put the cache before the nodes that are named.
pub(super) fn attach(
    sources: &Sources,
    merged: &Merged,
    graph: &mut Graph,
    settings: &CacheSettings,
    device: &str,
) -> Result<Option<Cache>, Box<SpecError>> {
    let Some((_, nodes)) = merged.cache.iter().find(|(key, _)| key.value == "nodes") else {
        return match merged.cache.first() {
            None => Ok(None),
            Some((key, _)) => {
                let error = sources.error("`cache` names no nodes", key.span, "a cache of what?");
                Err(error.help("name them, as in `nodes: [\"winner\", \"prompt\"]`; `nodes: []` is no cache"))
            }
        };
    };
    if settings.nodes.is_empty() {
        return Ok(None);
    }
    if settings.path.is_empty() {
        let error = sources.error("`cache` has no `path`", nodes.span, "kept where?");
        return Err(
            error.help("name a folder, as in `path: \"cache\"`; it is relative to the file that states it")
        );
    }
    let cache = Cache::attach(graph, settings.path.as_path(), &settings.nodes, gpu(device).as_deref());
    cache.map(Some).map_err(|e| shown(sources, nodes, &e))
}

/// What the GPU of this name is, as far as can be told before it is opened; nothing for the processor.
fn gpu(device: &str) -> Option<String> {
    let number = gpu_number(device)?;
    let known = cuda::devices().ok().and_then(|all| all.into_iter().find(|gpu| gpu.ordinal == number));
    Some(known.map_or_else(|| device.to_owned(), |gpu| gpu.name))
}

/// The error, at the name of the node that it is about.
fn shown(sources: &Sources, nodes: &At<String>, error: &CacheError) -> Box<SpecError> {
    let span = error.node.as_ref().and_then(|node| place(nodes, node)).unwrap_or(nodes.span);
    let shown = sources.error(error.to_string(), span, "this node");
    match &error.help {
        Some(help) => shown.help(help),
        None => shown,
    }
}

/// Where a list of texts names a node.
fn place(nodes: &At<String>, node: &str) -> Option<Span> {
    let named = |range: &std::ops::Range<usize>| {
        text::read::<String>(&nodes.value[range.clone()]).is_ok_and(|name| name == node)
    };
    // The last one: of a name that is there twice, the second is one too many.
    let found = scan::strings(&nodes.value).into_iter().rfind(named)?;
    Some(nodes.span.part(&nodes.value, found))
}
