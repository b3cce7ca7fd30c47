//! Mutated graphs and settings: loaded, planned, shown.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use miette::{GraphicalReportHandler, GraphicalTheme};
use prefgraph::{
    Plan, PlanOptions, Registry,
    plan::Phase,
    spec::{SpecError, load_text},
};

use crate::{
    campaign::{self, Outcome},
    random::{Choices, NUMBERS},
};

/// What people type by mistake, and what parsers trip over.
const PIECES: [&str; 34] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "'",
    "//",
    "/*",
    "*/",
    "@",
    "@run.steps",
    "None",
    "Some(",
    "r#\"",
    "\\",
    "\n",
    "grad:",
    ".",
    "..",
    "0x",
    "_",
    "é",
    "#![enable(implicit_some)]",
    "extends: \"x\",",
    "\u{0}",
    "\u{feff}",
    "\r\n",
    "true",
    "../../../x",
    "name: \"/tmp/x\",",
];

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::standard);

/// A shipped graph that loads as it is.
struct Shipped {
    folder: PathBuf,
    text: String,
    /// Of all nodes, those of its parents among them, and of the run: settings that are numbers.
    numbers: Vec<String>,
}

static GRAPHS: LazyLock<Vec<Shipped>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs");
    let ron = |folder: &Path| {
        let paths = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        paths.filter(|p| p.extension().is_some_and(|e| e == "ron")).collect::<Vec<_>>()
    };
    let mut paths = [ron(&root), ron(&root.join("replay"))].concat();
    paths.sort();
    let shipped = |path: PathBuf| {
        let (folder, text) = (path.parent().unwrap().to_owned(), fs::read_to_string(&path).unwrap());
        let loaded = load_text("shipped.ron", &text, &folder, &[], &REGISTRY)
            .unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let number =
            |value: &str| value.trim_start_matches("Some(").trim_end_matches(')').parse::<f64>().is_ok();
        let numbers = loaded.settings().into_iter().filter(|(_, value)| number(value)).map(|(name, _)| name);
        Shipped { folder, text, numbers: numbers.collect() }
    };
    paths.into_iter().map(shipped).collect()
});

/// A run of digits somewhere in the text.
fn a_number(choices: &mut Choices, text: &str) -> Option<std::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let starts: Vec<usize> = (0..bytes.len()).filter(|&i| digit(i) && (i == 0 || !digit(i - 1))).collect();
    let start = *starts.get(choices.below(starts.len()))?;
    Some(start..(start..).find(|&i| !digit(i))?)
}

fn boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn mutate(choices: &mut Choices, text: &mut String) {
    let lines = text.lines().count();
    match choices.below(10) {
        0..=4 => {
            if let Some(range) = a_number(choices, text) {
                text.replace_range(range, choices.of(&NUMBERS));
            }
        }
        5 => {
            let start = boundary(text, choices.below(text.len() + 1));
            let end = boundary(text, (start + choices.below(12)).min(text.len())).max(start);
            text.replace_range(start..end, choices.of(&PIECES));
        }
        6 => {
            let gone = choices.below(lines);
            *text =
                text.lines().enumerate().filter(|(i, _)| *i != gone).map(|(_, l)| format!("{l}\n")).collect();
        }
        7 => {
            let names: Vec<&str> = REGISTRY.iter().map(|e| e.name).collect();
            let old = choices.of(&names);
            let new = choices.of(&names);
            *text = text.replacen(&format!("op: \"{old}\""), &format!("op: \"{new}\""), 1);
        }
        8 => {
            // A word in the place of another.
            let words: Vec<&str> =
                text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
            let (old, new) = (choices.of(&words).to_owned(), choices.of(&words).to_owned());
            *text = text.replacen(&old, &new, 1 + choices.below(2));
        }
        _ => {
            // A file on one line, as a program writes it, or a line longer than anybody reads.
            if choices.one_in(2) {
                *text = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
            }
            let at = boundary(text, choices.below(text.len() + 1));
            text.insert_str(at, &choices.of(&[" ", "a", "/**/"]).repeat(1 + choices.below(70_000)));
        }
    }
}

/// Settings of the command line: numbers in the place of others, or nonsense.
fn sets(choices: &mut Choices, shipped: &Shipped) -> Vec<String> {
    let count = choices.below(3);
    let one = |choices: &mut Choices| {
        let names: Vec<&str> = shipped.numbers.iter().map(String::as_str).collect();
        let name = match choices.below(8) {
            0 => choices.of(&["run", "run.size", "x.y", "run.lanes", "run.ahead"]),
            _ => choices.of(&names),
        };
        let value = match choices.below(12) {
            0 => choices.of(&PIECES).to_owned(),
            1 => format!("{},batch:{}", choices.of(&NUMBERS), choices.of(&NUMBERS)),
            _ => choices.of(&NUMBERS).to_owned(),
        };
        format!("{name}={value}")
    };
    (0..count).map(|_| one(choices)).collect()
}

