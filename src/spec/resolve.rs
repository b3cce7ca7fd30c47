//! Resolves settings: follows references, makes paths absolute, builds operators.

use std::collections::HashMap;

use prefgraph_ops::{Operator, Settings, guard};

use super::{
    CacheSettings, RunSettings, complain,
    merge::Merged,
    nearest::advice,
    parse::{NodeText, Stated},
    paths::absolute,
    source::{At, Sources, Span, SpecError},
    syntax::quote,
    text,
};
use crate::registry::{BuildError, Built, Entry, Registry, SettingEntry, as_saved, setting_entries};

/// References may point to references; nobody needs as many in a row.
const DEEPEST: usize = 64;

/// The operator that a node names.
pub(super) fn entry_of<'r>(
    sources: &Sources,
    registry: &'r Registry,
    node: &NodeText,
) -> Result<&'r Entry, Box<SpecError>> {
    let Some(op) = &node.op else {
        return Err(sources.error(format!("node `{}` states no `op`", node.id.value), node.id.span, "here"));
    };
    registry.get(&op.value).ok_or_else(|| {
        let help = advice("operators", &op.value, registry.iter().map(|e| e.name));
        sources.error(format!("there is no operator `{}`", op.value), op.span, "not an operator").help(help)
    })
}

/// A setting that the operator has not.
pub(super) fn unknown_setting(sources: &Sources, entry: &Entry, key: &At<String>) -> Box<SpecError> {
    let message = format!("`{}` has no setting `{}`", entry.name, key.value);
    let all = entry.settings.iter().map(|s| s.doc.name);
    sources.error(message, key.span, "not a setting").help(advice("settings", &key.value, all))
}

/// A setting that a run or a cache has not.
pub(super) fn no_setting(
    sources: &Sources,
    what: &str,
    at: Span,
    name: &str,
    all: &[SettingEntry],
) -> Box<SpecError> {
    let help = advice(&format!("settings of {what}"), name, all.iter().map(|s| s.doc.name));
    sources.error(format!("{what} has no setting `{name}`"), at, "not a setting").help(help)
}

/// What a reference found, as its setting takes it: a choice (`flow`) and a text of the same word (`"flow"`) stand for
/// one another.
fn as_taken(found: String, takes: impl Fn(&str) -> bool) -> String {
    let word = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == '_') && !text.is_empty();
    let other = match text::read::<String>(&found) {
        Ok(content) if word(&content) => content,
        Err(_) if word(&found) => quote(&found),
        _ => return found,
    };
    if !takes(&found) && takes(&other) { other } else { found }
}

/// Whose settings: a node's, by index, the run's, or the cache's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Node(usize),
    Run,
    Cache,
}

/// A setting's text, and where the text itself (not a reference to it) is stated; `None` for a default.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub text: String,
    pub stated: Option<Span>,
}

/// Follows references and builds operators, each once.
pub(super) struct Resolver<'a> {
    pub sources: &'a Sources,
    pub merged: &'a Merged,
    pub entries: Vec<&'a Entry>,
    index: HashMap<&'a str, usize>,
    built: Vec<Option<Built>>,
    run: Vec<SettingEntry>,
    /// What is being resolved, outermost first, with the place that asked for it.
    path: Vec<(Owner, String, Span)>,
}

impl<'a> Resolver<'a> {
    /// Look up the operators of all nodes.
    pub fn new(
        sources: &'a Sources,
        merged: &'a Merged,
        registry: &'a Registry,
    ) -> Result<Self, Box<SpecError>> {
        let entries = merged.nodes.iter().map(|n| entry_of(sources, registry, n));
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        let index = merged.nodes.iter().enumerate().map(|(i, n)| (n.id.value.as_str(), i)).collect();
        let built = merged.nodes.iter().map(|_| None).collect();
        let run = setting_entries::<RunSettings>();
        Ok(Self { sources, merged, entries, index, built, run, path: Vec::new() })
    }

