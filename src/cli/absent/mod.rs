//! What stands in for files that are not here while a graph is planned: networks of the published sizes, without values, and
//! imagined pairs.
//!
//! The graph is loaded as ever, over settings that lead to these files: all that a plan says is worked out by the code that plans real
//! ones.

mod data;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
    time::Duration,
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
    spec::{Facts, Outline, Overs, text},
};

/// What the setting of a path leads to.
#[derive(Clone, Copy)]
enum Role {
    /// A network of which these parts are read, where its whole folder is named.
    Network(Published, &'static [&'static str]),
    /// A folder that is named itself, of a network.
    Part(Published, &'static str),
    /// Pairs or prompts.
    Samples,
}

impl Role {
    /// Is there what the setting wants?
    fn is_here(self, path: &Path) -> bool {
        path.exists() && self.missing_part(path).is_none()
    }

    /// What is not here, for people.
    fn wanted(self, path: &Path) -> PathBuf {
        match self {
            Self::Network(..) => self.missing_part(path).map_or(path.to_owned(), |part| path.join(part)),
            _ => path.to_owned(),
        }
    }

    /// A part that a folder of a whole network lacks. One with a configuration of its own is a part itself.
    fn missing_part(self, path: &Path) -> Option<&'static str> {
        match self {
            Self::Network(_, parts) if path.is_dir() && !path.join("config.json").is_file() => {
                parts.iter().copied().find(|part| !path.join(part).is_dir())
            }
            _ => None,
        }
    }
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
    /// What operators say, with their names alone for stand-ins, since where those are is nobody's concern; before it, what they stand in for.
    pub fn noted(stand_ins: Option<&Self>, notes: Vec<String>) -> Vec<String> {
        let Some(stand_ins) = stand_ins else { return notes };
        let of_place = |note: &&String| note.contains("is in another folder") && stand_ins.are_in(note);
        let notes = notes.iter().filter(|note| !of_place(note));
        let named = notes.map(|note| note.replace(&stand_ins.place(), ""));
        stand_ins.notes.iter().cloned().chain(named).collect()
    }

    /// Does a text name one of them?
    pub fn are_in(&self, text: &str) -> bool {
        text.contains(&self.place())
    }

    /// Where they are.
    pub fn place(&self) -> String {
        self.folder.path().join("").to_string_lossy().into_owned()
    }
}

/// Is a file that is not here, and that another could stand in for, what this message is about?
pub(super) fn is_named(message: &str, args: &args::Plan, registry: &Registry) -> bool {
    let named = |missing: &Missing| message.contains(&*missing.path.to_string_lossy());
    let (facts, overs) = (facts(&args.graph, registry), Overs::parse(&args.over));
    facts.is_ok_and(|facts| overs.is_ok_and(|overs| missing(&facts, &overs).iter().any(named)))
}

/// What the folders of stand-ins begin with.
const PREFIX: &str = "graph-run-plan-";
/// An empty file that tells them from folders of others.
const MARKER: &str = ".stand-ins";
/// A plan takes seconds: what is so old was left by one that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Write what stands in for the files of a graph that are not here.
///
/// # Errors
/// If the graph cannot be read, or nothing can be written into the folder of temporary files.
pub(super) fn stand_in(args: &args::Plan, registry: &Registry) -> Result<StandIns, Failure> {
    let (facts, overs) = (facts(&args.graph, registry)?, Overs::parse(&args.over)?);
    let fault = |e: std::io::Error| {
        let folder = std::env::temp_dir();
        Failure::new(format!("--without-files: nothing can be written into `{}`: {e}", folder.display()))
    };
    remove_abandoned();
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().map_err(fault)?;
    std::fs::write(folder.path().join(MARKER), "").map_err(fault)?;
    let (mut sets, mut notes) = (Vec::new(), BTreeSet::new());
    let mut written: BTreeMap<PathBuf, String> = BTreeMap::new();
    for Missing { node, setting, path, role } in missing(&facts, &overs) {
        let reader = node_of(&facts, &path);
        let root = match role {
            Role::Network(published, _) | Role::Part(published, _) => folder.path().join(published.name()),
            Role::Samples => {
                let name = reader.map_or_else(|| format!("{node}-{setting}"), str::to_owned);
                folder.path().join(format!("imagined/{name}.jsonl"))
            }
        };
        let number = written.len();
        let what = match written.entry(root.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(match role {
                Role::Network(published, _) | Role::Part(published, _) => {
                    published.write_hollow(&root).map_err(Failure::new)?;
                    published.name().to_owned()
                }
                Role::Samples => {
                    let imagined = data::Imagined::of(&facts, reader.unwrap_or(&node));
                    data::write(&root, imagined, number).map_err(fault)?
                }
            }),
        };
        notes.insert(format!("`{}` is not here: planned as {what}", role.wanted(&path).display()));
        let stand_in = match role {
            Role::Part(_, below) => root.join(below),
            _ => root,
        };
        sets.push(format!("{node}.{setting}={}", text::write(&stand_in).map_err(Failure::new)?));
    }
    let notes = notes.into_iter().collect();
    Ok(StandIns { sets, notes, folder })
}

