//! `graph-run GRAPH`: a run from its folder to its end.
//!
//! Everything that can be refused is refused before anything in the run's folder changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use prefgraph_nn as nn;
use prefgraph_ops::{Operator, operators::benchmark::Benchmark};

use super::{
    Failure, INTERRUPTED, args, device, fill, fits,
    health::Health,
    interrupt,
    prepare::{Prepared, prepare},
    progress::Progress,
    resume::{Found, Resuming},
    say::say,
    session::{Saved, Session},
    steps::Loop,
    system,
    trained::{adapter_cells, complete, origin, rates, warn_of_nothing},
    updates::Updates,
};
use crate::{
    checkpoint::Checkpoint,
    folder::{Accepted, Command, MetricsFile, RunFolder, Survey as Lines},
    registry::Registry,
    run::{RunOptions, Runner},
    sources::{Reader, Survey},
    spec,
};

/// Run a graph to its end, or until somebody interrupts.
pub(super) fn run(args: &args::Run, registry: &Registry) -> Result<u8, Failure> {
    let path = match (&args.out, &args.graph.graph) {
        (Some(out), _) => out.clone(),
        (None, Some(graph)) => PathBuf::from("runs").join(spec::name(graph)?),
        (None, None) => return Err(Failure::new("no graph was named")),
    };
    let (existing, mut command) = existing(&path, args.resume)?;
    forget(&mut command, args, registry);
    let mut prepared = prepare(&args.graph.recalling(&command.set), registry)?;
    if let Some((_, node)) = prepared.graph.nodes().find(|(_, node)| node.op.name() == Benchmark::NAME) {
        return Err(Failure::new(format!(
            "`{}` reads the pictures of a benchmark, which nothing learns from: `graph-run evaluate` scores them",
            node.id
        )));
    }
    fits::check(&prepared, device::memory(&prepared.run.device), registry)?;
    let gpu = device::open(&prepared.run.device)?;
    let mut folder = match existing {
        Some(folder) => folder,
        None => RunFolder::open(&path, args.resume).map_err(Failure::new)?,
    };
    for note in &folder.notes {
        say!("note: {note}");
    }
    interrupt::watch()?;
    let mut survey = Survey::of(&prepared.graph).map_err(Failure::new)?;
    let resuming = Resuming {
        folder: &folder,
        prepared: &prepared,
        registry,
        command: &command,
        accept: args.accept_changes,
    };
    let found = if args.resume { resuming.find(&mut survey)? } else { Found::Nothing };
    let (found, accepted) = match found {
        Found::Interrupted => return Ok(INTERRUPTED),
        Found::Nothing => (None, None),
        Found::At(checkpoint, accepted) => (Some(checkpoint), accepted),
    };
    let start = found.as_ref().map_or(0, |c| c.step);
    let mut updates = Updates::default();
    let mut health = Health::new(&prepared.graph);
    let lines = Lines::of(folder.path(), start, &mut |line| {
        updates.recall(line);
        health.recall(line);
    });
    let lines = lines.map_err(Failure::new)?;
    for damage in lines.damage() {
        say!("warning: {damage}");
    }
    if let Some(checkpoint) = found.as_ref().filter(|c| c.step >= prepared.run.steps) {
        return finished(&mut folder, &prepared, checkpoint);
    }
    introduce(&prepared, &path);
    if let Some(gpu) = &gpu {
        device::introduce(gpu, &prepared.graph);
    }
    let cpu = nn::Cpu::new(prepared.run.threads).map_err(Failure::new)?;
    let options = RunOptions {
        last: Some(prepared.run.steps - 1),
        gpu: gpu.clone(),
        ..RunOptions::new(prepared.run.seed, cpu.clone())
    };
    let runner = Runner::new(prepared.graph.clone(), prepared.plan.clone(), options);
    let mut runner = runner.map_err(Failure::new)?;
    if let Some(checkpoint) = &found {
        runner.restore(start, &checkpoint.cells).map_err(Failure::new)?;
        say!("resumed at step {start}");
    }
    let newest = found.map(|c| c.step);
    // Before the run writes anything: interrupting this leaves the folder as it was.
    if !fill::fill(&mut prepared, &cpu, gpu.as_ref())? {
        return Ok(INTERRUPTED);
    }
    let reader = Reader::start(survey)
        .map_err(|e| Failure::new(format!("cannot start a thread to read the data: {e}")))?;
    let begin = Begin { command, accepted, newest, lines, updates };
    let session = begin.write(folder, &prepared, args, reader)?;
    begin_loop(prepared, session, runner, health, args.json)
}