    /// Every operator, by index of its node, and the settings of the run and of the cache.
    pub fn all(mut self) -> Result<(Vec<Built>, RunSettings, CacheSettings), Box<SpecError>> {
        let merged = self.merged;
        let run: RunSettings = self.settings(Owner::Run, "run", "a run", &merged.run)?;
        if let Some((name, accepted)) = run.fault()
            && let Some((_, value)) = merged.run.iter().find(|(key, _)| key.value == name)
        {
            let message = format!("`run.{name}` cannot be {}", value.value);
            return Err(self.sources.error(message, value.span, "out of range").help(accepted));
        }
        let cache = self.settings(Owner::Cache, "cache", "a cache", &merged.cache)?;
        for node in 0..self.built.len() {
            self.build(node)?;
        }
        Ok((self.built.into_iter().flatten().collect(), run, cache))
    }

    /// The settings of something that is no node.
    fn settings<S: Settings>(
        &mut self,
        owner: Owner,
        name: &str,
        what: &str,
        all: &[Stated],
    ) -> Result<S, Box<SpecError>> {
        let entries = setting_entries::<S>();
        let mut settings = String::from("(");
        for (key, value) in all {
            let Some(entry) = entries.iter().find(|s| s.doc.name == key.value) else {
                return Err(no_setting(self.sources, what, key.span, &key.value, &entries));
            };
            let found = self.stated(owner, entry, value)?;
            let one = format!("{}:{},", key.value, found.text);
            if let Err(e) = text::read::<S>(&format!("({one})")) {
                return Err(complain::mistyped(self.sources, name, entry, value, &found, &e));
            }
            settings += &one;
        }
        settings.push(')');
        text::read(&settings)
            .map_err(|e| SpecError::nowhere(format!("internal error, please report it: {e}")))
    }

    /// The operator of `node`, built if it was not yet.
    fn build(&mut self, node: usize) -> Result<&Built, Box<SpecError>> {
        if self.built[node].is_none() {
            let built = self.build_now(node)?;
            self.built[node] = Some(built);
        }
        let missing = || SpecError::nowhere("internal error, please report it: an operator is missing");
        self.built[node].as_ref().ok_or_else(missing)
    }

    /// See [`spec::settings_of`](super::settings_of).
    pub fn settings_of<O: Operator>(mut self) -> Result<Vec<(String, O::Settings)>, Box<SpecError>> {
        let mut found = Vec::new();
        for node in 0..self.built.len() {
            if self.entries[node].name != O::NAME {
                continue;
            }
            let text = self.settings_text(node)?;
            let (spec, entry) = (&self.merged.nodes[node], self.entries[node]);
            let settings = text::read::<O::Settings>(&text)
                .map_err(|e| complain::refused(self.sources, spec, entry, &e.to_string(), &[]))?;
            found.push((spec.id.value.clone(), settings));
        }
        Ok(found)
    }

    /// Every setting of every node, of the run too, by `node.setting`, as a run saves them: with references followed as far as that needs no
    /// operator, and defaults.
    pub fn known_settings(mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let merged = self.merged;
        for (node, spec) in merged.nodes.iter().enumerate() {
            let entry = self.entries[node];
            for setting in &entry.settings {
                let stated = spec.settings.iter().find(|(key, _)| key.value == setting.doc.name);
                let text = self.known(Owner::Node(node), setting, stated.map(|(_, value)| value));
                let text = as_saved(setting.doc.name, text, |stated| entry.complete(stated).ok());
                all.push((format!("{}.{}", spec.id.value, setting.doc.name), text));
            }
        }
        for setting in self.run.clone() {
            let stated = merged.run.iter().find(|(key, _)| key.value == setting.doc.name);
            let text = self.known(Owner::Run, &setting, stated.map(|(_, value)| value));
            let complete = |stated: &str| text::write(&text::read::<RunSettings>(stated).ok()?).ok();
            let text = as_saved(setting.doc.name, text, complete);
            all.push((format!("run.{}", setting.doc.name), text));
        }
        all
    }

