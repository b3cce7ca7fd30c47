//! Merges a graph file with the files that it extends.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use prefgraph_ops::words::count;

use super::{
    nearest::advice,
    parse::{FileText, NodeText, Stated, is_name, parse},
    source::{At, Sources, Span, SpecError},
    text_of,
};

/// A graph without `extends`: every node is stated in full.
#[derive(Clone, Debug)]
pub(super) struct Merged {
    pub name: At<String>,
    pub nodes: Vec<NodeText>,
    pub loss: Option<At<String>>,
    pub carry: Vec<Stated>,
    pub run: Vec<Stated>,
    pub cache: Vec<Stated>,
    /// Nodes that a child took away, for errors about those who still read them.
    pub removed: Vec<At<String>>,
}

impl Merged {
    pub fn node(&self, id: &str) -> Option<&NodeText> {
        self.nodes.iter().find(|n| n.id.value == id)
    }

    /// The places of all nodes whose names begin as one that ends in `*` says; nothing where it does not end so.
    pub fn starred(&self, name: &str) -> Option<Vec<usize>> {
        let start = name.strip_suffix('*')?;
        let places = self.ids().zip(0..).filter(|(id, _)| id.starts_with(start));
        Some(places.map(|(_, place)| place).collect())
    }

    /// Names of all nodes.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|n| n.id.value.as_str())
    }
}

/// The graph in `file`, which was read from `path` if it is a file.
pub(super) fn merge(
    sources: &mut Sources,
    file: usize,
    path: Option<&Path>,
) -> Result<Merged, Box<SpecError>> {
    let mut chain = vec![(file, parse(sources, file)?)];
    let mut seen: HashSet<PathBuf> = path.map(identity).into_iter().collect();
    loop {
        let (child, text) = &chain[chain.len() - 1];
        let Some(extends) = text.extends.first().cloned() else { break };
        let parent = sources.folder(*child).join(&extends.value);
        if !seen.insert(identity(&parent)) {
            let message =
                format!("`{}` extends itself, by way of {}", extends.value, count(chain.len(), "file"));
            return Err(sources.error(message, extends.span, "already part of this graph"));
        }
        chain.push(read(sources, &parent, &extends)?);
    }
    let mut merged: Option<Merged> = None;
    for (file, text) in chain.into_iter().rev() {
        merged = Some(match merged {
            None => root(sources, file, text)?,
            Some(parent) => {
                let parent = overlaid(sources, file, parent, text.extends.get(1..).unwrap_or_default())?;
                extend(sources, parent, text)?
            }
        });
    }
    merged.ok_or_else(|| SpecError::nowhere("internal error, please report it: no file was read"))
}

/// A file that another one extends.
fn read(
    sources: &mut Sources,
    path: &Path,
    extends: &At<String>,
) -> Result<(usize, FileText), Box<SpecError>> {
    let text = text_of(path).map_err(|e| {
        let message = format!("cannot read `{}`: {e}", path.display());
        let error = sources.error(message, extends.span, "not a file that can be read");
        error.help("the path is relative to the file that states it")
    })?;
    let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
    let added = sources.add(shown(path), text, &folder);
    Ok((added, parse(sources, added)?))
}

/// The parent with files laid over it, in their order: what several graphs change in the same way.
fn overlaid(
    sources: &mut Sources,
    child: usize,
    parent: Merged,
    files: &[At<String>],
) -> Result<Merged, Box<SpecError>> {
    files.iter().try_fold(parent, |merged, extends| {
        let path = sources.folder(child).join(&extends.value);
        let (_, text) = read(sources, &path, extends)?;
        if let Some(own) = text.extends.first() {
            let message =
                format!("`{}` is laid over another graph, and cannot extend one itself", extends.value);
            let error = sources.error(message, own.span, "a parent of its own");
            let error = sources.also(error, extends.span, "laid over here");
            return Err(error.help("only the first file of `extends` may have a parent"));
        }
        extend(sources, merged, text)
    })
}

/// A path as somebody in the current folder would write it.
fn shown(path: &Path) -> String {
    let path = identity(path);
    let here = std::env::current_dir().map(|here| identity(&here)).unwrap_or_default();
    path.strip_prefix(here).unwrap_or(&path).display().to_string()
}