/// Remove what killed plans have left. What cannot be removed stays, and is nothing to stop for.
fn remove_abandoned() {
    let is_old = |path: &Path| {
        let age = path
            .join(MARKER)
            .metadata()
            .and_then(|found| found.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        age.is_some_and(|age| age > ABANDONED)
    };
    let folders = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let ours = folders.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for path in ours.map(|entry| entry.path()).filter(|path| is_old(path)) {
        let _ = std::fs::remove_dir_all(path);
    }
}

fn facts(args: &args::Graph, registry: &Registry) -> Result<Facts, Failure> {
    let path = args.graph.as_deref().unwrap_or(Path::new(""));
    Ok(Outline::open(path, &args.all_sets(), registry)?.facts()?)
}

/// The settings of a graph that lead to nothing and that something can stand in for; those that are varied, and what follows them, have values of
/// their own.
fn missing(facts: &Facts, overs: &Overs) -> Vec<Missing> {
    let varied = overs.axes().into_iter().flat_map(|(settings, _)| settings);
    let varied: BTreeSet<PathBuf> = varied.filter_map(|name| path_of(facts.get(&name)?)).collect();
    // Nodes of one graph have one kind of network: an autoencoder does not say whose it is.
    let is_sdxl = facts.iter().any(|(name, op)| {
        op == Backbone::NAME && facts.get(&format!("{name}.kind")).is_some_and(|kind| kind == "sdxl")
    });
    let of = |(name, value): (&String, &String)| {
        let (node, setting) = name.split_once('.')?;
        let path = path_of(value)?;
        let role = role(facts, facts.get(node)?, node, setting, is_sdxl)?;
        let (node, setting) = (node.to_owned(), setting.to_owned());
        let is_missing = !role.is_here(&path) && !varied.contains(&path);
        is_missing.then_some(Missing { node, setting, path, role })
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
    let network = |published| Some(Role::Network(published, &[]));
    let part_of_base = |parts| Some(Role::Network(base, parts));
    // A tokeniser lies beside its encoder, unless it is named.
    let is_named =
        |setting: &str| facts.get(&format!("{node}.{setting}")).is_some_and(|value| path_of(value).is_some());
    match (op, setting) {
        (Backbone::NAME, "weights") if kind == Some("sdxl") => {
            Some(Role::Network(Published::Sdxl, &["unet"]))
        }
        (Backbone::NAME, "weights") => Some(Role::Network(Published::FluxDev, &["transformer"])),
        (Backbone::NAME, "adapter") => network(Published::Uno),
        (Backbone::NAME | ImagePrompts::NAME, "ip_adapter") => network(Published::IpAdapterPlus),
        (Encode::NAME | EncodeReferences::NAME | Decode::NAME | Blank::NAME, "weights")
            if kind == Some("kl") =>
        {
            part_of_base(&["vae"])
        }
        (Prompt::NAME, "clip") if is_named("clip_tokenizer") => part_of_base(&["text_encoder"]),
        (Prompt::NAME, "clip") => part_of_base(&["text_encoder", "tokenizer"]),
        (Prompt::NAME, "t5" | "bigg") if is_named(&format!("{setting}_tokenizer")) => {
            part_of_base(&["text_encoder_2"])
        }
        (Prompt::NAME, "t5" | "bigg") => part_of_base(&["text_encoder_2", "tokenizer_2"]),
        (Prompt::NAME, "clip_tokenizer") => Some(Role::Part(base, "tokenizer")),
        (Prompt::NAME, "t5_tokenizer" | "bigg_tokenizer") => Some(Role::Part(base, "tokenizer_2")),
        (ImagePrompts::NAME, "image_encoder") => network(Published::VitH),
        (PictureFeatures::NAME, "encoder") => network(Published::DinoV2),
        (Pairs::NAME, "path" | "apart_from") | (Prompts::NAME, "path") => Some(Role::Samples),
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
