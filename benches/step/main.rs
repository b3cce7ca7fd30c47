//! One FocusDPO step on a device, timed: noise, reference pass, policy pass with scores, mask, loss, backward, AdamW.
//!
//! ```text
//! cargo bench --bench step -- SHAPE.. [--device cuda:0] [--compute bf16] [--checkpointing none,blocks] [--pixels 512] ...
//! ```
//!
//! SHAPE is one of `benches/peers/shapes.json`: `tiny`, `small`, `bench`, `large`, `flux-dev`, `sdxl-tiny`, `sdxl-bench` or `sdxl`. Weights
//! are random ones of that shape, or those of `--weights`; those of SDXL can be made beforehand (`--make`). Each case is one line of JSON, in the words of `benches/peers/torch_step.py`; a case that fails is
//! a line with its error. `--write FOLDER` writes the first steps down for `benches/peers/torch_agree.py` instead.
//!
//! ```text
//!  shape    sizes by name             network  an open network, random weights   random   values of weights
//!  batch    a batch, drawn once       graph    the step                          record   steps for a peer to repeat
//!  measure  seconds, memory, idleness gpu_use  what the driver counts
//! ```

mod batch;
mod gpu_use;
mod graph;
mod measure;
mod network;
mod random;
mod record;
mod shape;

use std::{
    error::Error,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use prefgraph::{Plan, PlanOptions, RunOptions, Runner, plan::GpuOptions};
use prefgraph_nn::{
    Cpu,
    cuda::Cuda,
    device::Precision,
    layers::{Loading, Packing},
    models,
};
use serde_json::json;

use self::{
    measure::{Pace, measure, peak_bytes},
    network::Network,
    shape::Shape,
};

/// Times one FocusDPO step.
#[derive(Debug, Parser)]
#[command(name = "step")]
struct Args {
    /// Shapes of benches/peers/shapes.json
    shapes: Vec<String>,
    /// Where the network runs: `cpu` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// What the operands of products are rounded to
    #[arg(long, value_enum, default_value_t = Compute::F32)]
    compute: Compute,
    /// What a pass keeps for its backward; each is a case
    #[arg(long, value_enum, value_delimiter = ',', default_value = "none")]
    checkpointing: Vec<Checkpointing>,
    /// Side of the target; each is a case. Those of the shape where none is given
    #[arg(long, value_delimiter = ',')]
    pixels: Vec<usize>,
    /// Weights stay in their file, and are read by every product
    #[arg(long)]
    streamed: bool,
    /// Weights of a network of this shape, instead of random ones; beside a U-Net's lies `ip_adapter.safetensors`
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Time nothing: write random weights of a U-Net into this folder, for a later `--weights`
    #[arg(long)]
    make: Option<PathBuf>,
    /// Steps before the first that is timed
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// The fewest steps that are timed
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Time steps for so many seconds at least: the driver counts the idleness of a GPU over seconds
    #[arg(long, default_value_t = 0.0)]
    seconds: f64,
    /// Worker threads of the processor; 0 is one for each core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Lanes of the plan; the second and later ones run ahead
    #[arg(long, default_value_t = 2)]
    lanes: usize,
    /// Learning rate
    #[arg(long, default_value_t = 1e-5)]
    lr: f64,
    /// Print when each task of a step ran, too
    #[arg(long)]
    tasks: bool,
    /// Time nothing: write the first steps into this folder
    #[arg(long)]
    write: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Compute {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Checkpointing {
    None,
    Selective,
    Blocks,
}

impl Checkpointing {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Selective => "selective",
            Self::Blocks => "blocks",
        }
    }
}

impl From<Checkpointing> for models::Checkpointing {
    fn from(checkpointing: Checkpointing) -> Self {
        match checkpointing {
            Checkpointing::None => Self::None,
            Checkpointing::Selective => Self::Selective,
            Checkpointing::Blocks => Self::Blocks,
        }
    }
}

/// One line of results.
struct Case<'a> {
    args: &'a Args,
    name: &'a str,
    shape: &'a Shape,
    pixels: usize,
    checkpointing: Checkpointing,
}

