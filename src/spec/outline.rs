//! What a graph file states of its nodes, without building them.

use prefgraph_ops::Operator;

use super::{
    diff::{self, Facts},
    merge::Merged,
    merged,
    parse::Wiring,
    read,
    resolve::Resolver,
    set,
    source::{Sources, SpecError},
    text,
};
use crate::{
    graph::{Path, Tap},
    registry::Registry,
};

/// The nodes of a graph file with their settings and wires. What an operator would refuse, such as a file that is absent,
/// can be looked at here.
pub struct Outline<'r> {
    sources: Sources,
    merged: Merged,
    registry: &'r Registry,
}

impl<'r> Outline<'r> {
    /// Read the graph file at `path`, with settings `node.setting=VALUE` over it.
    ///
    /// # Errors
    /// If a file cannot be read or is no graph.
    pub fn open(
        path: &std::path::Path,
        sets: &[String],
        registry: &'r Registry,
    ) -> Result<Self, Box<SpecError>> {
        let (text, folder) = read(path)?;
        let mut sources = Sources::default();
        let name = path.display().to_string();
        let (merged, _) = merged(&mut sources, &name, &text, folder, Some(path), sets, registry)?;
        Ok(Self { sources, merged, registry })
    }

    /// The name of the graph.
    pub fn name(&self) -> &str {
        &self.merged.name.value
    }

    /// The device that the graph states for its networks; none where it leaves that open.
    ///
    /// # Errors
    /// If what it states is no text.
    pub fn device(&self) -> Result<Option<String>, Box<SpecError>> {
        let Some((_, value)) = self.merged.run.iter().find(|(key, _)| key.value == "device") else {
            return Ok(None);
        };
        let read = text::read(&value.value);
        read.map(Some)
            .map_err(|e| self.sources.error(format!("`run.device`: {e}"), value.span, "no name of a device"))
    }

    /// Does the setting of this `node.setting=VALUE` belong to the graph, to one of its nodes or to all of it?
    pub fn has_place_for(&self, set: &str) -> bool {
        set::parts(set)
            .is_none_or(|(owner, ..)| matches!(owner, "run" | "cache") || self.merged.node(owner).is_some())
    }

    /// The settings of every node whose operator is `O`, by the node's id, in the order of the file: with references followed,
    /// paths absolute and defaults filled in.
    ///
    /// # Errors
    /// If a setting is none of its operator, or a reference leads nowhere.
    pub fn settings_of<O: Operator>(&self) -> Result<Vec<(String, O::Settings)>, Box<SpecError>> {
        Resolver::new(&self.sources, &self.merged, self.registry)?.settings_of::<O>()
    }

    /// All that the graph says, with every default. Nothing is built, so that the file of a weight need not be there: a reference that
    /// only a built operator could follow stays as it is written.
    ///
    /// # Errors
    /// If a node's operator is not known.
    pub fn facts(&self) -> Result<Facts, Box<SpecError>> {
        let Merged { nodes, loss, carry, run, cache, .. } = &self.merged;
        let carry = carry.iter().map(|(cell, next)| (cell, next));
        let path = |path: &str| self.short(path);
        let mut facts = diff::facts_of(nodes, loss.as_ref(), carry, run, cache, path);
        facts.extend(Resolver::new(&self.sources, &self.merged, self.registry)?.known_settings());
        Ok(facts)
    }

    /// The path of an output as a saved graph has it: a node's only output goes without its name.
    fn short(&self, path: &str) -> String {
        let Path { tap, id, port, .. } = Path::parse(path);
        let entry = self.merged.node(id).and_then(|node| self.registry.get(&node.op.as_ref()?.value));
        let only = entry.is_some_and(|entry| matches!(&entry.outputs[..], [one] if Some(one.name) == port));
        match (only, tap) {
            (true, Tap::Value) => id.to_owned(),
            (true, Tap::Cotangent) => format!("grad:{id}"),
            (false, _) => path.to_owned(),
        }
    }

    /// The ids of the nodes, in the order of the file.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.merged.ids()
    }

    /// The id of the node that `node` reads as `input`; `None` if it reads nothing there, or several.
    pub fn source(&self, node: &str, input: &str) -> Option<&str> {
        let inputs = &self.merged.node(node)?.inputs;
        match inputs.iter().find(|(name, _)| name.value == input) {
            Some((_, Wiring::One(path))) => path.value.split('.').next(),
            _ => None,
        }
    }
}
