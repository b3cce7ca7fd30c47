//! `graph-run sweep`: variants of a graph side by side, which share every node that their settings do not reach.
//!
//! ```text
//!  variants   the variants, loaded, compared and joined     fits     whether they fit into memory
//!  plan       what they share                               resume   where a resumed sweep continues
//!  member     a variant in a running sweep                  steps    the loop over steps
//!  report     what was found: a table, sweep.json           figure   the same as a picture
//! ```
//!
//! The folder of each variant is that of a run: the same files with the same bits as when the variant runs alone, checkpoints
//! included, so that one of them can be resumed by itself.

mod figure;
mod fits;
mod member;
mod plan;
mod report;
mod resume;
mod steps;
mod variants;

use std::{collections::BTreeMap, fs, io, path::Path};

use prefgraph_nn as nn;
use prefgraph_ops::words::count;

use self::{
    member::{Member, Place},
    report::{Diverged, Report},
    resume::{Common, Found, Resume},
    variants::{Sweep, Variant},
};
use super::{
    Failure, INTERRUPTED, args,
    begin::{Begin, Subject, remembered, shown},
    device, fill,
    fits::on_gpu,
    health::Health,
    interrupt,
    measured::complete_best,
    progress::Progress,
    run::{existing, forget, not_restored},
    say::say,
    system,
    trained::{complete, warn_of_nothing},
    updates::Updates,
};
use crate::{
    checkpoint::{Checkpoint, Kept, prune_between},
    folder::{Accepted, Command, RunFolder, Survey as Lines},
    graph::Graph,
    plan::Plan,
    registry::Registry,
    run::{RunOptions, Runner},
    sources::{Reader, Survey},
    spec::Overs,
    sweep::Joined,
};

pub(super) use plan::plan;

/// Train the variants to their end, or until somebody interrupts.
pub(super) fn sweep(args: &args::Sweep, registry: &Registry) -> Result<u8, Failure> {
    let path = match (&args.out, &args.graph.graph) {
        (Some(out), _) => out.clone(),
        (None, Some(graph)) => variants::default_folder(graph)?,
        (None, None) => return Err(Failure::new("no graph was named")),
    };
    let (existing, mut command) = existing(&path, args.resume)?;
    if let Some(folder) = &existing {
        check_is_sweep(folder, &command, &args.over)?;
    }
    forget(&mut command, &args.graph, registry);
    let over = varied(&args.over, &command, &path)?;
    let mut sweep = variants::load(&args.graph.recalling(&command.set), &over, registry)?;
    fits::check(&sweep, device::memory(&sweep.all.run.device), registry)?;
    let gpu = device::open(&sweep.all.run.device)?;
    let folder = match existing {
        Some(folder) => folder,
        None => RunFolder::open(&path, args.resume).map_err(Failure::new)?,
    };
    for note in &folder.notes {
        say!("note: {note}");
    }
    interrupt::watch()?;
    let diverged = diverged(&folder, &sweep)?;
    let active: Vec<usize> =
        (0..sweep.variants.len()).filter(|at| !diverged.contains_key(&sweep.variants[*at].number)).collect();
    for variant in sweep.variants.iter().filter(|v| diverged.contains_key(&v.number)) {
        say!("note: {} has diverged and stays left out: {}", variant.name(), diverged[&variant.number]);
    }
    if active.is_empty() {
        return Err(Failure::new("every variant has diverged; --out starts a new sweep elsewhere"));
    }
    let running = Running::new(&sweep, &active)?;
    let mut survey = Survey::of(&running.graph).map_err(Failure::new)?;
    let mut folders = Vec::new();
    let mut found = Found::Nothing;
    if args.resume {
        check_folders(&sweep, &active, &path)?;
        folders = open(&sweep, &active, &path, true)?;
        let resume = Resume {
            sweep: &sweep,
            active: &active,
            folders: &folders,
            places: &running.places,
            registry,
            command: &command,
            accept: args.accept_changes,
        };
        found = resume.find(&mut survey)?;
    }
    let (checkpoints, ahead, accepted) = match found {
        Found::Interrupted => return Ok(INTERRUPTED),
        Found::Nothing => (None, Vec::new(), None),
        Found::At(Common { found, newest }, accepted) => (Some(found), newest, accepted),
    };
    let start = checkpoints.as_ref().and_then(|all| all.first()).map_or(0, |c| c.step);
    let steps = sweep.all.run.steps;
    if let Some(checkpoints) = checkpoints.as_ref().filter(|_| start >= steps) {
        finish_folders(&sweep, &active, &mut folders, checkpoints)?;
        say!(
            "the sweep is complete: its variants have {} of {steps}; --steps asks for more",
            count(start, "step")
        );
        return conclude(&sweep, &folder, &diverged, args.json);
    }
    introduce(&sweep, &path);
    if let Some(gpu) = &gpu {
        device::introduce(gpu, &sweep.all.graph);
    }
    let cpu = nn::Cpu::new(sweep.all.run.threads).map_err(Failure::new)?;
    let options = RunOptions {
        last: Some(steps - 1),
        gpu: gpu.clone(),
        ..RunOptions::new(sweep.all.run.seed, cpu.clone())
    };
    let Running { graph, plan, places, .. } = running;
    let mut runner = Runner::new(graph, plan, options.clone()).map_err(Failure::new)?;
    if let Some(checkpoints) = &checkpoints {
        let mut cells = BTreeMap::new();
        checkpoints.iter().zip(&places).for_each(|(c, place)| place.add_cells(&c.cells, &mut cells));
        runner.restore(start, &cells).map_err(not_restored)?;
        say!("resumed at step {start}");
    }
    // Before the sweep writes anything: interrupting this leaves the folder as it was.
    if !fill::fill(&mut sweep.all, &cpu, gpu.as_ref())? {
        return Ok(INTERRUPTED);
    }
    let mut reader = Reader::start(survey)
        .map_err(|e| Failure::new(format!("cannot start a thread to read the data: {e}")))?;
    let mut begin = Start { sweep: &sweep, args, command, accepted, diverged };
    let folder = begin.write(folder)?;
    if folders.is_empty() {
        folders = open(&sweep, &active, &path, args.resume)?;
    }
    let newest = checkpoints.as_ref().map(|_| start);
    let mut kept = checkpoints.into_iter().flatten().map(|checkpoint| checkpoint.kept);
    let mut members = Vec::new();
    let mut ahead = ahead.into_iter();
    for ((variant, folder), place) in active.iter().zip(folders).zip(places) {
        let from = Newest { step: newest, ahead: ahead.next(), kept: kept.next().unwrap_or_default() };
        members.push(begin.member(*variant, folder, place, from, &mut reader)?);
    }
    let progress = Progress::new(start, steps, sweep.all.run.log_every);
    let diverged = std::mem::take(&mut begin.diverged);
    let mut running =
        steps::Loop { sweep: &sweep, folder, options, runner, members, diverged, reader, progress };
    let done = running.go(steps);
    running.progress.end();
    match done? {
        0 => conclude(&sweep, &running.folder, &running.diverged, args.json),
        code => Ok(code),
    }
}

