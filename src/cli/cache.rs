//! `graph-run cache`: showing, verifying and cleaning a cache.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use prefgraph_ops::words::count;
use serde_json::json;

use super::{Failure, args, say::say, system};
use crate::{
    cache::{self, Group},
    registry::Registry,
    spec::load,
};

pub(super) fn cache(command: &args::Cache, registry: &Registry) -> Result<u8, Failure> {
    match command {
        args::Cache::Show { path, json } => show(path, *json),
        args::Cache::Verify { path, remove } => verify(path, *remove),
        args::Cache::Clean { path, keep, sets, .. } => clean(path, keep, sets, registry),
    }
}

fn show(path: &Path, as_json: bool) -> Result<u8, Failure> {
    let groups = cache::show(path).map_err(Failure::new)?;
    let text = if as_json { format!("{:#}\n", as_value(&groups)) } else { listing(path, &groups) };
    system::print(&text)?;
    Ok(0)
}

fn as_value(groups: &[Group]) -> serde_json::Value {
    let one = |g: &Group| json!({"id": g.id, "recipe": g.recipe, "entries": g.entries, "bytes": g.bytes});
    groups.iter().map(one).collect()
}

fn listing(path: &Path, groups: &[Group]) -> String {
    let (entries, bytes) = groups.iter().fold((0, 0), |(n, b), g| (n + g.entries, b + g.bytes));
    let mut text = format!("{}: {}, {}\n", path.display(), count(entries, "entry"), system::bytes(bytes));
    for group in groups {
        let size = format!("{}, {}", count(group.entries, "entry"), system::bytes(group.bytes));
        let Some(recipe) = &group.recipe else {
            text += &format!("\n{}  {size}\n  of nothing that is known; no graph can use them\n", group.id);
            continue;
        };
        let nodes: Vec<&str> = recipe.nodes.iter().map(String::as_str).collect();
        text += &format!("\n{}  {size}\n  `{}` at {}\n", group.id, recipe.operator, nodes.join(", "));
        for (name, value) in &recipe.settings {
            text += &format!("  {name}: {value}\n");
        }
        for (name, value) in &recipe.weights {
            text += &format!("  weights {name}: {value}\n");
        }
    }
    text
}

fn verify(path: &Path, remove: bool) -> Result<u8, Failure> {
    let (good, bad) = cache::verify(path).map_err(Failure::new)?;
    for (entry, why) in &bad {
        say!("{}: {why}", entry.display());
        if remove {
            fs::remove_file(entry)
                .map_err(|e| Failure::new(format!("cannot remove `{}`: {e}", entry.display())))?;
        }
    }
    let what = match (bad.len(), remove) {
        (0, _) => String::new(),
        (_, true) => "; they were removed, and the next run makes them again".into(),
        (_, false) => "; --remove removes them, and the next run makes them again".into(),
    };
    system::print(&format!("{}: {good} whole entries, {} that are not{what}\n", path.display(), bad.len()))?;
    Ok(u8::from(!bad.is_empty() && !remove))
}

fn clean(path: &Path, graphs: &[PathBuf], sets: &[String], registry: &Registry) -> Result<u8, Failure> {
    let mut keep = BTreeSet::new();
    for graph in graphs {
        let loaded = load(graph, sets, registry)?;
        let Some(used) = &loaded.cache else {
            return Err(Failure::new(format!("`{}` has no cache, so it keeps nothing", graph.display())));
        };
        keep.extend(used.recipes().map(|(_, recipe)| recipe.id()));
    }
    let cleaned = cache::clean(path, &keep).map_err(Failure::new)?;
    system::print(&format!(
        "{}: removed {}, {}, and {}\n",
        path.display(),
        count(cleaned.entries, "entry"),
        system::bytes(cleaned.bytes),
        count(cleaned.unfinished, "unfinished file")
    ))?;
    Ok(0)
}
