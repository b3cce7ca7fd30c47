//! What can be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use prefgraph_nn::lora::AdapterFormat;

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
    Plan {
        #[command(flatten)]
        graph: Graph,
        /// Print the plan as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the plan as a picture: Graphviz text, or SVG or PNG if Graphviz is installed
    Dot {
        #[command(flatten)]
        graph: Graph,
        /// What to print
        #[arg(long, value_enum, default_value_t = Format::Dot)]
        format: Format,
    },
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

#[derive(Debug, Subcommand)]
pub(super) enum Adapter {
    /// Say what a file holds: names, rank, alpha, the linears it adapts, what its header says
    Show {
        /// An adapter of any known tool: a file, or the folder that PEFT or diffusers saved
        path: PathBuf,
    },
    /// Write an adapter in another format, read it back and compare it; refused where something would be lost
    Convert(Convert),
    /// Write the adapter of a checkpoint
    Export(ExportCheckpoint),
}

#[derive(Debug, clap::Args)]
pub(super) struct Convert {
    /// An adapter of any known tool: a file, or the folder that PEFT or diffusers saved
    pub input: PathBuf,
    /// The file to write
    pub output: PathBuf,
    /// The format to write
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub to: AdapterFormat,
    /// The FLUX transformer that the adapter is for, a folder or a file: names and widths are compared with it
    #[arg(long, value_name = "PATH")]
    pub weights: Option<PathBuf>,
    /// Leave out factors of text encoders, which are otherwise a reason to refuse the file
    #[arg(long)]
    pub drop_text_encoders: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportCheckpoint {
    /// A checkpoint, `checkpoints/step-N` of a run, or the folder of the run for its newest
    pub checkpoint: PathBuf,
    /// The file to write
    pub output: PathBuf,
    /// The format to write
    #[arg(long, value_name = "FORMAT", value_parser = format, default_value = "diffusers")]
    pub to: AdapterFormat,
    /// The cell that holds the adapter, where there is more than one
    #[arg(long)]
    pub cell: Option<String>,
}

fn format(text: &str) -> Result<AdapterFormat, String> {
    AdapterFormat::ALL
        .into_iter()
        .find(|f| f.name() == text)
        .ok_or_else(|| format!("the formats are: {}", AdapterFormat::ALL.map(AdapterFormat::name).join(", ")))
}

#[derive(Debug, Subcommand)]
pub(super) enum Cache {
    /// What a cache holds: operators, settings, weights, entries, bytes
    Show {
        /// The folder of the cache
        path: PathBuf,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every entry and compare it with its checksum
    Verify {
        /// The folder of the cache
        path: PathBuf,
        /// Remove entries that are not whole; the next run makes them again
        #[arg(long)]
        remove: bool,
    },
    /// Remove entries that none of the named graphs uses, and what killed runs have left
    Clean {
        /// The folder of the cache
        path: PathBuf,
        /// A graph whose entries are kept; may be given more than once
        #[arg(long = "keep", value_name = "GRAPH", required_unless_present = "all")]
        keep: Vec<PathBuf>,
        /// A setting over all of these graphs; may be given more than once
        #[arg(long = "set", value_name = "NODE.SETTING=VALUE", requires = "keep")]
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
        path: PathBuf,
        /// Set a setting of the graph; may be given more than once
        #[arg(long = "set", value_name = "NODE.SETTING=VALUE")]
        sets: Vec<String>,
        /// Most pixels of a picture, where no graph says so [default: 128000000]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        max_pixels: Option<u64>,
        /// Write the bad samples into this file, one JSON object a line
        #[arg(long, value_name = "FILE")]
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
    /// A graph file (RON)
    #[arg(value_name = "GRAPH")]
    pub graph: Option<PathBuf>,
    /// Set a setting; may be given more than once
    #[arg(long = "set", value_name = "NODE.SETTING=VALUE")]
    pub sets: Vec<String>,
    /// Steps until the run is complete
    #[arg(long)]
    pub steps: Option<u64>,
    /// Seed of all random numbers
    #[arg(long)]
    pub seed: Option<u64>,
    /// Nodes that run at the same time; 0 chooses
    #[arg(long)]
    pub lanes: Option<usize>,
    /// Worker threads of the kernels; 0 is one a core
    #[arg(long)]
    pub threads: Option<usize>,
    /// Where to compute: cpu
    #[arg(long, default_value = "cpu", value_parser = device)]
    pub device: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub graph: Graph,
    /// Folder of the run [default: runs/NAME]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the folder
    #[arg(long)]
    pub resume: bool,
    /// Resume although settings have changed that change results
    #[arg(long)]
    pub accept_changes: bool,
    /// Print the metrics of every step as JSON lines
    #[arg(long)]
    pub json: bool,
}

/// The only device of this build, or why another is none.
fn device(text: &str) -> Result<String, String> {
    match text {
        "cpu" => Ok(text.to_owned()),
        _ if text.starts_with("cuda") => {
            Err("this build computes on the CPU only: say `--device cpu`, or leave it out".into())
        }
        _ => Err("the devices are: cpu".into()),
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
        sets
    }
}