impl Case<'_> {
    /// What the case is, as every peer says it.
    fn about(&self) -> serde_json::Value {
        json!({
            "who": "ours",
            "shape": self.name,
            "pixels": self.pixels,
            "device": self.args.device,
            "compute": match self.args.compute { Compute::F32 => "f32", Compute::Bf16 => "bf16" },
            "checkpointing": self.checkpointing.name(),
            "lr": self.args.lr,
        })
    }

    /// Time it, or write its steps down.
    fn run(
        &self,
        host: &Cpu,
        gpu: Option<&Cuda>,
        network: &mut Network,
    ) -> Result<serde_json::Value, Box<dyn Error>> {
        network.set_checkpointing(self.checkpointing.into())?;
        let args = self.args;
        let (graph, wires) = graph::step(network, self.shape, self.pixels, args.lr)?;
        let options = PlanOptions {
            lanes: args.lanes,
            ahead: args.lanes.saturating_sub(1),
            gpu: gpu.map(|gpu| GpuOptions { number: gpu.info().ordinal, rates: None, driver: 0 }),
            ..Default::default()
        };
        let plan = Plan::new(&graph, &options)?;
        if let Some(gpu) = gpu {
            gpu.forget_peak_memory()?;
        }
        let options = RunOptions { gpu: gpu.cloned(), ..RunOptions::new(0, host.clone()) };
        let began = Instant::now();
        let mut runner = Runner::new(Arc::new(graph), plan, options)?;
        let mut line = self.about();
        if let Some(folder) = &args.write {
            record::write(folder, line.clone(), &network.frozen()?, &mut runner, &wires)?;
            return Ok(line);
        }
        let time = Duration::try_from_secs_f64(args.seconds)?;
        let pace = Pace { warmup: args.warmup, steps: args.steps, time };
        let measured = measure(&mut runner, began, pace, gpu.map(|gpu| gpu.info().ordinal))?;
        let seconds = &measured.seconds;
        line["median_s"] = json!(measured.median());
        line["min_s"] = json!(seconds.first());
        line["max_s"] = json!(seconds.last());
        line["steps"] = json!(seconds.len());
        line["loss"] = json!(measured.loss);
        line["peak_bytes"] = json!(peak_bytes(gpu)?);
        line["idle"] = json!(measured.idle);
        line["without_pass"] = json!(measured.without_pass);
        if args.tasks {
            for (task, lane, start, took) in &measured.tasks {
                eprintln!("lane {lane}  from {start:9.2} ms  {took:9.2} ms  {task}");
            }
        }
        Ok(line)
    }
}

fn bench(args: &Args, name: &str) -> Result<bool, Box<dyn Error>> {
    let shape = Shape::named(name)?;
    if let Some(folder) = &args.make {
        return network::make(&shape, folder).map(|()| true);
    }
    let host = Cpu::new(args.threads)?;
    let gpu = match args.device.strip_prefix("cuda:") {
        Some(number) => Some(Cuda::open(number.parse()?)?),
        None if args.device == "cpu" => None,
        None => return Err(format!("--device {}: expected `cpu` or `cuda:0`", args.device).into()),
    };
    let precision = match args.compute {
        Compute::F32 => Precision::F32,
        Compute::Bf16 => Precision::Bf16,
    };
    let packing = if args.streamed { Packing::Streamed } else { Packing::Resident };
    let loading = Loading { precision, packing };
    let mut network = Network::open(&shape, args.weights.as_deref(), &host, gpu.as_ref(), loading)?;
    let pixels = if args.pixels.is_empty() { &shape.pixels } else { &args.pixels };
    let mut all_ran = true;
    for &pixels in pixels {
        for &checkpointing in &args.checkpointing {
            let case = Case { args, name, shape: &shape, pixels, checkpointing };
            let line = case.run(&host, gpu.as_ref(), &mut network).unwrap_or_else(|error| {
                all_ran = false;
                let mut line = case.about();
                line["error"] = json!(error.to_string());
                line
            });
            writeln!(std::io::stdout(), "{line}")?;
        }
    }
    Ok(all_ran)
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.shapes.is_empty() {
        // `cargo bench` without arguments runs every bench; this one would take minutes.
        eprintln!("skipped: it needs a shape, as in cargo bench --bench step -- bench");
    }
    let mut code = ExitCode::SUCCESS;
    for name in &args.shapes {
        match bench(&args, name) {
            Ok(true) => {}
            Ok(false) => code = ExitCode::FAILURE,
            Err(error) => {
                eprintln!("step: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    code
}
