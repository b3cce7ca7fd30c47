//! Arguments of `graph-run adapter`.

use std::path::PathBuf;

use clap::Subcommand;
use prefgraph_nn::lora::AdapterFormat;

use super::path;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Adapter {
    /// Say what a file holds: names, rank, alpha, the linears it adapts, what its header says
    Show {
        /// An adapter of any known tool: a file, or the folder that PEFT or diffusers saved
        #[arg(value_parser = path())]
        path: PathBuf,
    },
    /// Write an adapter in another format, read it back and compare it; refused where something would be lost
    Convert(Convert),
    /// Write the adapter of a checkpoint
    Export(ExportCheckpoint),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Convert {
    /// An adapter of any known tool: a file, or the folder that PEFT or diffusers saved
    #[arg(value_parser = path())]
    pub input: PathBuf,
    /// The file to write
    #[arg(value_parser = path())]
    pub output: PathBuf,
    /// The format to write: diffusers, which diffusers and ComfyUI load, kohya, which ComfyUI and kohya's scripts load, or uno
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub to: AdapterFormat,
    /// The FLUX transformer or the U-Net that the adapter is for, a folder or a file: names and widths are compared with it
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub weights: Option<PathBuf>,
    /// Leave out factors of text encoders, which are otherwise a reason to refuse the file
    #[arg(long)]
    pub drop_text_encoders: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExportCheckpoint {
    /// A checkpoint, `checkpoints/step-N` of a run, or the folder of the run for its newest
    #[arg(value_parser = path())]
    pub checkpoint: PathBuf,
    /// The file to write
    #[arg(value_parser = path())]
    pub output: PathBuf,
    /// The format to write: diffusers, kohya, uno, or ip_adapter, a copy of the IP-Adapter's file with what was trained of it; where
    /// linears are trained whole that is the default, else diffusers
    #[arg(long, value_name = "FORMAT", value_parser = format_of_a_checkpoint)]
    pub to: Option<AdapterFormat>,
    /// The IP-Adapter that was trained, where it no longer lies where the checkpoint's graph has it
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub ip_adapter: Option<PathBuf>,
    /// The network that it belongs to, likewise
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub weights: Option<PathBuf>,
    /// The cell that holds the adapter, where there is more than one
    #[arg(long)]
    pub cell: Option<String>,
}

fn format(text: &str) -> Result<AdapterFormat, String> {
    if text == AdapterFormat::IpAdapter.name() {
        return Err("it is a copy of an IP-Adapter's file, which is made from a checkpoint: `graph-run adapter export CHECKPOINT \
                    OUT --to ip_adapter`"
            .into());
    }
    one_of(&AdapterFormat::ALL, text)
}

fn format_of_a_checkpoint(text: &str) -> Result<AdapterFormat, String> {
    let [diffusers, kohya, uno] = AdapterFormat::ALL;
    one_of(&[diffusers, kohya, uno, AdapterFormat::IpAdapter], text)
}

fn one_of(formats: &[AdapterFormat], text: &str) -> Result<AdapterFormat, String> {
    let names = || formats.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
    formats.iter().copied().find(|f| f.name() == text).ok_or_else(|| format!("the formats are: {}", names()))
}
