//! `graph-run sample`: pictures from a prompt, with the networks of any graph.
//!
//! ```text
//!  parts   what a graph says of its networks, whatever else it does
//!  build   the graph that draws, made of them
//!  files   names of pictures, and what they record about themselves
//! ```

mod build;
mod files;
mod parts;

use std::path::{Path, PathBuf};

use prefgraph_nn as nn;
use prefgraph_ops::{operators::pairs::Asked, words};

use self::{
    build::{Drawing, Prompted, Wanted},
    files::About,
    parts::{Parts, Size},
};
use super::{Failure, args, device, say::say, system, threads};
use crate::{
    plan::{Place, Plan, PlanOptions},
    registry::Registry,
    run::{RunOptions, Runner},
    spec::{CPU, DEVICES, Outline, is_device},
};

/// Draw the pictures that were asked for.
pub(super) fn sample(args: &args::Sample, registry: &Registry) -> Result<u8, Failure> {
    let outline = Outline::open(&args.graph, &args.sets, registry)?;
    let parts = Parts::of(&outline)?;
    let first = args.seed.or(parts.sample.seed).unwrap_or(0);
    let seeds = seeds(first, args.count)?;
    // Before anything large is read.
    let paths: Vec<_> = seeds.iter().map(|seed| args.out.join(files::name(&args.prompt, *seed))).collect();
    files::check(&paths, args.overwrite)?;

    let wanted = Wanted {
        prompts: Prompted::One { prompt: &args.prompt, references: &args.references },
        adapter: args.adapter.as_deref(),
        lora_scale: args.lora_scale,
        size: args.size.map_or(parts.size, |size| (size.height, size.width)),
        reference_size: parts.reference_size,
        steps: args.steps,
        guidance: args.guidance,
        negative: args.negative.as_deref(),
        cfg: args.cfg,
    };
    let easel = Easel::new(&parts, &wanted, args.threads, &device_of(&outline, args.device.as_deref())?)?;
    introduce(&easel.drawing, &wanted, seeds.len());
    if let Some(trained) = files::trained_beside(&args.graph).filter(|_| args.adapter.is_none()) {
        say!("  what this run has trained is not used: --adapter {} draws with it", trained.display());
    }
    files::make_folder(&args.out)?;
    for (seed, path) in seeds.into_iter().zip(paths) {
        let about = easel.about(&args.prompt, &args.references, &wanted, seed, outline.name());
        easel.draw(seed, vec![(path, about)], args.overwrite)?;
    }
    Ok(0)
}

/// Where networks run: as asked for, else as the graph says.
fn device_of(outline: &Outline<'_>, asked: Option<&str>) -> Result<String, Failure> {
    let device = match asked {
        Some(asked) => asked.to_owned(),
        None => outline.device()?.unwrap_or_else(|| CPU.to_owned()),
    };
    if !is_device(&device) {
        return Err(Failure::new(format!("`run.device` of the graph is {device:?}: {DEVICES}")));
    }
    Ok(device)
}

/// A picture of a list: what it is drawn from, and the file that it becomes.
pub(super) struct Listed {
    pub asked: Asked,
    pub file: PathBuf,
}

/// Pictures of a list, drawn with the networks of a graph.
pub(super) struct Many<'a> {
    pub graph: &'a Path,
    pub sets: &'a [String],
    pub adapter: Option<&'a Path>,
    pub size: Size,
    pub reference_size: Size,
    pub steps: usize,
    /// Of networks that take one.
    pub guidance: Option<f64>,
    /// What networks avoid that draw with classifier-free guidance.
    pub negative: Option<&'a str>,
    pub threads: Option<usize>,
    pub device: Option<&'a str>,
    /// What messages call the list.
    pub origin: &'a str,
}

impl Many<'_> {
    /// Draw all of them at one seed; a file that exists is an error.
    pub fn draw(&self, seed: u64, pictures: &[Listed], registry: &Registry) -> Result<(), Failure> {
        let outline = Outline::open(self.graph, self.sets, registry)?;
        let parts = Parts::of(&outline)?;
        let asked: Vec<Asked> = pictures.iter().map(|picture| picture.asked.clone()).collect();
        let wanted = Wanted {
            prompts: Prompted::Listed { origin: self.origin, asked: &asked },
            adapter: self.adapter,
            lora_scale: None,
            size: self.size,
            reference_size: self.reference_size,
            steps: Some(self.steps),
            guidance: self.guidance,
            negative: self.negative,
            cfg: None,
        };
        let easel = Easel::new(&parts, &wanted, self.threads, &device_of(&outline, self.device)?)?;
        introduce(&easel.drawing, &wanted, pictures.len());
        for folder in pictures.iter().filter_map(|picture| picture.file.parent()) {
            files::make_folder(folder)?;
        }
        let name = outline.name();
        let all = pictures.iter().zip(&asked).map(|(picture, asked)| {
            let about = easel.about(&asked.prompt, &asked.references, &wanted, seed, name);
            (picture.file.clone(), about)
        });
        let all = all.collect();
        easel.draw(seed, all, false)
    }
}

/// A graph that draws, planned, and where it runs.
struct Easel {
    drawing: Drawing,
    plan: Plan,
    cpu: nn::Cpu,
    gpu: Option<nn::cuda::Cuda>,
}

