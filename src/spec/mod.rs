//! Graphs from RON files, with errors that point into the file.
//!
//! ```text
//!  source, excerpt        texts and places in them, and what an error shows of a text
//!  syntax, scan           one level of RON at a time, with the place of every part
//!  parse -> merge -> set  one file; a chain of files as one; settings of the command line over it
//!  over                   lists of values on the command line: variants
//!  resolve -> wire        references followed and operators built; names become wires
//!  caching                nodes that a cache stands before
//!  resolved, diff         a graph as one flat file; how two of them differ
//!  outline                what a graph states of its nodes, without building them
//!  stated                 what such a file says, without building anything from it
//! ```
//!
//! **Architecture invariant:** of this crate, only this module knows RON.

mod caching;
mod complain;
mod diff;
mod excerpt;
mod merge;
mod nearest;
mod outline;
mod over;
mod parse;
mod paths;
mod resolve;
mod resolved;
mod run_settings;
mod scan;
mod set;
mod source;
mod stated;
mod syntax;
pub mod text;
mod wire;

use std::{
    io::{self, Read},
    path::Path,
};

pub use diff::{Change, Facts, diff};
pub(crate) use diff::{compare, nodes};
pub(crate) use nearest::advice;
pub use outline::Outline;
pub use over::Overs;
pub(crate) use run_settings::{CPU, DEVICES, gpu_number, is_device};
pub use run_settings::{CacheSettings, RunSettings};
pub use source::SpecError;
pub use stated::{Stated, StatedNode, stated};

use prefgraph_nn::files::open_regular;
use prefgraph_ops::Operator;

use crate::{cache::Cache, graph::Graph, registry::Registry};

use merge::Merged;
use source::Sources;

/// A graph file, loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What it describes.
    pub graph: Graph,
    /// What it says about the run.
    pub run: RunSettings,
    /// The cache before some of its nodes, if it has one.
    pub cache: Option<Cache>,
    /// The same graph as one flat file, with all defaults and absolute paths.
    pub resolved: String,
    /// The settings over the file, with absolute paths.
    pub sets: Vec<String>,
    cached: CacheSettings,
    sources: Sources,
    merged: Merged,
}

/// The name of the graph in the file at `path`: the rest is not looked at.
///
/// # Errors
/// As [`load`], as far as that needs no operator.
pub fn name(path: &Path) -> Result<String, Box<SpecError>> {
    let mut sources = Sources::default();
    let (text, folder) = read(path)?;
    let file = sources.add(path.display().to_string(), text, folder);
    Ok(merge::merge(&mut sources, file, Some(path))?.name.value)
}

/// The text of a graph file, and the folder that paths in it are relative to.
fn read(path: &Path) -> Result<(String, &Path), Box<SpecError>> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let text = text_of(path).map_err(|e| {
        let error = SpecError::nowhere(format!("cannot read the graph `{}`: {e}", path.display()));
        match beside(path, folder).filter(|_| e.kind() == io::ErrorKind::NotFound || path.is_dir()) {
            Some(help) => error.help(help),
            None => error,
        }
    })?;
    Ok((text, folder))
}

/// No graph that people write is longer.
const MOST_BYTES: u64 = 16 << 20;