/// A file is the same file under every name.
fn identity(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn root(sources: &Sources, file: usize, text: FileText) -> Result<Merged, Box<SpecError>> {
    let start = Span { file, start: 0, end: 0 };
    if let Some(id) = text.remove.first() {
        let error =
            sources.error("only a graph that extends another can remove nodes", id.span, "from what?");
        return Err(error.help("state the parent as `extends: \"file.ron\"`"));
    }
    let name = text.name.unwrap_or_else(|| {
        let shown = Path::new(sources.name(file)).file_stem().map(|s| s.to_string_lossy().into_owned());
        At { value: shown.filter(|name| is_name(name)).unwrap_or_else(|| "graph".into()), span: start }
    });
    for node in &text.nodes {
        if node.op.is_none() {
            return Err(no_operator(sources, node, &[]));
        }
    }
    let mut carry = Vec::with_capacity(text.carry.len());
    for (cell, next) in text.carry {
        match next {
            Some(next) => carry.push((cell, next)),
            None => return Err(no_cell(sources, &cell, &[])),
        }
    }
    let FileText { nodes, loss, run, cache, .. } = text;
    Ok(Merged { name, nodes, loss, carry, run, cache, removed: Vec::new() })
}

fn no_operator(sources: &Sources, node: &NodeText, parents: &[&str]) -> Box<SpecError> {
    let id = &node.id.value;
    let error = sources.error(format!("node `{id}` states no `op`"), node.id.span, "what does it compute?");
    if parents.is_empty() {
        return error.help("state the operator, as in `op: \"noise\"`; `graph-run ops` lists all");
    }
    let nodes = advice("nodes of the parent", id, parents.iter().copied());
    error.help(format!("state the operator, or name a node of the parent; {nodes}"))
}

fn no_cell(sources: &Sources, cell: &At<String>, cells: &[&str]) -> Box<SpecError> {
    let help = advice("cells of the parent", &cell.value, cells.iter().copied());
    let message = format!("the parent carries no `{}` that could be taken away", cell.value);
    sources.error(message, cell.span, "not a cell").help(help)
}

fn extend(sources: &Sources, parent: Merged, child: FileText) -> Result<Merged, Box<SpecError>> {
    let mut out = parent;
    if let Some(name) = child.name {
        out.name = name;
    }
    remove(sources, &mut out, &child.remove)?;
    let mut index: HashMap<String, usize> = out.ids().map(str::to_owned).zip(0..).collect();
    for node in child.nodes {
        match index.get(&node.id.value) {
            Some(&old) => override_node(&mut out.nodes[old], node),
            None if node.op.is_none() => {
                let ids: Vec<&str> = out.ids().collect();
                return Err(no_operator(sources, &node, &ids));
            }
            None => {
                index.insert(node.id.value.clone(), out.nodes.len());
                out.nodes.push(node);
            }
        }
    }
    if child.loss.is_some() {
        out.loss = child.loss;
    }
    let mut index: HashMap<String, usize> = out.carry.iter().map(|(c, _)| c.value.clone()).zip(0..).collect();
    let mut gone = HashSet::new();
    for (cell, next) in child.carry {
        match (index.get(&cell.value), next) {
            (Some(&at), Some(next)) => out.carry[at] = (cell, next),
            (Some(_), None) => drop(gone.insert(cell.value)),
            (None, Some(next)) => {
                index.insert(cell.value.clone(), out.carry.len());
                out.carry.push((cell, next));
            }
            (None, None) => {
                let cells: Vec<&str> = out.carry.iter().map(|c| c.0.value.as_str()).collect();
                return Err(no_cell(sources, &cell, &cells));
            }
        }
    }
    out.carry.retain(|(cell, _)| !gone.contains(&cell.value));
    put_all(&mut out.run, child.run);
    put_all(&mut out.cache, child.cache);
    Ok(out)
}

/// Take away the nodes of these names, and of a name that ends in `*` all nodes whose names begin so.
fn remove(sources: &Sources, out: &mut Merged, ids: &[At<String>]) -> Result<(), Box<SpecError>> {
    let index: HashMap<&str, usize> = out.ids().zip(0..).collect();
    let mut gone: Vec<Option<Span>> = vec![None; out.nodes.len()];
    for id in ids {
        let one = || -> Vec<usize> { index.get(id.value.as_str()).copied().into_iter().collect() };
        let meant = out.starred(&id.value).unwrap_or_else(one);
        let left: Vec<usize> = meant.iter().copied().filter(|at| gone[*at].is_none()).collect();
        if let Some(at) = meant.first().filter(|_| left.is_empty()) {
            let message = format!("`{}` is removed twice", id.value);
            let error = sources.error(message, id.span, "once more");
            return Err(match gone[*at] {
                Some(first) => sources.also(error, first, "removed here"),
                None => error,
            });
        }
        if left.is_empty() {
            let remaining = out.ids().zip(&gone).filter(|(_, gone)| gone.is_none()).map(|(name, _)| name);
            let help = advice("nodes of the parent", &id.value, remaining);
            let message = format!("the parent has no node `{}` to remove", id.value);
            return Err(sources.error(message, id.span, "not a node").help(help));
        }
        left.into_iter().for_each(|at| gone[at] = Some(id.span));
    }
    let mut names = HashSet::new();
    for (node, gone) in std::mem::take(&mut out.nodes).into_iter().zip(gone) {
        match gone {
            None => out.nodes.push(node),
            Some(span) => {
                names.insert(node.id.value.clone());
                out.removed.push(At { value: node.id.value, span });
            }
        }
    }
    // A cell that is gone carries nothing.
    out.carry.retain(|(cell, _)| !names.contains(&cell.value));
    Ok(())
}

/// `new` over `old`: key by key, or whole if the operator is another.
fn override_node(old: &mut NodeText, new: NodeText) {
    if let Some(op) = &new.op {
        if old.op.as_ref().is_none_or(|o| o.value != op.value) {
            *old = new;
            return;
        }
        old.op = new.op;
    }
    old.id = new.id;
    old.with = new.with.or(old.with);
    put_all(&mut old.inputs, new.inputs);
    put_all(&mut old.settings, new.settings);
}

/// Every entry of `new`, in place of the one of the same name.
fn put_all<V>(all: &mut Vec<(At<String>, V)>, new: Vec<(At<String>, V)>) {
    for (key, value) in new {
        put(all, key, value);
    }
}

/// An entry, in place of the one of the same name.
pub(super) fn put<V>(all: &mut Vec<(At<String>, V)>, key: At<String>, value: V) {
    match all.iter_mut().find(|(k, _)| k.value == key.value) {
        Some(entry) => *entry = (key, value),
        None => all.push((key, value)),
    }
}