/// An error must say something, be nobody's defect but the input's, and can be shown.
fn judged(error: &SpecError) -> Result<(), String> {
    let message = error.message();
    if message.is_empty() || message.contains("internal error") || message.contains("panic") {
        return Err(format!("the error is: {message}"));
    }
    let mut shown = String::new();
    let theme = GraphicalTheme::unicode_nocolor();
    GraphicalReportHandler::new_themed(theme).render_report(&mut shown, error).map_err(|e| e.to_string())?;
    if shown.len() > 100_000 {
        return Err(format!("an error of {} bytes: {}", shown.len(), &shown[..boundary(&shown, 300)]));
    }
    // A file that is not there has no place.
    match error.places().is_empty() && !message.starts_with("cannot read") {
        true => Err(format!("an error without a place: {message}")),
        false => Ok(()),
    }
}

/// Bytes that an output of this shape has, as its description says, and as no arithmetic of this library computes them.
fn stated_bytes(shape: &str) -> u128 {
    let (size, axes) = match (shape.strip_prefix("f32["), shape.strip_prefix("rgb8[")) {
        (Some(axes), _) => (4, axes),
        (_, Some(axes)) => (3, axes),
        _ => return 0,
    };
    let axes = axes.trim_end_matches(']').split(',').filter(|a| !a.is_empty());
    axes.fold(size, |bytes: u128, axis| bytes.saturating_mul(axis.parse().unwrap_or(0)))
}

/// A plan must predict at least the memory that its largest value takes, and that every step that is ahead takes.
fn foreseen(graph: &prefgraph::Graph, plan: &Plan) -> Result<(), String> {
    let peak = plan.memory().peak as u128;
    for variant in plan.variants() {
        for (id, node) in graph.nodes() {
            for (shape, spec) in variant.outputs(id).iter().zip(&node.outputs) {
                let stated = stated_bytes(&shape.describe());
                let read_later = plan.tasks().iter().any(|t| {
                    t.phase == Phase::Forward && t.after.iter().any(|&a| plan.tasks()[a].task.node() == id)
                });
                let times = if plan.runs_ahead(id) && read_later { plan.options().ahead as u128 } else { 1 };
                // Of a node of several outputs, which of them is read later is not looked at.
                let times = if node.outputs.len() > 1 { 1 } else { times };
                let least = stated.saturating_mul(times.max(1)).min(usize::MAX as u128);
                if peak < least {
                    let (node, port, shape) = (&node.id, spec.name, shape.describe());
                    return Err(format!(
                        "a peak of {peak} bytes, and `{node}.{port}` {shape} alone takes {least}"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn case(choices: &mut Choices) -> Outcome {
    let shipped = &GRAPHS[choices.below(GRAPHS.len())];
    let sets = sets(choices, shipped);
    let mut text = shipped.text.clone();
    // Every second time the settings alone.
    for _ in 0..choices.below(4).saturating_sub(1) {
        mutate(choices, &mut text);
    }
    let about = |fault: String| {
        format!(
            "{fault}\n  --set {}\n{}",
            sets.join(" --set "),
            &text[..boundary(&text, text.len().min(3000))]
        )
    };
    let loaded = match load_text("mutated.ron", &text, &shipped.folder, &sets, &REGISTRY) {
        Ok(loaded) => loaded,
        Err(error) => return judged(&error).map(|()| "refused").map_err(about),
    };
    let lanes = if loaded.run.lanes == 0 { 2 } else { loaded.run.lanes };
    let options = PlanOptions { ahead: loaded.run.ahead, lanes, ..PlanOptions::default() };
    match Plan::new(&loaded.graph, &options) {
        Err(e) => {
            let error = loaded.error_at(&e.node, e.input.as_deref(), &e.to_string());
            judged(&error).map(|()| "refused when planned").map_err(about)
        }
        Ok(plan) => {
            let shown = plan.explain(&loaded.graph).to_string() + &plan.to_dot(&loaded.graph).to_string();
            foreseen(&loaded.graph, &plan).map_err(about)?;
            if shown.is_empty() { Err("nothing to show".into()) } else { Ok("planned") }
        }
    }
}

#[test]
fn mutated_graphs_are_planned_or_refused_in_place() {
    let ends = campaign::run("graphs", 700, case);
    // A campaign in which all cases end alike tests one thing only.
    if campaign::is_whole() {
        for end in ["refused", "refused when planned", "planned"] {
            assert!(ends.get(end).is_some_and(|n| *n >= 3), "{end}: {ends:?}");
        }
    }
}