impl Easel {
    fn new(
        parts: &Parts,
        wanted: &Wanted<'_>,
        threads: Option<usize>,
        device: &str,
    ) -> Result<Self, Failure> {
        let drawing = build::build(parts, wanted)?;
        let (threads, fewer) = threads::capped(threads.unwrap_or(0));
        if let Some(fewer) = fewer {
            say!("note: {fewer}");
        }
        let gpu = device::open(device)?;
        let process = system::process_memory(threads);
        let options =
            PlanOptions { ahead: 0, process, gpu: device::planned(device), ..PlanOptions::default() };
        let plan = Plan::new(&drawing.graph, &options).map_err(Failure::new)?;
        check_memory(&plan, device::memory(device))?;
        let cpu = nn::Cpu::new(threads).map_err(Failure::new)?;
        Ok(Self { drawing, plan, cpu, gpu })
    }

    /// What a picture records about itself.
    fn about<'a>(
        &self,
        prompt: &'a str,
        references: &'a [PathBuf],
        wanted: &Wanted<'a>,
        seed: u64,
        graph: &'a str,
    ) -> About<'a> {
        let Drawing { steps, guidance, cfg, lora_scale, ip_scale, .. } = self.drawing;
        let (adapter, negative) = (wanted.adapter, wanted.negative);
        About {
            prompt,
            seed,
            adapter,
            lora_scale,
            references,
            steps,
            guidance,
            cfg,
            ip_scale,
            negative,
            graph,
        }
    }

    /// Draw the pictures of all steps at one seed.
    fn draw(&self, seed: u64, pictures: Vec<(PathBuf, About<'_>)>, overwrite: bool) -> Result<(), Failure> {
        let drawing = &self.drawing;
        let options = RunOptions {
            last: Some(pictures.len() as u64 - 1),
            gpu: self.gpu.clone(),
            ..RunOptions::new(seed, self.cpu.clone())
        };
        let runner = Runner::new(drawing.graph.clone(), self.plan.clone(), options);
        let mut runner = runner.map_err(Failure::new)?;
        runner.keep(drawing.images.endpoint()).map_err(Failure::new)?;
        for (path, about) in pictures {
            let output = runner.step().map_err(Failure::new)?;
            let images = output.value(drawing.images);
            let images =
                images.ok_or_else(|| Failure::new("internal error, please report it: no picture"))?;
            // Another command may have written it since the beginning.
            files::check(std::slice::from_ref(&path), overwrite)?;
            files::write(&path, &images, &about)?;
            say!("`{}` ({})", path.display(), system::seconds(output.seconds));
        }
        Ok(())
    }
}

fn seeds(first: u64, count: u64) -> Result<Vec<u64>, Failure> {
    // More pictures than anybody waits for; the list of their names must fit into memory.
    const MOST: u64 = 1_000_000;
    match first.checked_add(count) {
        Some(end) if count <= MOST => Ok((first..end).collect()),
        _ => Err(Failure::new(format!(
            "--count {count} from --seed {first}: at most {MOST} pictures at once, and no seed beyond {}",
            u64::MAX - 1
        ))),
    }
}

/// `gpu`: bytes of its memory.
fn check_memory(plan: &Plan, gpu: Option<u64>) -> Result<(), Failure> {
    for (place, memory) in plan.memory_by_place() {
        let (there, whose) = match place {
            Place::Cpu => (system::machine_memory(), "this machine".to_owned()),
            Place::Cuda(_) => (gpu, place.to_string()),
        };
        let need = memory.peak as u64;
        if let Some(there) = there.filter(|there| need > *there) {
            return Err(Failure::new(format!(
                "drawing needs {} of memory, and {whose} has {}: choose a smaller --size, or stream the weights in bf16 \
                 (--set NODE.packing=streamed --set NODE.compute=bf16)",
                system::bytes(need),
                system::bytes(there)
            )));
        }
    }
    Ok(())
}

fn introduce(drawing: &Drawing, wanted: &Wanted<'_>, count: usize) {
    let (height, width) = wanted.size;
    let guidance = drawing.guidance.map(|g| format!(", guidance {g}")).unwrap_or_default();
    // Two passes for each step.
    let (passes, cfg) = match drawing.cfg {
        1.0 => (drawing.steps, String::new()),
        cfg => (2 * drawing.steps, format!(", classifier-free guidance {cfg}")),
    };
    let ip_scale = drawing.ip_scale.map(|s| format!(", IP-Adapter at {s}")).unwrap_or_default();
    let network = match wanted.adapter {
        Some(adapter) if drawing.lora_scale == 1.0 => format!("with the adapter `{}`", adapter.display()),
        Some(adapter) => format!("with {} of the adapter `{}`", drawing.lora_scale, adapter.display()),
        None => "from the frozen network, without an adapter".to_owned(),
    };
    say!(
        "{} of {width} x {height} pixels (width x height), {} each{guidance}{cfg}{ip_scale}, {network}",
        words::count(count, "picture"),
        words::count(passes, "pass"),
    );
    for note in &drawing.notes {
        say!("  {note}");
    }
}
