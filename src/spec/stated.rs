//! Reads a resolved graph without building operators.

use std::{collections::BTreeMap, path::Path};

use super::{
    parse::parse,
    source::{Sources, SpecError},
};

/// The name and the nodes of a graph file, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stated {
    /// Its name, if it states one.
    pub name: Option<String>,
    /// By id.
    pub nodes: BTreeMap<String, StatedNode>,
}

/// What a graph file states of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatedNode {
    /// Its operator.
    pub op: String,
    /// Settings as RON, by name.
    pub settings: BTreeMap<String, String>,
}

/// Read the text of a resolved graph; operators need not be known, and no file is opened.
///
/// # Errors
/// If it is no graph file.
pub fn stated(resolved: &str) -> Result<Stated, Box<SpecError>> {
    let mut sources = Sources::default();
    let file = sources.add("the resolved graph", resolved, Path::new("."));
    let graph = parse(&sources, file)?;
    let node = |node: super::parse::NodeText| {
        let settings = node.settings.into_iter().map(|(key, value)| (key.value, value.value)).collect();
        (node.id.value, StatedNode { op: node.op.map(|op| op.value).unwrap_or_default(), settings })
    };
    Ok(Stated { name: graph.name.map(|n| n.value), nodes: graph.nodes.into_iter().map(node).collect() })
}
