//! Settings from the command line: `node.setting=VALUE` overrides the files, and `nod*.setting=VALUE` does so in every node whose name
//! begins so and that has the setting.

use std::{collections::BTreeSet, path::Path};

use prefgraph_ops::Settings;

use super::{
    CacheSettings, RunSettings,
    merge::{Merged, put},
    nearest::advice,
    paths::absolute,
    resolve::{entry_of, no_setting, unknown_setting},
    source::{At, COMMAND_LINE, Sources, Span, SpecError},
    syntax::{one_value, quote},
    text,
};
use crate::registry::{Registry, setting_entries};

/// Apply `sets` in order; relative paths in them are relative to `folder`. Returns them so that they mean the same in every
/// folder.
pub(super) fn apply(
    sources: &mut Sources,
    merged: &mut Merged,
    sets: &[String],
    folder: &Path,
    registry: &Registry,
) -> Result<Vec<String>, Box<SpecError>> {
    let mut all = Vec::new();
    for set in sets {
        let file = sources.add(COMMAND_LINE, set.as_str(), folder);
        all.extend(apply_one(sources, merged, file, registry)?);
    }
    Ok(all)
}

/// The three parts of `node.setting=VALUE`.
pub(super) fn parts(set: &str) -> Option<(&str, &str, &str)> {
    let (path, value) = set.split_once('=')?;
    let (node, field) = path.split_once('.')?;
    Some((node, field, value))
}

fn apply_one(
    sources: &mut Sources,
    merged: &mut Merged,
    file: usize,
    registry: &Registry,
) -> Result<Vec<String>, Box<SpecError>> {
    let set = sources.text(file).to_owned();
    let at = |start: usize, part: &str| Span { file, start, end: start + part.len() };
    let Some((node, field, value)) = parts(&set) else {
        let error = sources.error(format!("`{set}` sets nothing"), at(0, &set), "not `node.setting=VALUE`");
        let names = setting_entries::<RunSettings>();
        let of_run = set.split_once('=').filter(|(name, _)| names.iter().any(|s| s.doc.name == *name));
        return Err(error.help(match of_run {
            Some(_) => format!("did you mean `--set run.{set}`?"),
            None => "as in `--set noise.process=flow` or `--set run.steps=10`".into(),
        }));
    };
    let setting = Setting {
        node: At { value: node.to_owned(), span: at(0, node) },
        field: At { value: field.to_owned(), span: at(node.len() + 1, field) },
    };
    let value = At { value: value.to_owned(), span: at(node.len() + field.len() + 2, value) };
    let settings = match merged.starred(node) {
        Some(meant) => in_all(sources, merged, &setting, &meant, registry)?,
        None => vec![setting],
    };
    settings.iter().map(|setting| assign(sources, merged, setting, &value, registry)).collect()
}

/// A setting in each of these nodes that has it.
fn in_all(
    sources: &Sources,
    merged: &Merged,
    setting: &Setting,
    meant: &[usize],
    registry: &Registry,
) -> Result<Vec<Setting>, Box<SpecError>> {
    let Setting { node: pattern, field } = setting;
    let (mut found, mut names) = (Vec::new(), BTreeSet::new());
    if meant.is_empty() {
        let start = pattern.value.trim_end_matches('*');
        let error = sources.error(format!("no node begins with `{start}`"), pattern.span, "not a node");
        return Err(error.help(advice("nodes", start, merged.ids())));
    }
    for node in meant.iter().map(|place| &merged.nodes[*place]) {
        let entry = entry_of(sources, registry, node)?;
        if entry.setting(&field.value).is_some() {
            let node = At { value: node.id.value.clone(), span: pattern.span };
            found.push(Setting { node, field: field.clone() });
        }
        names.extend(entry.settings.iter().map(|setting| setting.doc.name));
    }
    if found.is_empty() {
        let message = format!("no node that `{}` means has a setting `{}`", pattern.value, field.value);
        let error = sources.error(message, field.span, "not a setting of any of them");
        return Err(error.help(advice("their settings", &field.value, names)));
    }
    Ok(found)
}

/// A setting that the command line names.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// A node, `run` or `cache`.
    pub node: At<String>,
    pub field: At<String>,
}

impl Setting {
    /// As `--set` names it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.node.value, self.field.value)
    }
}