/// The folder of the run to resume, if it exists, and the settings it remembers.
fn existing(path: &Path, resume: bool) -> Result<(Option<RunFolder>, Command), Failure> {
    match fs::symlink_metadata(path) {
        _ if !resume => return Ok((None, Command::default())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((None, Command::default())),
        _ => {}
    }
    let folder = RunFolder::open(path, true).map_err(Failure::new)?;
    let command = folder.command().map_err(Failure::new)?;
    if !command.set.is_empty() {
        let sets: Vec<String> = command.set.iter().map(|set| format!("--set {set}")).collect();
        say!("settings of this run: {}", sets.join(" "));
    }
    Ok((Some(folder), command))
}

/// Forget settings of nodes that the graph no longer has. What else is wrong with the graph is said when it is built.
fn forget(command: &mut Command, args: &args::Run, registry: &Registry) {
    let Some(path) = args.graph.graph.as_deref().filter(|_| !command.set.is_empty()) else { return };
    let Ok(outline) = spec::Outline::open(path, &[], registry) else { return };
    command.set.retain(|set| {
        let kept = outline.has_place_for(set);
        if !kept {
            say!("note: `--set {set}` of this run is forgotten: the graph has no such node any more");
        }
        kept
    });
}

/// A run that has all its steps: write the adapter if it is missing.
fn finished(folder: &mut RunFolder, prepared: &Prepared, checkpoint: &Checkpoint) -> Result<u8, Failure> {
    folder.keep();
    for path in complete(folder, &prepared.graph, &prepared.plan, checkpoint)? {
        let (step, path) = (checkpoint.step, path.display());
        say!("the adapter of step {step} was missing; it is in `{path}`, read back and compared");
    }
    let (made, steps) = (checkpoint.step, prepared.run.steps);
    match made > steps {
        true => {
            say!("the run already has {made} steps, more than the {steps} asked for; --steps asks for more")
        }
        false => say!("the run is complete: it has {made} steps of {steps}; --steps asks for more"),
    }
    Ok(0)
}

/// The lines at the start of a run.
fn introduce(prepared: &Prepared, path: &Path) {
    say!(
        "{}: {} steps into `{}`, {} trainable values, {:.2e} FLOP a step, predicted peak memory {}{}",
        prepared.graph.name,
        prepared.run.steps,
        path.display(),
        prepared.trainable(),
        prepared.flops(),
        system::bytes(prepared.plan.memory().peak as u64),
        fits::on_gpu(&prepared.plan).map(|(gpu, need)| format!(", of {gpu} {need}")).unwrap_or_default(),
    );
    for note in prepared.notes.iter().chain(&prepared.cache_lines()) {
        say!("  {note}");
    }
    warn_of_nothing(prepared);
}

/// What is known when a run starts to write.
struct Begin {
    command: Command,
    accepted: Option<Accepted>,
    /// Step of the checkpoint it continues from.
    newest: Option<u64>,
    lines: Lines,
    updates: Updates,
}

impl Begin {
    /// Take the folder over and write the files that precede the first step.
    fn write(
        self,
        mut folder: RunFolder,
        prepared: &Prepared,
        args: &args::Run,
        mut reader: Reader,
    ) -> Result<Session, Failure> {
        folder.check().map_err(Failure::new)?;
        folder.keep();
        let newest = match self.newest {
            Some(step) => step,
            None => mark(&folder, prepared, &mut reader)?,
        };
        let machine = |set: &String| set.starts_with("run.lanes=") || set.starts_with("run.threads=");
        let mut set = Command::default().over(&prepared.sets);
        set.retain(|set| !machine(set));
        let graph = args.graph.graph.as_deref().unwrap_or(Path::new("")).display().to_string();
        let accepted = self.accepted.or(self.command.accepted);
        folder.write_command(&Command { graph, set, accepted }).map_err(Failure::new)?;
        folder.write_text("graph.ron", &prepared.resolved).map_err(Failure::new)?;
        let picture = prepared.plan.to_dot(&prepared.graph).to_string();
        folder.write_text("graph.dot", &picture).map_err(Failure::new)?;
        if self.lines.later > 0 {
            say!(
                "note: {} lines of metrics.jsonl, from step {newest} on, are cut off; these steps run again",
                self.lines.later
            );
        }
        let metrics = MetricsFile::open(folder.path(), newest).map_err(Failure::new)?;
        Ok(Session {
            folder,
            metrics,
            run: prepared.run.clone(),
            resolved: prepared.resolved.clone(),
            saved: Saved::new(newest),
            adapters: adapter_cells(&prepared.graph),
            rates: rates(&prepared.graph),
            origin: origin(&prepared.graph),
            updates: self.updates,
            reader,
        })
    }
}

/// Write the checkpoint of step 0: the folder holds a run from now on, and starting over loses nothing.
fn mark(folder: &RunFolder, prepared: &Prepared, reader: &mut Reader) -> Result<u64, Failure> {
    // Enough for a small data set; a large one is not worth the wait.
    const PATIENCE: Duration = Duration::from_secs(1);
    let sources = Some(reader.sources(PATIENCE).clone());
    let (seed, graph) = (prepared.run.seed, prepared.resolved.clone());
    let checkpoint = Checkpoint { step: 0, seed, graph, sources, cells: Default::default() };
    checkpoint.write(&folder.checkpoints()).map_err(Failure::new)?;
    Ok(0)
}

fn begin_loop(
    prepared: Prepared,
    session: Session,
    mut runner: Runner,
    health: Health,
    json: bool,
) -> Result<u8, Failure> {
    let (steps, start) = (prepared.run.steps, runner.next_step());
    for cell in &session.adapters {
        runner.keep(cell.next).map_err(Failure::new)?;
        if start == 0 {
            runner.keep(cell.value).map_err(Failure::new)?;
        }
    }
    let progress = Progress::new(start, steps, prepared.run.log_every);
    let mut running = Loop { runner, session, progress, health, json };
    let done = running.go(steps);
    running.progress.end();
    done.map_err(|stop| running.session.explain(stop))
}
