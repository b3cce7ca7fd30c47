//! `graph-run evaluate`: scores of pictures, of any method, by the rules of a benchmark.
//!
//! ```text
//!  collect    embeddings of all pictures, by running the graph     measure   embeddings as scores
//!  encoders   what the encoders are, and departures                report    the scores as JSON
//!  faults     pictures that should be there, or should not         table     the scores for people
//!  draw       pictures that are missing, with the networks of another graph
//! ```

mod collect;
mod draw;
mod encoders;
mod faults;
mod measure;
mod report;
mod table;

use std::path::Path;

use prefgraph_nn::files::{read_regular, write_atomically};
use prefgraph_ops::{
    operators::benchmark::{Benchmark, BenchmarkSettings, Preset, Survey, cases},
    words::count,
};
use serde_json::json;

use self::{
    collect::collect,
    encoders::Encoders,
    measure::Measurement,
    report::{REPORTED, Report},
};
use super::{Failure, args, output::is_taken, say::say, system};
use crate::{registry::Registry, spec::Outline};

/// Score pictures; 1 if some are missing, surplus or of another size, and nothing was scored.
pub(super) fn evaluate(args: &args::Evaluate, registry: &Registry) -> Result<u8, Failure> {
    let benchmark = benchmark(args, registry)?;
    if args.list {
        return list(&benchmark.settings);
    }
    can_be_written(&args.out)?;
    if let Some(graph) = &args.sample {
        draw::missing(args, graph, &benchmark.settings, registry)?;
    }
    let Some(ours) = score(args, &benchmark, args.pictures.as_deref(), registry)? else { return Ok(1) };
    let theirs = match &args.compare {
        None => None,
        Some(folder) => match score(args, &benchmark, Some(folder), registry)? {
            Some(theirs) => Some((folder.clone(), theirs)),
            None => return Ok(1),
        },
    };
    let sets = sets(args, &benchmark.node, args.pictures.as_deref());
    let outline = Outline::open(&args.graph, &sets, registry)?;
    let encoders = Encoders::of(&outline, ours.survey.preset, &benchmark.settings)?;
    for departure in &encoders.departures {
        say!("note: departs from {}: {departure}", ours.survey.preset.name);
    }
    let report =
        Report { ours: &ours, theirs: theirs.as_ref(), encoders: &encoders, settings: &benchmark.settings };
    let value = report.value();
    let text = format!("{value:#}\n");
    // First: what cannot be written after all is not lost then.
    match args.json {
        true => system::print(&text)?,
        false => system::print(&table::table(&report))?,
    }
    write_atomically(&args.out, text.as_bytes()).map_err(Failure::new)?;
    say!("scores of every picture: `{}`", args.out.display());
    Ok(0)
}

/// Can scores be written at `out`? Asked before hours of scoring.
///
/// # Errors
/// If its folder is missing, or there is something else than scores: they alone are replaced.
fn can_be_written(out: &Path) -> Result<(), Failure> {
    let refused = |what: String| Failure::new(format!("--out: `{}` {what}", out.display()));
    if is_taken(out).map_err(refused)? && !holds_scores(out) {
        return Err(refused("is there and holds no scores: name another file, or remove it first".into()));
    }
    Ok(())
}

fn holds_scores(path: &Path) -> bool {
    let read = read_regular(path).ok();
    let value = read.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    value.is_some_and(|value| REPORTED.iter().all(|field| value.get(field).is_some()))
}

/// The node that reads pictures.
struct Node {
    node: String,
    settings: BenchmarkSettings,
}

fn benchmark(args: &args::Evaluate, registry: &Registry) -> Result<Node, Failure> {
    let found = |sets: &[String]| -> Result<Vec<(String, BenchmarkSettings)>, Failure> {
        Ok(Outline::open(&args.graph, sets, registry)?.settings_of::<Benchmark>()?)
    };
    let id = match &found(&args.sets)?[..] {
        [(id, _)] => id.clone(),
        other => {
            return Err(Failure::new(format!(
                "`{}` has {} with the operator `benchmark`: one is needed, as in graphs/evaluate",
                args.graph.display(),
                count(other.len(), "node")
            )));
        }
    };
    let (node, settings) = found(&sets(args, &id, args.pictures.as_deref()))?.remove(0);
    Ok(Node { node, settings })
}

/// Settings over the graph, with what flags say.
fn sets(args: &args::Evaluate, node: &str, pictures: Option<&Path>) -> Vec<String> {
    let mut sets = args.sets.clone();
    sets.extend(pictures.map(|folder| format!("{node}.pictures={}", folder.display())));
    if args.real {
        sets.push(format!("{node}.real=true"));
    }
    if args.incomplete {
        sets.push(format!("{node}.incomplete=true"));
    }
    sets
}

/// One JSON object a picture that is asked for.
fn list(settings: &BenchmarkSettings) -> Result<u8, Failure> {
    let preset = Preset::of(&settings.preset).map_err(Failure::new)?;
    let groups = preset.groups();
    let mut text = String::new();
    for case in cases(preset, &groups, |relative, _| relative) {
        let subjects = groups[case.group].subjects.iter().map(|number| preset.subjects()[*number]);
        let (names, listed): (Vec<_>, Vec<_>) =
            subjects.map(|s| (s.name, format!("{}/{}", s.name, s.listed))).unzip();
        let line = json!({
            "id": case.id, "prompt": case.prompt, "subjects": names, "listed_photographs": listed, "file": case.path,
        });
        text += &format!("{line}\n");
    }
    system::print(&text)?;
    Ok(0)
}

/// A folder that was looked at and scored.
struct Scored {
    survey: Survey,
    measurement: Measurement,
}

/// Look at a folder and score it; nothing if it may not be scored, after what is wrong was listed.
fn score(
    args: &args::Evaluate,
    benchmark: &Node,
    pictures: Option<&Path>,
    registry: &Registry,
) -> Result<Option<Scored>, Failure> {
    let sets = sets(args, &benchmark.node, pictures);
    let settings = Outline::open(&args.graph, &sets, registry)?.settings_of::<Benchmark>()?.remove(0).1;
    let survey =
        Survey::of(&settings).map_err(|e| Failure::new(format!("node `{}`: {e}", benchmark.node)))?;
    faults::tell(&survey);
    if !survey.is_complete() && !settings.incomplete {
        say!(
            "error: {}; nothing was scored: --incomplete scores what is there, and says so",
            survey.faults()
        );
        return Ok(None);
    }
    let graph = args::Graph {
        graph: Some(args.graph.clone()),
        sets,
        threads: args.threads,
        device: args.device.clone(),
        ..args::Graph::default()
    };
    let what = match settings.real {
        true => "photographs against each other".to_owned(),
        false => count(survey.present.len(), "picture"),
    };
    say!("{}: {what}, {}", survey.preset.name, count(survey.photographs.len(), "photograph"));
    let collected = collect(&graph, &benchmark.node, !settings.real, registry)?;
    let measurement = Measurement::of(&survey, &collected, settings.real)?;
    Ok(Some(Scored { survey, measurement }))
}