/// A folder that holds something else is none to resume.
fn check_is_sweep(folder: &RunFolder, command: &Command, over: &[String]) -> Result<(), Failure> {
    let remains = folder.remains().map_err(Failure::new)?;
    if command.over.is_empty() && remains.iter().any(|name| name == report::NAME) {
        // Without its lists it is resumed with those of the command line.
        return match over.is_empty() {
            false => Ok(()),
            true => Err(Failure::new(format!(
                "`{}` holds a sweep whose command.json is gone: say what is varied again, with the same --over and --set",
                folder.path().display()
            ))),
        };
    }
    if command.over.is_empty() && !remains.is_empty() {
        return Err(Failure::new(format!(
            "`{}` holds a run ({}), not a sweep; `graph-run GRAPH --resume --out {0}` continues it",
            folder.path().display(),
            remains.join(", ")
        )));
    }
    Ok(())
}

/// What is varied: what the command line says, or the sweep that is resumed. A sweep keeps its variants.
fn varied(over: &[String], command: &Command, path: &Path) -> Result<Vec<String>, Failure> {
    if command.over.is_empty() || over.is_empty() {
        return Ok(if over.is_empty() { command.over.clone() } else { over.to_vec() });
    }
    let variants = |over: &[String]| {
        let overs = Overs::parse(over)?;
        Ok::<Vec<_>, Failure>((0..overs.len()).map(|variant| overs.values(variant)).collect())
    };
    if variants(over)? != variants(&command.over)? {
        let stated: Vec<String> = command.over.iter().map(|list| format!("--over {list:?}")).collect();
        return Err(Failure::new(format!(
            "the sweep in `{}` has other variants: {}\nleave out --over to resume it, or use --out to start a new sweep elsewhere",
            path.display(),
            stated.join(" ")
        )));
    }
    Ok(over.to_vec())
}