    /// A setting's value; the reference itself where it cannot be followed yet.
    fn known(&mut self, owner: Owner, setting: &SettingEntry, stated: Option<&At<String>>) -> String {
        let Some(value) = stated else { return setting.default.clone() };
        let found = self.stated(owner, setting, value);
        self.path.clear();
        found.map_or_else(|_| value.value.clone(), |found| found.text)
    }

    /// The settings of a node as `(name: value, ...)`: those that are stated, with references followed.
    fn settings_text(&mut self, node: usize) -> Result<String, Box<SpecError>> {
        let (spec, entry) = (&self.merged.nodes[node], self.entries[node]);
        let mut settings = String::from("(");
        for (key, value) in &spec.settings {
            let known = entry.setting(&key.value).ok_or_else(|| unknown_setting(self.sources, entry, key))?;
            let mut found = self.stated(Owner::Node(node), known, value)?;
            if found.stated != Some(value.span) {
                found.text =
                    as_taken(found.text, |text| entry.check(&format!("({}:{text})", key.value)).is_ok());
            }
            let one = format!("{}:{},", key.value, found.text);
            if let Err(BuildError::Text(e)) = entry.check(&format!("({one})"))
                && !complain::is_about_another(&e)
            {
                return Err(complain::mistyped(self.sources, entry.name, known, value, &found, &e));
            }
            settings += &one;
        }
        settings.push(')');
        Ok(settings)
    }

    fn build_now(&mut self, node: usize) -> Result<Built, Box<SpecError>> {
        let settings = self.settings_text(node)?;
        let (spec, entry) = (&self.merged.nodes[node], self.entries[node]);
        // An operator of a user may panic on a setting; that is an error of that operator, shown in place.
        let built = guard::catch(|| entry.build(&settings)).unwrap_or_else(|panic| {
            Err(BuildError::Refused(prefgraph_ops::OpError::internal(format!("a panic: {panic}"))))
        });
        built.map_err(|e| {
            let why = match e {
                BuildError::Text(e) => e.to_string(),
                BuildError::Refused(e) => e.to_string(),
            };
            complain::refused(self.sources, spec, entry, &why, &self.origins(node))
        })
    }

    /// The settings of a node that refer to others, by the places of their values, with the places of those.
    fn origins(&mut self, node: usize) -> Vec<(Span, Span)> {
        let (spec, entry) = (&self.merged.nodes[node], self.entries[node]);
        let origin = |(key, value): &Stated| {
            let found = self.stated(Owner::Node(node), entry.setting(&key.value)?, value).ok()?;
            found.stated.filter(|origin| *origin != value.span).map(|origin| (value.span, origin))
        };
        spec.settings.iter().filter_map(origin).collect()
    }

    /// A setting as its owner states it, at `value`.
    fn stated(
        &mut self,
        owner: Owner,
        setting: &SettingEntry,
        value: &At<String>,
    ) -> Result<Found, Box<SpecError>> {
        let found = match text::read::<String>(&value.value) {
            Ok(content) if content.starts_with("@@") => {
                Found { text: quote(&content[1..]), stated: Some(value.span) }
            }
            Ok(content) if content.starts_with('@') => {
                self.enter(owner, setting.doc.name, value.span)?;
                let found = self.follow(&content, value.span)?;
                self.path.pop();
                found
            }
            _ => Found { text: value.value.clone(), stated: Some(value.span) },
        };
        let (true, Some(span)) = (setting.doc.path, found.stated) else { return Ok(found) };
        let text = absolute(&found.text, self.sources.folder(span.file)).map_err(|e| {
            let help = "name it by an absolute path, or work in a folder with another name";
            self.sources.error(e, span, "relative to that folder").help(help)
        })?;
        Ok(Found { text, ..found })
    }

