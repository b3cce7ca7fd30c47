//! `graph-run GRAPH`: a run from its folder to its end.
//!
//! Everything that can be refused is refused before anything in the run's folder changes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use prefgraph_nn as nn;
use prefgraph_ops::{Operator, operators::benchmark::Benchmark, words::count};

use super::{
    Failure, INTERRUPTED, args,
    begin::{Begin, Subject},
    device, fill, fits,
    health::Health,
    interrupt,
    measured::complete_best,
    prepare::{Prepared, prepare},
    progress::Progress,
    resume::{Found, NEW_RUN, Resumed, Resuming},
    say::say,
    session::Session,
    steps::Loop,
    system,
    trained::{complete, warn_of_nothing},
    updates::Updates,
};
use crate::{
    checkpoint::Checkpoint,
    folder::{Command, RunFolder, Survey as Lines},
    registry::Registry,
    run::{RunError, RunOptions, Runner},
    sources::{Reader, Survey},
    spec,
};

/// Run a graph to its end, or until somebody interrupts.
pub(super) fn run(args: &args::Run, registry: &Registry) -> Result<u8, Failure> {
    let path = match (&args.out, &args.graph.graph) {
        (Some(out), _) => out.clone(),
        // The folder of a run, which stands for its graph: that run goes on.
        (None, Some(graph))
            if args.resume
                && graph.ends_with("graph.ron")
                && graph.with_file_name("checkpoints").is_dir() =>
        {
            graph
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."))
                .to_owned()
        }
        (None, Some(graph)) => PathBuf::from("runs").join(spec::name(graph)?),
        (None, None) => return Err(Failure::new("no graph was named")),
    };
    let (existing, mut command) = existing(&path, args.resume)?;
    if !command.over.is_empty() {
        return Err(Failure::new(format!(
            "`{0}` holds a sweep; `graph-run sweep GRAPH --resume --out {0}` continues it",
            path.display()
        )));
    }
    forget(&mut command, &args.graph, registry);
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
        graph: &prepared.graph,
        plan: &prepared.plan,
        resolved: &prepared.resolved,
        steps: prepared.run.steps,
        registry,
        command: &command,
        accept: args.accept_changes,
    };
    let found = if args.resume { resuming.find(&mut survey)? } else { Found::Nothing };
    let (found, accepted, other_pairs) = match found {
        Found::Interrupted => return Ok(INTERRUPTED),
        Found::Nothing => (None, None, false),
        Found::At(Resumed { checkpoint, accepted, other_pairs }) => (Some(checkpoint), accepted, other_pairs),
    };
    let start = found.as_ref().map_or(0, |c| c.step);
    let mut updates = Updates::default();
    let mut health = Health::new(&prepared.graph);
    let lines = Lines::of(folder.path(), start, &mut |line| {
        updates.recall(line);
        health.recall(line);
    });
    let lines = lines.map_err(Failure::new)?;
    if other_pairs {
        health.forget_held_out();
    }
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
        runner.restore(start, &checkpoint.cells).map_err(not_restored)?;
        say!("resumed at step {start}");
    }
    let (newest, kept) = found.map(|c| (c.step, c.kept)).unzip();
    // Before the run writes anything: interrupting this leaves the folder as it was.
    if !fill::fill(&mut prepared, &cpu, gpu.as_ref())? {
        return Ok(INTERRUPTED);
    }
    let mut reader = Reader::start(survey)
        .map_err(|e| Failure::new(format!("cannot start a thread to read the data: {e}")))?;
    let begin = Begin { command, accepted, newest, lines, updates, kept: kept.unwrap_or_default() };
    let subject = Subject {
        graph: &prepared.graph,
        plan: &prepared.plan,
        run: &prepared.run,
        resolved: &prepared.resolved,
        sets: &prepared.sets,
        file: args.graph.graph.as_deref(),
    };
    let session = begin.write(folder, &subject, &mut |patience| reader.sources(patience).clone())?;
    begin_loop(prepared, session, reader, runner, health, args.json)
}

/// A checkpoint of another state than the graph's, such as an adapter of other targets or another rank.
pub(super) fn not_restored(e: RunError) -> Failure {
    Failure::new(format!("{e}\nnothing was changed; {NEW_RUN}"))
}

/// The folder of the run to resume, if it exists, and the settings it remembers.
pub(super) fn existing(path: &Path, resume: bool) -> Result<(Option<RunFolder>, Command), Failure> {
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
pub(super) fn forget(command: &mut Command, args: &args::Graph, registry: &Registry) {
    let Some(path) = args.graph.as_deref().filter(|_| !command.set.is_empty()) else { return };
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
    for place in complete_best(folder, &prepared.graph, &prepared.plan, checkpoint)? {
        say!("`{place}` did not hold the best adapter; it is written, read back and compared");
    }
    let (made, steps) = (checkpoint.step, prepared.run.steps);
    match made > steps {
        true => {
            say!(
                "the run already has {}, more than the {steps} asked for; --steps asks for more",
                count(made, "step")
            )
        }
        false => {
            say!("the run is complete: it has {} of {steps}; --steps asks for more", count(made, "step"))
        }
    }
    Ok(0)
}

/// The lines at the start of a run.
fn introduce(prepared: &Prepared, path: &Path) {
    say!(
        "{}: {} into `{}`, {} trainable values, {:.2e} FLOP a step, predicted peak memory {}{}",
        prepared.graph.name,
        count(prepared.run.steps, "step"),
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

fn begin_loop(
    prepared: Prepared,
    session: Session,
    reader: Reader,
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
    let mut running = Loop { runner, session, reader, progress, health, json };
    let done = running.go(steps);
    running.progress.end();
    done.map_err(|stop| running.session.explain(stop))
}
