//! Reads a resolved graph without building operators.

use std::{collections::BTreeMap, path::Path};

use super::{
    parse::{Wiring, parse},
    source::{At, Sources, SpecError},
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
    /// The nodes that it reads, by the input: of those that read one output of a node.
    pub reads: BTreeMap<String, String>,
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
        let read = |(input, wiring): (At<String>, Wiring)| match wiring {
            Wiring::One(path) => Some((input.value, path.value.split('.').next()?.to_owned())),
            Wiring::Nothing(_) | Wiring::List(..) => None,
        };
        let reads = node.inputs.into_iter().filter_map(read).collect();
        (node.id.value, StatedNode { op: node.op.map(|op| op.value).unwrap_or_default(), settings, reads })
    };
    Ok(Stated { name: graph.name.map(|n| n.value), nodes: graph.nodes.into_iter().map(node).collect() })
}