/// The variants that an earlier part of the sweep has left out.
fn diverged(folder: &RunFolder, sweep: &Sweep) -> Result<Diverged, Failure> {
    let path = folder.path().join(report::NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Diverged::new()),
        Err(e) => return Err(Failure::new(format!("cannot read `{}`: {e}", path.display()))),
    };
    let recorded = report::recorded(&text).ok_or_else(|| {
        Failure::new(format!(
            "`{}` is damaged, and says which variants have diverged: put a copy back, or remove it if none has\nnothing was changed",
            path.display()
        ))
    })?;
    let known =
        |number: u32, folder: &str| sweep.variants.iter().any(|v| v.number == number && v.folder == folder);
    if let Some((number, name, _)) = recorded.iter().find(|(number, name, _)| !known(*number, name)) {
        return Err(Failure::new(format!(
            "`{}` is of other variants: its variant {number} is in `{name}`\nnothing was changed; vary what it varied, or use --out to start a new \
             sweep elsewhere",
            path.display()
        )));
    }
    Ok(recorded.into_iter().filter_map(|(number, _, why)| Some((number, why?))).collect())
}

/// A variant whose folder is gone while others have made steps cannot go on with them. Looked at before any folder is made.
fn check_folders(sweep: &Sweep, active: &[usize], path: &Path) -> Result<(), Failure> {
    let place = |at: &usize| path.join(&sweep.variants[*at].folder);
    let (gone, there): (Vec<usize>, Vec<usize>) = active.iter().partition(|at| !place(at).exists());
    let has_steps = |at: &usize| {
        let newest = Checkpoint::newest(&place(at).join("checkpoints"));
        newest.is_ok_and(|(found, _)| found.is_some_and(|found| found.step > 0))
    };
    let Some(first) = gone.first() else { return Ok(()) };
    // A report says that steps were made, wherever the folders are.
    let has_made = there.iter().any(has_steps) || there.is_empty() && path.join(report::NAME).exists();
    if !has_made {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the folder of {} is gone, `{}`, and the sweep has made steps\nnothing was changed; put it back, or use --out to start a new \
         sweep elsewhere",
        sweep.variants[*first].name(),
        place(first).display()
    )))
}

/// The folders of some variants, locked.
fn open(sweep: &Sweep, active: &[usize], path: &Path, resume: bool) -> Result<Vec<RunFolder>, Failure> {
    let folder = |at: &usize| RunFolder::open(&path.join(&sweep.variants[*at].folder), resume);
    active.iter().map(folder).collect::<Result<_, _>>().map_err(Failure::new)
}

/// The graph of the variants that are trained.
struct Running {
    graph: std::sync::Arc<Graph>,
    plan: Plan,
    places: Vec<Place>,
}

impl Running {
    fn new(sweep: &Sweep, active: &[usize]) -> Result<Self, Failure> {
        let (joined, graph, plan): (Joined, _, _) = sweep.joined(active)?;
        let place =
            |(at, variant): (usize, &usize)| Place::new(&sweep.variants[*variant], &joined, at, &graph);
        let places = active.iter().enumerate().map(place).collect();
        Ok(Self { graph, plan, places })
    }
}

/// The lines at the start.
fn introduce(sweep: &Sweep, path: &Path) {
    let saved = plan::saved(sweep);
    say!(
        "{}: {}, {} into `{}`, {} trainable values, predicted peak memory {}{}; sharing leaves {:.0} % of the work of {}",
        sweep.all.graph.name,
        count(sweep.variants.len(), "variant"),
        count(sweep.all.run.steps, "step"),
        path.display(),
        sweep.all.trainable(),
        system::bytes(sweep.all.plan.memory().peak as u64),
        on_gpu(&sweep.all.plan).map(|(gpu, need)| format!(", of {gpu} {need}")).unwrap_or_default(),
        100.0 * saved.ratio(),
        count(sweep.variants.len(), "run"),
    );
    for note in sweep.all.notes.iter().chain(&sweep.all.cache_lines()) {
        say!("  {note}");
    }
    warn_of_nothing(&sweep.all);
}

/// The checkpoint that a variant continues from.
struct Newest {
    step: Option<u64>,
    /// A later one that it has.
    ahead: Option<u64>,
    kept: BTreeMap<String, Kept>,
}

/// A sweep that starts to write.
struct Start<'a> {
    sweep: &'a Sweep,
    args: &'a args::Sweep,
    command: Command,
    accepted: Option<Accepted>,
    diverged: Diverged,
}