/// Give a setting a value, as the command line writes it; relative paths are relative to the folder of the text that states it.
/// Returns `node.setting=VALUE` so that it means the same in every folder.
pub(super) fn assign(
    sources: &Sources,
    merged: &mut Merged,
    setting: &Setting,
    value: &At<String>,
    registry: &Registry,
) -> Result<String, Box<SpecError>> {
    let Setting { node: At { value: node, span: node_at }, field: key } = setting;
    let (field, At { value, span: value_at }) = (key.value.as_str(), value);
    let (ron, path) = match merged.node(node) {
        Some(found) => {
            let entry = entry_of(sources, registry, found)?;
            let setting = entry.setting(field).ok_or_else(|| unknown_setting(sources, entry, key))?;
            (as_ron(field, value, |text| entry.check(text).is_ok()), setting.doc.path)
        }
        None if node == "run" => other::<RunSettings>(sources, "a run", key, value)?,
        None if node == "cache" => other::<CacheSettings>(sources, "a cache", key, value)?,
        None => {
            // `--set` has looked up what a star stands for.
            let help = match node.contains('*') {
                true => "a star is the last character of a name, in `--set`, and stands for all nodes whose names begin so: `--set 'held_out*.size=256'`".to_owned(),
                false => advice("nodes", node, merged.ids().chain(["run", "cache"])),
            };
            let error = sources.error(format!("there is no node `{node}`"), *node_at, "not a node");
            return Err(error.help(help));
        }
    };
    let Some(ron) = ron else {
        let error = sources.error(format!("`{field}` cannot be `{value}`"), *value_at, "not one value");
        let entry = merged.node(node).and_then(|found| entry_of(sources, registry, found).ok());
        let list = entry.and_then(|entry| as_list(field, value, |text| entry.check(text).is_ok()));
        return Err(error.help(match list {
            Some(list) => format!("a list has brackets: `--set {node}.{field}='{list}'`"),
            None if value.trim().is_empty() => format!("the value is empty: write one after `{node}.{field}=`"),
            None if !value.trim().contains([' ', ',', ';']) => "write one value, as a graph file has it".into(),
            None => "one `--set` sets one setting: repeat it for another, as in `--set run.steps=10 --set run.seed=1`".into(),
        }));
    };
    // A reference is no path, and a path that cannot be stated is refused later, in place.
    let is_reference = text::read::<String>(&ron).is_ok_and(|content| content.starts_with('@'));
    let anywhere = match path && !is_reference {
        true => absolute(&ron, sources.folder(value_at.file)).unwrap_or_else(|_| ron.clone()),
        false => ron.clone(),
    };
    let normal = format!("{node}.{field}={anywhere}");
    let value = At { value: ron, span: *value_at };
    let all = match merged.nodes.iter_mut().find(|n| n.id.value == *node) {
        Some(found) => &mut found.settings,
        None if node == "cache" => &mut merged.cache,
        None => &mut merged.run,
    };
    put(all, key.clone(), value);
    Ok(normal)
}

/// A value of the settings `S` of something that is no node, and whether it is a path.
fn other<S: Settings>(
    sources: &Sources,
    what: &str,
    key: &At<String>,
    value: &str,
) -> Result<(Option<String>, bool), Box<SpecError>> {
    let all = setting_entries::<S>();
    let Some(setting) = all.iter().find(|s| s.doc.name == key.value) else {
        return Err(no_setting(sources, what, key.span, &key.value, &all));
    };
    Ok((as_ron(&key.value, value, |text| text::read::<S>(text).is_ok()), setting.doc.path))
}

/// Values between commas as the list that they were meant to be, where the setting takes one.
fn as_list(name: &str, value: &str, accepts: impl Fn(&str) -> bool) -> Option<String> {
    let parts = || value.trim_matches(['[', ']']).split(',').map(|part| part.trim().trim_matches('"'));
    let list =
        |written: fn(&str) -> String| format!("[{}]", parts().map(written).collect::<Vec<_>>().join(","));
    [list(quote), list(str::to_owned)].into_iter().find(|list| accepts(&format!("({name}:{list})")))
}

/// A value of the command line as RON: as it is if it is a value that the setting takes, else in quotes if it takes that, so
/// that paths and texts need no quotes that a shell would eat. What fits neither way stays as it is and is refused later, in
/// place; `None` if it is not one value.
fn as_ron(name: &str, value: &str, accepts: impl Fn(&str) -> bool) -> Option<String> {
    let fits = |text: &str| accepts(&format!("({name}:{text})"));
    let (one, quoted) = (one_value(value), quote(value));
    match one.filter(|one| fits(one)) {
        Some(one) if !value.starts_with('@') => Some(one.to_owned()),
        _ if value.starts_with('@') || fits(&quoted) => Some(quoted),
        _ => one.map(str::to_owned),
    }
}