    fn enter(&mut self, owner: Owner, field: &str, at: Span) -> Result<(), Box<SpecError>> {
        if let Some(start) = self.path.iter().position(|(o, f, _)| *o == owner && f == field) {
            let cycle = &self.path[start..];
            let name = |(owner, field, _): &(Owner, String, Span)| match owner {
                Owner::Node(n) if field.is_empty() => format!("`{}`", self.merged.nodes[*n].id.value),
                Owner::Node(n) => format!("`{}.{field}`", self.merged.nodes[*n].id.value),
                Owner::Run => format!("`run.{field}`"),
                Owner::Cache => format!("`cache.{field}`"),
            };
            let names: Vec<String> = cycle.iter().chain(cycle.first()).map(name).collect();
            let message = format!("these settings refer to one another: {}", names.join(" needs "));
            let mut error = self.sources.error(message, cycle[0].2, "in the circle");
            for (_, _, span) in &cycle[1..] {
                error = self.sources.also(error, *span, "in the circle");
            }
            return Err(error.help("state the value in one of these places"));
        }
        if self.path.len() >= DEEPEST {
            let message = format!("more than {DEEPEST} references in a row");
            return Err(self.sources.error(message, at, "the last of them"));
        }
        self.path.push((owner, field.to_owned(), at));
        Ok(())
    }

    /// What `@node.field` stands for.
    fn follow(&mut self, reference: &str, at: Span) -> Result<Found, Box<SpecError>> {
        let inner = &reference[1..];
        let part = |range: std::ops::Range<usize>| {
            // The value's place has quotes around the content.
            let quoted = at.end - at.start == reference.len() + 2;
            let content = if quoted { Span { start: at.start + 1, end: at.end - 1, ..at } } else { at };
            content.part(reference, range)
        };
        let Some((owner, field)) = inner.split_once('.') else {
            let error =
                self.sources.error(format!("`{reference}` refers to nothing"), at, "not `@node.field`");
            return Err(error.help("as in \"@noise.process\" or \"@run.steps\"; `@@` stands for one `@`"));
        };
        let (owner_at, field_at) = (part(1..1 + owner.len()), part(2 + owner.len()..reference.len()));
        if owner == "run" {
            let Some(entry) = self.run.iter().find(|s| s.doc.name == field).cloned() else {
                return Err(no_setting(self.sources, "a run", field_at, field, &self.run));
            };
            let merged = self.merged;
            return match merged.run.iter().find(|(k, _)| k.value == field) {
                Some((_, value)) => self.stated(Owner::Run, &entry, value),
                None => Ok(Found { text: entry.default, stated: None }),
            };
        }
        let Some(&node) = self.index.get(owner) else {
            let help = advice("nodes", owner, self.merged.ids().chain(["run"]));
            let error = self.sources.error(format!("there is no node `{owner}`"), owner_at, "not a node");
            return Err(error.help(help));
        };
        let (merged, entry) = (self.merged, self.entries[node]);
        if let Some(setting) = entry.setting(field) {
            return match merged.nodes[node].settings.iter().find(|(k, _)| k.value == field) {
                Some((_, value)) => self.stated(Owner::Node(node), setting, value),
                None => Ok(Found { text: setting.default.clone(), stated: None }),
            };
        }
        if let Some((_, asking, _)) = self
            .path
            .iter()
            .rev()
            .find(|(owner, asking, _)| *owner == Owner::Node(node) && !asking.is_empty())
        {
            let help = advice("settings", field, entry.settings.iter().map(|s| s.doc.name));
            let message = format!("`{owner}` (`{}`) has no setting `{field}`", entry.name);
            let label = format!(
                "`{owner}.{asking}` depends on it, and facts of a node are known only after its settings"
            );
            return Err(self.sources.error(message, field_at, label).help(help));
        }
        // Not a setting: perhaps a fact that the operator knows once it is built.
        self.enter(Owner::Node(node), "", at)?;
        let exports = self.build(node)?.op.exports();
        self.path.pop();
        if let Some((_, value)) = exports.iter().find(|(name, _)| name == field) {
            return Ok(Found { text: text::from_json(value), stated: None });
        }
        let all = entry.settings.iter().map(|s| s.doc.name).chain(exports.iter().map(|(n, _)| n.as_str()));
        let help = advice("settings and facts", field, all);
        let message = format!("node `{owner}` (`{}`) has nothing called `{field}`", entry.name);
        Err(self.sources.error(message, field_at, "neither a setting nor a derived fact").help(help))
    }
}
