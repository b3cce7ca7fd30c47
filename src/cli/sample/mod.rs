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

use std::path::Path;

use prefgraph_nn as nn;

use self::{
    build::{Drawing, Wanted},
    files::About,
    parts::Parts,
};
use super::{Failure, args, device, say::say, system, threads};
use crate::{
    plan::{Place, Plan, PlanOptions},
    registry::Registry,
    run::{RunOptions, Runner},
    spec::{CPU, Outline},
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
        prompt: &args.prompt,
        references: &args.references,
        adapter: args.adapter.as_deref(),
        size: args.size.map_or(parts.size, |size| (size.height, size.width)),
        steps: args.steps,
        guidance: args.guidance,
        negative: args.negative.as_deref(),
        cfg: args.cfg,
    };
    let drawing = build::build(&parts, &wanted)?;
    let (threads, fewer) = threads::capped(args.threads.unwrap_or(0));
    if let Some(fewer) = fewer {
        say!("note: {fewer}");
    }
    let device = args.device.as_deref().unwrap_or(CPU);
    let gpu = device::open(device)?;
    let process = system::process_memory(threads);
    let options = PlanOptions { ahead: 0, process, gpu: device::planned(device), ..PlanOptions::default() };
    let plan = Plan::new(&drawing.graph, &options);
    let plan = plan.map_err(Failure::new)?;
    check_memory(&plan, device::memory(device))?;
    introduce(&drawing, &wanted, seeds.len());

    files::make_folder(&args.out)?;
    let cpu = nn::Cpu::new(threads).map_err(Failure::new)?;
    for (seed, path) in seeds.into_iter().zip(paths) {
        let options = RunOptions { last: Some(0), gpu: gpu.clone(), ..RunOptions::new(seed, cpu.clone()) };
        let runner = Runner::new(drawing.graph.clone(), plan.clone(), options);
        let mut runner = runner.map_err(Failure::new)?;
        runner.keep(drawing.images.endpoint()).map_err(Failure::new)?;
        let output = runner.step().map_err(Failure::new)?;
        let images = output.value(drawing.images);
        let images = images.ok_or_else(|| Failure::new("internal error, please report it: no picture"))?;
        let about = About {
            prompt: &args.prompt,
            seed,
            adapter: args.adapter.as_deref(),
            references: &args.references,
            steps: drawing.steps,
            guidance: drawing.guidance,
            cfg: drawing.cfg,
            negative: args.negative.as_deref(),
            graph: outline.name(),
        };
        // Another command may have written it since the beginning.
        files::check(std::slice::from_ref(&path), args.overwrite)?;
        files::write(&path, &images, &about)?;
        say!("`{}` ({})", path.display(), system::seconds(output.seconds));
    }
    Ok(0)
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
    let network = match wanted.adapter {
        Some(adapter) => format!("with the adapter `{}`", Path::display(adapter)),
        None => "from the frozen network, without an adapter".to_owned(),
    };
    say!(
        "{count} picture{} of {width} x {height} pixels (width x height), {passes} pass{} each{guidance}{cfg}, {network}",
        if count == 1 { "" } else { "s" },
        if passes == 1 { "" } else { "es" },
    );
    for note in &drawing.notes {
        say!("  {note}");
    }
}
