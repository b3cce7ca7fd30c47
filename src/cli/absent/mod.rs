//! What stands in for files that are not here while a graph is planned: networks of the published sizes, without values, and
//! imagined pairs.
//!
//! The graph is loaded as ever, over settings that lead to these files: all that a plan says is worked out by the code that plans real
//! ones.

mod data;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
};

use prefgraph_nn::published::Published;
use prefgraph_ops::{
    Operator,
    operators::{
        backbone::Backbone,
        blank::Blank,
        decode::Decode,
        encode::{Encode, EncodeReferences},
        image_prompt::ImagePrompts,
        pairs::{Pairs, Prompts},
        picture_features::PictureFeatures,
        prompt::Prompt,
    },
};
use tempfile::TempDir;

use super::{Failure, args};
use crate::{
    registry::Registry,
    spec::{Facts, Outline, text},
};

/// What the setting of a path leads to.
enum Role {
    /// A network, and where in its folder.
    Network(Published, Option<&'static str>),
    Pairs,
}

/// A setting that leads to nothing.
struct Missing {
    node: String,
    setting: String,
    path: PathBuf,
    role: Role,
}

/// Files that stand in for others, until this is dropped.
pub(super) struct StandIns {
    /// Settings that lead to them.
    pub sets: Vec<String>,
    /// A line for each path that leads to nothing, with what it is planned as.
    pub notes: Vec<String>,
    folder: TempDir,
}

impl StandIns {
    /// A text in which they have their names alone: where they are is nobody's concern.
    pub fn named(&self, text: &str) -> String {
        let folder = self.folder.path().join("");
        text.replace(&*folder.to_string_lossy(), "")
    }
}

/// Is a file that is not here, and that another could stand in for, what this message is about?
pub(super) fn is_named(message: &str, args: &args::Graph, registry: &Registry) -> bool {
    let named = |missing: &Missing| message.contains(&*missing.path.to_string_lossy());
    facts(args, registry).is_ok_and(|facts| missing(&facts).iter().any(named))
}

/// Write what stands in for the files of a graph that are not here.
///
/// # Errors
/// If the graph cannot be read, or nothing can be written into the folder of temporary files.
pub(super) fn stand_in(args: &args::Graph, registry: &Registry) -> Result<StandIns, Failure> {
    let facts = facts(args, registry)?;
    let fault = |e: std::io::Error| {
        let folder = std::env::temp_dir();
        Failure::new(format!("--without-files: nothing can be written into `{}`: {e}", folder.display()))
    };
    let folder = tempfile::Builder::new().prefix("graph-run-plan-").tempdir().map_err(fault)?;
    let (mut sets, mut notes) = (Vec::new(), BTreeSet::new());
    let mut written: BTreeMap<PathBuf, String> = BTreeMap::new();
    for Missing { node, setting, path, role } in missing(&facts) {
        let reader = node_of(&facts, &path).unwrap_or(&node);
        let root = match role {
            Role::Network(published, _) => folder.path().join(published.name()),
            Role::Pairs => folder.path().join(format!("imagined/{reader}.jsonl")),
        };
        let number = written.len();
        let what = match written.entry(root.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(match role {
                Role::Network(published, _) => {
                    published.write_hollow(&root).map_err(Failure::new)?;
                    published.name().to_owned()
                }
                Role::Pairs => data::write(&root, data::Sizes::of(&facts, reader), number).map_err(fault)?,
            }),
        };
        notes.insert(format!("`{}` is not here: planned as {what}", path.display()));
        let stand_in = match role {
            Role::Network(_, Some(below)) => root.join(below),
            _ => root,
        };
        sets.push(format!("{node}.{setting}={}", text::write(&stand_in).map_err(Failure::new)?));
    }
    let notes = notes.into_iter().collect();
    Ok(StandIns { sets, notes, folder })
}

fn facts(args: &args::Graph, registry: &Registry) -> Result<Facts, Failure> {
    let path = args.graph.as_deref().unwrap_or(Path::new(""));
    Ok(Outline::open(path, &args.all_sets(), registry)?.facts()?)
}

/// The settings of a graph that lead to nothing and that something can stand in for.
fn missing(facts: &Facts) -> Vec<Missing> {
    // Nodes of one graph have one kind of network: an autoencoder does not say whose it is.
    let is_sdxl = facts.iter().any(|(name, op)| {
        op == Backbone::NAME && facts.get(&format!("{name}.kind")).is_some_and(|kind| kind == "sdxl")
    });
    let of = |(name, value): (&String, &String)| {
        let (node, setting) = name.split_once('.')?;
        let path = path_of(value)?;
        let role = role(facts, facts.get(node)?, node, setting, is_sdxl)?;
        let (node, setting) = (node.to_owned(), setting.to_owned());
        (!path.exists()).then_some(Missing { node, setting, path, role })
    };
    facts.iter().filter_map(of).collect()
}

/// The path that a setting states, if it is one.
fn path_of(value: &str) -> Option<PathBuf> {
    let stated = text::read::<PathBuf>(value).ok();
    let path = stated.or_else(|| text::read::<Option<PathBuf>>(value).ok().flatten())?;
    (!path.as_os_str().is_empty()).then_some(path)
}

fn role(facts: &Facts, op: &str, node: &str, setting: &str, is_sdxl: bool) -> Option<Role> {
    let base = if is_sdxl { Published::Sdxl } else { Published::FluxDev };
    let kind = facts.get(&format!("{node}.kind")).map(String::as_str);
    let network = |published| Some(Role::Network(published, None));
    match (op, setting) {
        (Backbone::NAME, "weights") => {
            network(if kind == Some("sdxl") { Published::Sdxl } else { Published::FluxDev })
        }
        (Backbone::NAME, "adapter") => network(Published::Uno),
        (Backbone::NAME | ImagePrompts::NAME, "ip_adapter") => network(Published::IpAdapterPlus),
        (Encode::NAME | EncodeReferences::NAME | Decode::NAME | Blank::NAME, "weights")
            if kind == Some("kl") =>
        {
            network(base)
        }
        (Prompt::NAME, "clip" | "t5" | "bigg") => network(base),
        (Prompt::NAME, "clip_tokenizer") => Some(Role::Network(base, Some("tokenizer"))),
        (Prompt::NAME, "t5_tokenizer" | "bigg_tokenizer") => Some(Role::Network(base, Some("tokenizer_2"))),
        (ImagePrompts::NAME, "image_encoder") => network(Published::VitH),
        (PictureFeatures::NAME, "encoder") => network(Published::DinoV2),
        (Pairs::NAME, "path" | "apart_from") | (Prompts::NAME, "path") => Some(Role::Pairs),
        _ => None,
    }
}

/// The first node that reads samples from this path.
fn node_of<'f>(facts: &'f Facts, path: &Path) -> Option<&'f str> {
    facts.iter().find_map(|(name, op)| {
        let reads = op == Pairs::NAME || op == Prompts::NAME;
        let stated = reads.then(|| facts.get(&format!("{name}.path")))??;
        (path_of(stated)? == path).then_some(name.as_str())
    })
}
