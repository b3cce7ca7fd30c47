//! The `cache` section of a graph file, and errors with their place.

use super::{
    CacheSettings,
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
    let cache = Cache::attach(graph, settings.path.as_path(), &settings.nodes);
    cache.map(Some).map_err(|e| shown(sources, nodes, &e))
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