impl Start<'_> {
    /// Take the folder of the sweep over.
    fn write(&self, mut folder: RunFolder) -> Result<RunFolder, Failure> {
        folder.check().map_err(Failure::new)?;
        folder.keep();
        let graph = shown(self.args.graph.graph.as_deref());
        let accepted = self.accepted.clone().or(self.command.accepted.clone());
        // Those of the variants have the varied settings, too.
        let varied: Vec<&String> = self.sweep.variants[0].values.iter().map(|(name, _)| name).collect();
        let mut set = remembered(&self.sweep.all.sets);
        set.retain(|set| {
            !varied.iter().any(|name| set.split_once('=').is_some_and(|(n, _)| n == name.as_str()))
        });
        let sets: Vec<&[String]> = self.sweep.variants.iter().map(|v| &*v.loaded.sets).collect();
        let command = Command { graph, set, over: self.sweep.overs.anywhere(&sets), accepted };
        folder.write_command(&command).map_err(Failure::new)?;
        Ok(folder)
    }

    /// Take the folder of a variant over.
    fn member(
        &mut self,
        at: usize,
        folder: RunFolder,
        place: Place,
        Newest { step: newest, ahead, kept }: Newest,
        reader: &mut Reader,
    ) -> Result<Member, Failure> {
        let variant = &self.sweep.variants[at];
        let (mut updates, mut health) = (Updates::default(), Health::new(variant.graph()));
        let lines = Lines::of(folder.path(), newest.unwrap_or(0), &mut |line| {
            updates.recall(line);
            health.recall(line);
        });
        let lines = lines.map_err(Failure::new)?;
        for damage in lines.damage() {
            say!("warning: {}: {damage}", variant.name());
        }
        let Variant { loaded, plan, .. } = variant;
        let subject = Subject {
            graph: &loaded.graph,
            plan,
            run: &self.sweep.all.run,
            resolved: &loaded.resolved,
            sets: &loaded.sets,
            file: self.args.graph.graph.as_deref(),
        };
        let command = Command { accepted: self.command.accepted.clone(), ..Command::default() };
        let begin = Begin { command, accepted: self.accepted.clone(), newest, lines, updates, kept };
        let mut sources = |patience| place.sources(reader.sources(patience));
        if let (Some(step), Some(ahead)) = (newest, ahead) {
            // Before the first step: a kill would leave the one that is ahead as the newest.
            folder.check().map_err(Failure::new)?;
            prune_between(&folder.checkpoints(), step, ahead).map_err(Failure::new)?;
        }
        let mut session = begin.write(folder, &subject, &mut sources)?;
        session.adapters = place.adapters().to_vec();
        Ok(Member { variant: at, read_at: place.clone(), place, session, health })
    }
}

/// Variants that have all their steps: write the adapters that are missing.
fn finish_folders(
    sweep: &Sweep,
    active: &[usize],
    folders: &mut [RunFolder],
    checkpoints: &[Checkpoint],
) -> Result<(), Failure> {
    for ((at, folder), checkpoint) in active.iter().zip(folders).zip(checkpoints) {
        folder.keep();
        let variant = &sweep.variants[*at];
        for path in complete(folder, variant.graph(), &variant.plan, checkpoint)? {
            let (step, path) = (checkpoint.step, path.display());
            say!("`{path}` did not hold the adapter of step {step}; it is written, read back and compared");
        }
        for place in complete_best(folder, variant.graph(), &variant.plan, checkpoint)? {
            let path = folder.path().join(place);
            say!("`{}` did not hold the best adapter; it is written, read back and compared", path.display());
        }
    }
    Ok(())
}

/// The table on standard output; `sweep.json` and the figure into the folder.
fn conclude(sweep: &Sweep, folder: &RunFolder, diverged: &Diverged, json: bool) -> Result<u8, Failure> {
    let report = Report::read(sweep, folder.path(), diverged)?;
    let steps = sweep.all.run.steps;
    let value = report.json(steps);
    folder.write_text(report::NAME, &format!("{value:#}\n")).map_err(Failure::new)?;
    let variants = count(sweep.variants.len(), "variant");
    let title = format!("{}: {variants} after {}", sweep.all.graph.name, count(steps, "step"));
    let figure = figure::svg(&report, &sweep.overs.axes(), &title);
    folder.write_text("sweep.svg", &figure).map_err(Failure::new)?;
    let path = folder.path().display();
    say!("the table is in `{path}/{}`, the figure in `{path}/sweep.svg`", report::NAME);
    system::print(&match json {
        true => format!("{value:#}\n"),
        false => report.table(),
    })?;
    Ok(0)
}