/// The text of a graph file.
///
/// # Errors
/// If it cannot be read, or is no text of a size that people write: a pipe or a device could hold the program up, or give without an end.
fn text_of(path: &Path) -> io::Result<String> {
    let file = open_regular(path)?;
    let bytes = file.metadata()?.len();
    if bytes > MOST_BYTES {
        let message = format!("it has {} MB, which no graph has: is it another file?", bytes >> 20);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut text = String::new();
    file.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// What may have been meant by `path`, which is no graph file in `folder`.
fn beside(path: &Path, folder: &Path) -> Option<String> {
    if path.is_dir() {
        let graph = path.join("graph.ron");
        let resume = || format!("it is the folder of a run, whose graph is `{}`", graph.display());
        return Some(if graph.is_file() {
            resume()
        } else {
            "it is a folder: name the graph file in it".into()
        });
    }
    let name = path.file_name()?.to_string_lossy().into_owned();
    let files =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let graphs: Vec<String> = files.filter(|file| file.ends_with(".ron")).collect();
    let near = nearest::nearest(&name, graphs.iter().map(String::as_str))?;
    Some(format!("did you mean `{}`?", path.with_file_name(near).display()))
}

/// Load the graph file at `path`, with settings `node.setting=VALUE` over it.
///
/// # Errors
/// If a file cannot be read, or is not a graph of operators in `registry`; the error shows the place.
pub fn load(path: &Path, sets: &[String], registry: &Registry) -> Result<Loaded, Box<SpecError>> {
    let (text, folder) = read(path)?;
    load_from(&path.display().to_string(), &text, folder, Some(path), sets, registry)
}

/// The settings of every node whose operator is `O`, by the node's id: with references followed, paths absolute and
/// defaults filled in. These nodes are not built, so that what they would refuse can be looked at.
///
/// # Errors
/// As [`load`], but for what only building these nodes would find.
pub fn settings_of<O: Operator>(
    path: &Path,
    sets: &[String],
    registry: &Registry,
) -> Result<Vec<(String, O::Settings)>, Box<SpecError>> {
    Outline::open(path, sets, registry)?.settings_of::<O>()
}

/// Load a graph from its text; `name` is shown in errors, relative paths are relative to `folder`.
///
/// # Errors
/// As [`load`].
pub fn load_text(
    name: &str,
    text: &str,
    folder: &Path,
    sets: &[String],
    registry: &Registry,
) -> Result<Loaded, Box<SpecError>> {
    load_from(name, text, folder, None, sets, registry)
}

fn load_from(
    name: &str,
    text: &str,
    folder: &Path,
    path: Option<&Path>,
    sets: &[String],
    registry: &Registry,
) -> Result<Loaded, Box<SpecError>> {
    let mut sources = Sources::default();
    let (merged, sets) = merged(&mut sources, name, text, folder, path, sets, registry)?;
    let mut loaded = build(sources, merged, sets, registry)?;
    let mut graph = std::mem::take(&mut loaded.graph);
    loaded.cache = loaded.attach_cache(&mut graph, |id| vec![id.to_owned()])?;
    loaded.graph = graph;
    Ok(loaded)
}

/// The graph that these texts state, without its cache.
fn build(
    sources: Sources,
    merged: Merged,
    sets: Vec<String>,
    registry: &Registry,
) -> Result<Loaded, Box<SpecError>> {
    let (built, run, mut cached) = resolve::Resolver::new(&sources, &merged, registry)?.all()?;
    // A parent's list may name nodes that a child took away: they are not cached any more, and that is no mistake.
    let removed = |id: &String| merged.node(id).is_none() && merged.removed.iter().any(|r| r.value == *id);
    cached.nodes.retain(|id| !removed(id));
    let internal = |e: String| SpecError::nowhere(format!("internal error, please report it: {e}"));
    let settings = built.iter().map(|b| text::fields(&b.settings)).collect::<Result<Vec<_>, _>>();
    let settings = settings.map_err(internal)?;
    let graph = wire::wire(&sources, &merged, built)?;
    let resolved = resolved::resolved(&graph, &merged, &settings, &run, &cached).map_err(internal)?;
    Ok(Loaded { graph, run, cache: None, resolved, sets, cached, sources, merged })
}

/// A chain of files as one, with the settings of the command line over it.
fn merged(
    sources: &mut Sources,
    name: &str,
    text: &str,
    folder: &Path,
    path: Option<&Path>,
    sets: &[String],
    registry: &Registry,
) -> Result<(Merged, Vec<String>), Box<SpecError>> {
    let file = sources.add(name, text, folder);
    let mut merged = merge::merge(sources, file, path)?;
    let sets = set::apply(sources, &mut merged, sets, Path::new("."), registry)?;
    Ok((merged, sets))
}

/// What to say where `name` is no operator.
pub(crate) fn unknown_operator(name: &str, registry: &Registry) -> String {
    let help = nearest::advice("operators", name, registry.iter().map(|e| e.name));
    format!("there is no operator `{name}`; {help}")
}

impl Loaded {
    /// Put the cache that the file states before nodes of `graph`, which are found by what `named` says for each id of the file.
    ///
    /// # Errors
    /// If a node cannot be cached; the error shows the place.
    pub fn attach_cache(
        &self,
        graph: &mut Graph,
        named: impl Fn(&str) -> Vec<String>,
    ) -> Result<Option<Cache>, Box<SpecError>> {
        let nodes = self.cached.nodes.iter().flat_map(|id| named(id)).collect();
        let settings = CacheSettings { nodes, path: self.cached.path.clone() };
        caching::attach(&self.sources, &self.merged, graph, &settings, &self.run.device)
    }

    /// An error about a node, or one of its inputs, shown where the file states it.
    pub fn error_at(&self, node: &str, input: Option<&str>, message: &str) -> Box<SpecError> {
        let Some(spec) = self.merged.node(node) else { return SpecError::nowhere(message) };
        let wiring = input.and_then(|input| spec.inputs.iter().find(|(name, _)| name.value == input));
        match wiring {
            Some((name, _)) => self.sources.error(message, name.span, "this input"),
            None => {
                let span = spec.op.as_ref().map_or(spec.id.span, |op| op.span);
                // What the command line set comes first: the file may have been right without it.
                let mut sets = complain::from_command_line(&self.sources, spec).take(6);
                let error = match sets.next() {
                    Some((_, value)) => {
                        let error = self.sources.error(message, value.span, "with this setting");
                        self.sources.also(error, span, "of this operator")
                    }
                    None => self.sources.error(message, span, "this operator"),
                };
                let error = sets.fold(error, |error, (_, value)| {
                    self.sources.also(error, value.span, "with this setting")
                });
                // Where its inputs come from, since shapes come from there.
                spec.inputs.iter().take(6).fold(error, |error, (name, _)| {
                    self.sources.also_there(error, name.span, "with this input")
                })
            }
        }
    }

    /// Every setting of every node and of the run, as `node.setting` and its text.
    pub fn settings(&self) -> Vec<(String, String)> {
        diff::settings(&self.resolved)
    }
}
