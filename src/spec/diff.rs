//! Differences between two resolved graphs.

use std::{collections::BTreeMap, path::Path};

use super::{
    parse::{FileText, NodeText, Stated, Wiring, parse},
    run_settings::FREE,
    source::{At, Sources, SpecError},
};

/// What a graph says, by name: `node` is its operator, `node.setting` and `node.in.input` are what they say. Node and settings are told
/// apart by the dot, which no id has.
pub type Facts = BTreeMap<String, String>;

/// One difference, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What is different: `node.setting`, `node`, `loss`, ...
    pub what: String,
    /// In the old graph, if it is there.
    pub old: Option<String>,
    /// In the new graph, if it is there.
    pub new: Option<String>,
    /// Does it leave every bit of what is computed as it is?
    pub harmless: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => write!(f, "{}: {old} -> {new}", self.what),
            (Some(old), None) => write!(f, "{} was removed (it was {old})", self.what),
            (None, Some(new)) => write!(f, "{} was added ({new})", self.what),
            (None, None) => f.write_str(&self.what),
        }
    }
}

/// All differences between two resolved graphs.
///
/// # Errors
/// If one of them is not a graph file.
pub fn diff(old: &str, new: &str) -> Result<Vec<Change>, Box<SpecError>> {
    let mut sources = Sources::default();
    let mut table = |name: &str, text: &str| {
        let file = sources.add(name, text, Path::new("."));
        Ok::<_, Box<SpecError>>(facts(&parse(&sources, file)?))
    };
    let (old, new) = (table("the old graph", old)?, table("the new graph", new)?);
    Ok(compare(&old, &new))
}

/// All differences between what two graphs say.
pub(crate) fn compare(old: &Facts, new: &Facts) -> Vec<Change> {
    let mut changes = Vec::new();
    for what in old.keys().chain(new.keys().filter(|k| !old.contains_key(*k))) {
        let (a, b) = (old.get(what), new.get(what));
        // A node that came or went is one change, not one a setting.
        let node = what.split_once('.').map(|(node, _)| node.to_owned());
        let whole =
            node.is_some_and(|n| n != "run" && n != "cache" && old.contains_key(&n) != new.contains_key(&n));
        if a == b || whole {
            continue;
        }
        let free = what.strip_prefix("run.").is_some_and(|field| FREE.contains(&field));
        let harmless = free || what.starts_with("cache.");
        changes.push(Change { what: what.clone(), old: a.cloned(), new: b.cloned(), harmless });
    }
    changes
}

/// Everything that a graph says.
fn facts(graph: &FileText) -> Facts {
    let (nodes, loss) = (&graph.nodes, graph.loss.as_ref());
    let carry = graph.carry.iter().filter_map(|(cell, next)| Some((cell, next.as_ref()?)));
    facts_of(nodes, loss, carry, &graph.run, &graph.cache, str::to_owned)
}

/// The same of the parts of a graph, with paths of outputs as `path` writes them.
pub(super) fn facts_of<'a>(
    nodes: &[NodeText],
    loss: Option<&At<String>>,
    carry: impl Iterator<Item = (&'a At<String>, &'a At<String>)>,
    run: &[Stated],
    cache: &[Stated],
    path: impl Fn(&str) -> String,
) -> Facts {
    let mut facts = Facts::new();
    for node in nodes {
        let id = &node.id.value;
        facts.insert(id.clone(), node.op.as_ref().map(|o| o.value.clone()).unwrap_or_default());
        for (name, wiring) in &node.inputs {
            let list = |paths: &[At<String>]| {
                let paths: Vec<String> = paths.iter().map(|p| path(&p.value)).collect();
                format!("[{}]", paths.join(", "))
            };
            let text = match wiring {
                Wiring::Nothing(_) => continue,
                Wiring::One(from) => path(&from.value),
                Wiring::List(paths, _) => list(paths),
            };
            facts.insert(format!("{id}.in.{}", name.value), text);
        }
        for (key, value) in &node.settings {
            facts.insert(format!("{id}.{}", key.value), value.value.clone());
        }
    }
    if let Some(loss) = loss {
        facts.insert("the loss".into(), path(&loss.value));
    }
    for (cell, next) in carry {
        facts.insert(format!("the carry of {}", path(&cell.value)), path(&next.value));
    }
    for (key, value) in run {
        facts.insert(format!("run.{}", key.value), value.value.clone());
    }
    for (key, value) in cache {
        facts.insert(format!("cache.{}", key.value), value.value.clone());
    }
    facts
}

/// Every node of a resolved graph: its id, its operator, and its settings as `(name: value, ...)`.
pub(crate) fn nodes(resolved: &str) -> Vec<(String, String, String)> {
    let mut sources = Sources::default();
    let file = sources.add("the resolved graph", resolved, Path::new("."));
    let Ok(graph) = parse(&sources, file) else { return Vec::new() };
    let node = |node: super::parse::NodeText| {
        let settings: Vec<String> =
            node.settings.iter().map(|(k, v)| format!("{}: {}", k.value, v.value)).collect();
        (node.id.value, node.op.map(|op| op.value).unwrap_or_default(), format!("({})", settings.join(", ")))
    };
    graph.nodes.into_iter().map(node).collect()
}

/// Every setting that a resolved graph states.
pub(super) fn settings(resolved: &str) -> Vec<(String, String)> {
    let mut sources = Sources::default();
    let file = sources.add("the resolved graph", resolved, Path::new("."));
    let Ok(graph) = parse(&sources, file) else { return Vec::new() };
    let settings = |owner: &str, all: &[Stated]| -> Vec<(String, String)> {
        all.iter().map(|(k, v)| (format!("{owner}.{}", k.value), v.value.clone())).collect()
    };
    let nodes = graph.nodes.iter().flat_map(|n| settings(&n.id.value, &n.settings));
    nodes.chain(settings("run", &graph.run)).chain(settings("cache", &graph.cache)).collect()
}
