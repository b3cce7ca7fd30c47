//! Arguments of the command line.

mod adapter;

use std::{path::PathBuf, str::FromStr};

use clap::{
    CommandFactory, Parser, Subcommand, ValueEnum,
    builder::{PathBufValueParser, TypedValueParser},
};

use prefgraph_ops::settings::expand_home;

use super::device;
use crate::{
    plan::MOST_LANES,
    spec::{DEVICES, advice, is_device},
};
pub(super) use adapter::{Adapter, Convert, ExportCheckpoint};

/// Runs a graph of preference optimisation, or shows what it would do.
#[derive(Debug, Parser)]
#[command(name = "graph-run", version, args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: Run,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show shapes, lanes, costs and memory of a graph, and refuse what will not fit
    Plan(Plan),
    /// Train variants of a graph side by side, sharing what they have in common: a table and a figure
    Sweep(Sweep),
    /// Print the plan as a picture: Graphviz text, or SVG or PNG if Graphviz is installed
    Dot {
        #[command(flatten)]
        graph: Graph,
        /// What to print
        #[arg(long, value_enum, default_value_t = Format::Dot)]
        format: Format,
    },
    /// Say how two graphs differ, node by node; of the folders of two runs also what they have measured
    Diff {
        /// A graph file (RON), or the folder of a run
        #[arg(value_parser = graph_file())]
        old: PathBuf,
        /// Another one
        #[arg(value_parser = graph_file())]
        new: PathBuf,
    },
    /// Draw pictures from a prompt, with the networks of a graph and an adapter that it trained
    Sample(Sample),
    /// Score pictures of any method by a benchmark's rules: DINO, CLIP-I, CLIP-T
    Evaluate(Evaluate),
    /// List the devices that networks can run on
    Devices,
    /// List the operators, or show one with its ports and settings
    Ops {
        /// An operator
        name: Option<String>,
    },
    /// Look at data
    #[command(subcommand)]
    Data(Data),
    /// Look at adapter files, and write them in the names that other programs read
    #[command(subcommand)]
    Adapter(Adapter),
    /// Look after a cache of what encoders compute
    #[command(subcommand)]
    Cache(Cache),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Plan {
    #[command(flatten)]
    pub graph: Graph,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
    /// Measure the speed of this machine and of its GPU again (some seconds), also by a debug build
    #[arg(long)]
    pub calibrate: bool,
    /// How much memory the GPU has, as in 24GB or 22.5GiB, whatever GPU is here, if any [default: what the driver says]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub gpu_memory: Option<u64>,
    /// Plan with networks of the published sizes and imagined pairs in place of files that are not here
    #[arg(long)]
    pub without_files: bool,
    /// Plan a sweep over values of a setting; may be given more than once
    #[arg(long, value_name = "NODE.SETTING=V1,V2,...", value_parser = over)]
    pub over: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Sweep {
    #[command(flatten)]
    pub graph: Graph,
    /// Values of a setting; given more than once, every combination is a variant. Settings that go together stand in one list, as in
    /// "loss.objective=dpo,ipo; loss.beta=2000,0.1"
    #[arg(long, value_name = "NODE.SETTING=V1,V2,...", value_parser = over)]
    pub over: Vec<String>,
    /// Folder of the sweep, with a folder for each variant [default: runs/NAME-sweep]
    #[arg(long, value_parser = path())]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint that all variants have
    #[arg(long)]
    pub resume: bool,
    /// Resume although settings have changed that change results
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Print the table as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Sample {
    /// A graph file (RON): a recipe, the folder of a run, or a sampling graph; its data are not read
    #[arg(value_name = "GRAPH", value_parser = graph_file())]
    pub graph: PathBuf,
    /// What to draw
    #[arg(long)]
    pub prompt: String,
    /// A reference picture; may be given more than once
    #[arg(long = "ref", value_name = "PICTURE", value_parser = path())]
    pub references: Vec<PathBuf>,
    /// The adapter to draw with: a file of any known tool; without one, the frozen network draws
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub adapter: Option<PathBuf>,
    /// What the adapter's branch is multiplied by: 1 is as it was trained, 0 the frozen network [default: the graph's, else 1]
    #[arg(long, requires = "adapter", allow_negative_numbers = true)]
    pub lora_scale: Option<f64>,
    /// Size of the pictures in pixels [default: that of the graph]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    pub size: Option<Size>,
    /// Seed of the first picture's noise; every further picture has the next one [default: 0]
    #[arg(long, value_parser = seed, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Number of pictures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// Passes of the network for a picture [default: the graph's, else 25]
    #[arg(long)]
    pub steps: Option<usize>,
    /// Guidance value, for networks that take one [default: the graph's, else the published one]
    #[arg(long, allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Classifier-free guidance: how far to go from the negative prompt to the prompt, with two passes for each step; 1 is none [default: the graph's]
    #[arg(long, allow_negative_numbers = true)]
    pub cfg: Option<f64>,
    /// What to keep away from, under --cfg
    #[arg(long)]
    pub negative: Option<String>,
    /// Folder for the pictures
    #[arg(long, default_value = "pictures", value_parser = path())]
    pub out: PathBuf,
    /// Replace pictures that exist
    #[arg(long)]
    pub overwrite: bool,
    /// Set a setting of the graph; may be given more than once
    #[arg(long = "set", value_name = "NODE.SETTING=VALUE")]
    pub sets: Vec<String>,
    /// Worker threads of the kernels; 0 is one a core
    #[arg(long, value_parser = threads, allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Where networks run: cpu, cuda:0 for the first GPU, or auto for the first GPU where there is one [default: the graph's, else cpu]
    #[arg(long, value_parser = device_name)]
    pub device: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Evaluate {
    /// A graph file (RON) with a node `benchmark`, as in graphs/evaluate
    #[arg(value_name = "GRAPH", value_parser = path())]
    pub graph: PathBuf,
    /// The folder of a method's pictures, laid out as the preset says [default: the graph's]
    #[arg(long, value_name = "FOLDER", value_parser = path())]
    pub pictures: Option<PathBuf>,
    /// Another method's folder: differences to it, picture by picture
    #[arg(long, value_name = "FOLDER", conflicts_with = "real", value_parser = path())]
    pub compare: Option<PathBuf>,
    /// Compare photographs with the other photographs of their subject: what no method reaches, and a check of the encoders
    #[arg(long, conflicts_with_all = ["pictures", "compare", "sample"])]
    pub real: bool,
    /// Score what is there, where pictures are missing, surplus or of another size; the result says that it is incomplete
    #[arg(long)]
    pub incomplete: bool,
    /// List the pictures that are asked for, one JSON object a line, and score nothing
    #[arg(long)]
    pub list: bool,
    /// First draw the pictures that are missing, with the networks of this graph (RON)
    #[arg(long, value_name = "GRAPH", value_parser = graph_file(), conflicts_with = "list")]
    pub sample: Option<PathBuf>,
    /// The adapter to draw with; without one, the frozen network draws
    #[arg(long, value_name = "FILE", requires = "sample", value_parser = path())]
    pub adapter: Option<PathBuf>,
    /// Set a setting of the graph that draws; may be given more than once
    #[arg(long = "sample-set", value_name = "NODE.SETTING=VALUE", value_parser = set, requires = "sample")]
    pub sample_sets: Vec<String>,
    /// Where all scores are written
    #[arg(long, value_name = "FILE", default_value = "scores.json", value_parser = path())]
    pub out: PathBuf,
    /// Print the scores as JSON in place of the table
    #[arg(long)]
    pub json: bool,
    /// Set a setting of the graph; may be given more than once
    #[arg(long = "set", value_name = "NODE.SETTING=VALUE", value_parser = set)]
    pub sets: Vec<String>,
    /// Worker threads of the kernels; 0 is one a core
    #[arg(long, value_parser = threads, allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Where networks run: cpu, cuda:0 for the first GPU, or auto for the first GPU where there is one [default: the graph's, else cpu]
    #[arg(long, value_parser = device_name)]
    pub device: Option<String>,
}

/// Pixels along the sides of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub width: usize,
    pub height: usize,
}

fn size(text: &str) -> Result<Size, String> {
    let sides = text.split_once(['x', 'X']).and_then(|(width, height)| {
        Some(Size { width: width.trim().parse().ok()?, height: height.trim().parse().ok()? })
    });
    sides.ok_or_else(|| "width x height in pixels is expected, as in 512x768".into())
}

#[derive(Debug, Subcommand)]
pub(super) enum Cache {
    /// What a cache holds: operators, settings, weights, entries, bytes
    Show {
        /// The folder of the cache
        #[arg(value_parser = path())]
        path: PathBuf,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every entry and compare it with its checksum
    Verify {
        /// The folder of the cache
        #[arg(value_parser = path())]
        path: PathBuf,
        /// Remove entries that are not whole; the next run makes them again
        #[arg(long)]
        remove: bool,
    },
    /// Remove entries that none of the named graphs uses, and what killed runs have left
    Clean {
        /// The folder of the cache
        #[arg(value_parser = path())]
        path: PathBuf,
        /// A graph whose entries are kept; may be given more than once
        #[arg(long = "keep", value_name = "GRAPH", value_parser = graph_file(), required_unless_present = "all")]
        keep: Vec<PathBuf>,
        /// A setting over all of these graphs; may be given more than once
        #[arg(long = "set", value_name = "NODE.SETTING=VALUE", value_parser = set, requires = "keep")]
        sets: Vec<String>,
        /// Remove all entries
        #[arg(long, conflicts_with = "keep")]
        all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Data {
    /// Decode every picture once: counts, sizes, coverage of masks, bad samples. Exits with 1 if a run would refuse the data
    Check {
        /// A `pairs.jsonl`, a folder that holds one, or a graph (`.ron`), whose data are looked at as its run would
        #[arg(value_parser = path())]
        path: PathBuf,
        /// Set a setting of the graph; may be given more than once
        #[arg(long = "set", value_name = "NODE.SETTING=VALUE", value_parser = set)]
        sets: Vec<String>,
        /// Most pixels of a picture, where no graph says so [default: 128000000]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        max_pixels: Option<u64>,
        /// Write the bad samples into this file, one JSON object a line
        #[arg(long, value_name = "FILE", value_parser = path())]
        bad: Option<PathBuf>,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

/// A kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Dot,
    Svg,
    Png,
}

/// A graph, and what is said over its file.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Graph {
    /// A graph file (RON), or the folder of a run, for its `graph.ron`
    #[arg(value_name = "GRAPH", value_parser = graph_file())]
    pub graph: Option<PathBuf>,
    /// Set a setting, in all nodes that begin so where NODE ends in `*`; may be given more than once
    #[arg(long = "set", value_name = "NODE.SETTING=VALUE", value_parser = set)]
    pub sets: Vec<String>,
    /// Steps until the run is complete
    #[arg(long, value_parser = steps, allow_negative_numbers = true)]
    pub steps: Option<u64>,
    /// Seed of all random numbers
    #[arg(long, value_parser = seed, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Nodes that run at the same time; 0 chooses
    #[arg(long, value_parser = lanes, allow_negative_numbers = true)]
    pub lanes: Option<usize>,
    /// Worker threads of the kernels; 0 is one a core
    #[arg(long, value_parser = threads, allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Where networks run: cpu, cuda:0 for the first GPU, or auto for the first GPU where there is one [default: the graph's, else cpu]
    #[arg(long, value_parser = device_name)]
    pub device: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub graph: Graph,
    /// Folder of the run [default: runs/NAME]
    #[arg(long, value_parser = path())]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the folder
    #[arg(long)]
    pub resume: bool,
    /// Resume although settings have changed that change results
    #[arg(long, requires = "resume")]
    pub accept_changes: bool,
    /// Print the metrics of every step as JSON lines
    #[arg(long)]
    pub json: bool,
}

fn set(text: &str) -> Result<String, String> {
    match text.contains('=') {
        true => Ok(text.to_owned()),
        false if text.contains('.') => Err(format!("an equals sign is needed, as in `--set {text}=VALUE`")),
        false => Err(format!("a setting and a value are needed, as in `--set {text}.SETTING=VALUE`")),
    }
}

fn over(text: &str) -> Result<String, String> {
    match text.contains('=') {
        true => Ok(text.to_owned()),
        false => Err(format!("an equals sign and values are needed, as in `--over {text}=V1,V2`")),
    }
}

fn whole<N: FromStr>(text: &str, accepted: &str, good: impl Fn(&N) -> bool) -> Result<N, String> {
    text.parse().ok().filter(good).ok_or_else(|| format!("expected {accepted}"))
}

fn steps(text: &str) -> Result<u64, String> {
    whole(text, "a whole number of steps, at least 1", |n| *n > 0)
}

fn seed(text: &str) -> Result<u64, String> {
    whole(text, &format!("a whole number, 0 or more, at most {}", u64::MAX), |_| true)
}

fn lanes(text: &str) -> Result<usize, String> {
    whole(text, &format!("a whole number of nodes, at most {MOST_LANES}; 0 chooses"), |n| *n <= MOST_LANES)
}

fn threads(text: &str) -> Result<usize, String> {
    whole(text, "a whole number of threads; 0 is one a core", |_| true)
}

/// What somebody meant who typed these words after `graph-run`, where they are what other programs take.
pub(super) fn meant(typed: &[String]) -> Option<String> {
    let (first, rest) = typed.split_first()?;
    let set = typed.windows(3).find(|words| words[0] == "--set" && !words[1].contains('='));
    if let Some([_, setting, value]) = set {
        return Some(format!(
            "`--set {setting} {value}`: an equals sign is needed, as in `--set {setting}={value}`"
        ));
    }
    let command = Args::command();
    let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let known = first.starts_with('-') || first == "help" || names.contains(&first.as_str());
    if known || in_its_folder(first.into()).is_file() {
        return None;
    }
    let more = if rest.is_empty() { "graphs/focusdpo.ron".to_owned() } else { rest.join(" ") };
    match first.as_str() {
        "run" | "train" | "start" => {
            Some(format!("there is no command `{first}`: a graph runs without one, as in `graph-run {more}`"))
        }
        "resume" | "continue" => {
            Some(format!("there is no command `{first}`: `graph-run {more} --resume` continues a run"))
        }
        _ if first.contains(['.', '/', '\\']) => None,
        _ => Some(format!(
            "`{first}` is neither a command nor a graph file; {}",
            advice("commands", first, names)
        )),
    }
}

/// The path of a graph file; of a run's folder that of the graph in it.
fn graph_file() -> impl TypedValueParser<Value = PathBuf> {
    path().map(in_its_folder)
}

/// A path: a shell leaves the tilde of `--out=~/x` as it is.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| expand_home(&path))
}

fn in_its_folder(path: PathBuf) -> PathBuf {
    let inside = path.join("graph.ron");
    if inside.is_file() { inside } else { path }
}

/// An amount of memory: GB and the like are powers of 1000, GiB and the like of 1024.
fn memory_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 6] = [
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let found = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let size = found.and_then(|(number, bytes)| Some(number.trim().parse::<f64>().ok()? * bytes as f64));
    let good = size.filter(|size| *size >= 1.0 && *size < u64::MAX as f64);
    good.map(|size| size as u64)
        .ok_or_else(|| "an amount with a unit is expected, as in 24GB or 22.5GiB".into())
}

/// A device by its name; `auto` is the first GPU where there is one, and says why not where there is none.
fn device_name(text: &str) -> Result<String, String> {
    match text {
        "auto" => Ok(device::automatic()),
        "cuda" => Ok("cuda:0".to_owned()),
        _ if is_device(text) => Ok(text.to_owned()),
        _ => Err(format!("{DEVICES}; auto takes the first GPU where there is one")),
    }
}

impl Graph {
    /// With what was said when the run was started or resumed before; what is said now comes over it.
    pub fn recalling(&self, sets: &[String]) -> Self {
        Self { sets: sets.iter().chain(&self.sets).cloned().collect(), ..self.clone() }
    }

    /// All that is said over the file, flags last.
    pub fn all_sets(&self) -> Vec<String> {
        let mut sets = self.sets.clone();
        sets.extend(self.steps.map(|n| format!("run.steps={n}")));
        sets.extend(self.seed.map(|n| format!("run.seed={n}")));
        sets.extend(self.lanes.map(|n| format!("run.lanes={n}")));
        sets.extend(self.threads.map(|n| format!("run.threads={n}")));
        sets.extend(self.device.as_ref().map(|device| format!("run.device=\"{device}\"")));
        sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_have_units_of_1000_or_1024() {
        assert_eq!(memory_size("24GB"), Ok(24_000_000_000));
        assert_eq!(memory_size("1.5 GiB"), Ok(3 << 29));
        for wrong in ["24", "GB", "-1GB", "0GB", "NaNGB", "infGB", "1e300GB", "24 gb"] {
            assert!(memory_size(wrong).is_err(), "{wrong}");
        }
    }
}
