//! Mistakes in graph files: the message, the place, and the suggestion.

mod small_ops;

use small_ops::{GRAPH, load};

/// A mistake made in [`GRAPH`] by replacing `old` with `new`; parts of the message and of the help; the marked text.
struct Mistake {
    old: &'static str,
    new: &'static str,
    message: &'static str,
    marked: &'static str,
    help: &'static str,
}

const fn m(
    old: &'static str,
    new: &'static str,
    message: &'static str,
    marked: &'static str,
    help: &'static str,
) -> Mistake {
    Mistake { old, new, message, marked, help }
}

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    // Names of fields.
    m("loss: \"loss.loss\"", "los: \"loss.loss\"", "a graph has no field `los`", "los", "did you mean `loss`?"),
    m("op: \"add\"", "opp: \"add\"", "a node has no field `opp`", "opp", "did you mean `op`?"),
    m("id: \"sum\", ", "", "this node has no `id`", "(op: \"add\", in: (a: \"x\", b: \"noise\"))", ""),
    m("op: \"add\", ", "", "node `sum` states no `op`", "sum", "state the operator"),
    // The name of the graph, which names the run's folder.
    m("\"downhill\"", "\"../../../x\"", "`../../../x` cannot be the name of a graph", "../../../x", "`--out`"),
    m("\"downhill\"", "\"/tmp/x\"", "`/tmp/x` cannot be the name of a graph", "/tmp/x", "without `/`"),
    m("\"downhill\"", "\"\"", "cannot be the name of a graph", "", "as in `my_run`"),
    // Settings of the run that no run can have.
    m("steps: 7", "steps: 0", "`run.steps` cannot be 0", "0", "at least 1 step"),
    m("steps: 7", "lanes: 18446744073709551615", "`run.lanes` cannot be", "18446744073709551615", "at most 1024"),
    m("steps: 7", "ahead: 9223372036854775807", "`run.ahead` cannot be", "9223372036854775807", "at most 1024"),
    m("steps: 7", "checkpoint_minutes: -1", "`run.checkpoint_minutes` cannot be -1", "-1", "0 or a positive number"),
    // Operators, inputs, settings.
    m("\"add\"", "\"ad\"", "there is no operator `ad`", "ad", "did you mean `add`?"),
    m("b: \"noise\"", "bb: \"noise\"", "`add` has no input `bb`", "bb", "inputs: `a`, `b`, `more`"),
    m("size: 4", "sizes: 4", "`source` has no setting `sizes`", "sizes", "did you mean `size`?"),
    m("steps: 7", "step: 7", "a run has no setting `step`", "step", "did you mean `steps`?"),
    // Values of settings.
    m("kind: random", "kind: randon", "`kind` of `source` cannot be `randon`", "randon", "did you mean `random`?"),
    m("kind: random", "kind: \"random\"", "`kind` of `source` cannot be `\"random\"`", "\"random\"", "choices: `same`, `random`"),
    m("size: 4", "size: 4.5", "`size` of `source` cannot be `4.5`", "4.5", "Number of values"),
    m("size: 4", "size: -4", "`size` of `source` cannot be `-4`", "-4", "default 3"),
    m("level: 2.0", "level: [2.0]", "`level` of `source` cannot be `[2.0]`", "[2.0]", "Value, where all are alike"),
    m("steps: 7", "steps: many", "`steps` of `run` cannot be `many`", "many", "Steps until the run is complete"),
    m("size: 4", "size: 0", "refuses its settings: `size` is 0", "0", "graph-run ops source"),
    m("size: 4", "size: 666", "a defect of this operator", "(size: 666, level: 2.0)", ""),
    // Wires.
    m("b: \"noise\"", "b: \"niose\"", "there is no node `niose`", "niose", "did you mean `noise`?"),
    m("b: \"noise\"", "b: \"noise.outt\"", "node `noise` (`source`) has no output `outt`", "outt", "did you mean `out`?"),
    m("b: \"noise\"", "b: \"loss\"", "node `loss` (`square-loss`) has 2 outputs", "loss", "`loss.loss`, `loss.metrics`"),
    m("b: \"noise\"", "b: [\"noise\", \"x\"]", "input `b` of `add` takes one wire", "[\"noise\", \"x\"]", ""),
    m("b: \"noise\"", "b: 7", "what an input reads is written as text in quotes", "7", "\"grad:node.port\""),
    m("a: \"x\", b", "b", "node `sum` (`add`) needs its input `a`", "add", "`noise`"),
    m("a: \"x\"", "a: None", "node `sum` (`add`) needs its input `a`", "None", "it takes f32[_]"),
    m("b: \"noise\"", "b: \"loss.metrics\"", "takes f32[_], but `loss.metrics` carries metrics", "loss.metrics", "`noise`"),
    m("grad:x", "x", "takes grad f32[_], but `x` carries f32[_]", "x", "`grad:x`"),
    m("grad:x", "grad:loss.metrics", "`grad:loss.metrics` does not exist", "grad:loss.metrics", ""),
    m("b: \"noise\"", "b: \"sum\"", "the graph has a cycle: `sum` reads `sum`", "sum", "carry"),
    m("(id: \"sum\", op: \"add\", in: (a: \"x\", b: \"noise\")),", "(id: \"sum\", op: \"add\", in: (a: \"tail\")), (id: \"tail\", op: \"add\", in: (a: \"sum\")),",
        "the graph has a cycle: `sum` reads `tail` reads `sum`", "tail", "carry"),
    // Loss, carry, remove, extends.
    m("loss: \"loss.loss\"", "loss: \"loss.lss\"", "has no output `lss`", "lss", "did you mean `loss`?"),
    m("loss: \"loss.loss\"", "loss: \"sum\"", "the loss must carry f32[]", "sum", ""),
    m("{\"x\"", "{\"y\"", "there is no node `y`", "y", "nodes: `x`"),
    m("\"update.x\"", "\"update.metrics\"", "carries metrics", "x", ""),
    m("\"update.x\"", "None", "carries no `x` that could be taken away", "x", ""),
    m("name: \"downhill\",", "remove: [\"x\"],", "only a graph that extends another", "x", "extends:"),
    m("name: \"downhill\",", "extends: \"no.ron\",", "cannot read `/data/no.ron`", "no.ron", "relative"),
    // References.
    m("@x.size", "@y.size", "there is no node `y`", "y", "nodes: `x`"),
    m("@x.size", "@x.sise", "node `x` (`source`) has nothing called `sise`", "sise", "did you mean `size`?"),
    m("@x.size", "@x", "`@x` refers to nothing", "\"@x\"", "\"@run.steps\""),
    m("@run.steps", "@run.stops", "a run has no setting `stops`", "stops", "did you mean `steps`?"),
    m("@x.size", "@x.title", "`size` of `source` cannot be `\"it", "\"@x.title\"", "Number of values"),
    m("@x.size", "@noise.size", "refer to one another: `noise.size` needs `noise.size`", "\"@noise.size\"", "state the value"),
    m("@x.size", "@noise.double", "`noise` (`source`) has no setting `double`", "double", "settings"),
    // Ids.
    m("id: \"sum\"", "id: \"x\"", "node `x` is defined twice", "x", ""),
    m("id: \"sum\"", "id: \"a.b\"", "`a.b` cannot be the id of a node", "a.b", "letters"),
    m("id: \"sum\"", "id: \"run\"", "no node can be called `run`", "run", "@run.steps"),
    m("steps: 7,", "steps: 7, steps: 8,", "`steps` is stated twice", "steps", ""),
    m("size: 4, level", "size: 4.5, level", "`size` of `source` cannot be `4.5`", "4.5", "a whole number is expected (Number of values"),
    // Not RON, or of another form.
    m("size: 4, level", "size: 4 level", "expected comma", "", "a comma or a closing bracket is missing"),
    m("(a: \"x\", b: \"noise\")", "(\"x\", \"noise\")", "`in` is written as a struct", "(\"x\", \"noise\")", ""),
    m("(a: \"x\", b: \"noise\")", "[\"x\"]", "`in` is written as a struct", "[\"x\"]", ""),
    m("name: \"downhill\"", "name: downhill", "a name is written as text in quotes", "downhill", ""),
    m("{\"x\": \"update.x\"}", "(x: \"update.x\")", "`carry` is written as a map", "(x: \"update.x\")", ""),
    m("Graph(", "Graf(", "a graph is written as a struct", "Graf", "write `Graph`"),
    m("checkpoint_every: 2),\n)", "checkpoint_every: 2),\n", "", "", ""),
];

/// Why a mistake is not shown as it should be.
fn fault(mistake: &Mistake) -> Option<String> {
    assert!(GRAPH.contains(mistake.old), "{} is not in the graph", mistake.old);
    let text = GRAPH.replacen(mistake.old, mistake.new, 1);
    let Err(error) = load(&text, &[]) else {
        return Some(format!("`{}` was accepted", mistake.new));
    };
    let (message, help) = (error.message(), error.advice().unwrap_or_default());
    let (place, marked) = &error.places()[0];
    let good = message.contains(mistake.message)
        && help.contains(mistake.help)
        && place.starts_with("test.ron:")
        && (mistake.marked.is_empty() || marked == mistake.marked);
    (!good).then(|| format!("`{}`: {message} / {help} / {:?}", mistake.new, error.places()))
}

#[test]
fn every_mistake_is_shown_in_its_place_with_what_would_have_been_accepted() {
    let faults: Vec<String> = MISTAKES.iter().filter_map(fault).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_graph_without_a_mistake_loads() {
    let loaded = load(GRAPH, &[]).unwrap();
    assert_eq!(loaded.graph.len(), 6);
    assert_eq!(loaded.run.steps, 7);
}

#[test]
fn a_mark_of_byte_order_is_no_part_of_a_graph() {
    let marked = format!("\u{feff}{GRAPH}");
    let loaded = load(&marked, &[]).unwrap();
    assert_eq!(loaded.resolved, load(GRAPH, &[]).unwrap().resolved);
    let error = load("\u{feff}Graph(los: 1)", &[]).unwrap_err();
    assert_eq!(error.places(), [("test.ron:1:7".to_owned(), "los".to_owned())]);
}

#[test]
fn a_place_is_a_line_and_a_column_of_the_file() {
    let error = load(&GRAPH.replace("b: \"noise\"", "b: \"niose\""), &[]).unwrap_err();
    assert_eq!(error.places(), [("test.ron:7:49".to_owned(), "niose".to_owned())]);
    let error = load(&GRAPH.replace("id: \"noise\"", "id: \"x\""), &[]).unwrap_err();
    let places: Vec<String> = error.places().into_iter().map(|p| p.0).collect();
    assert_eq!(places, ["test.ron:6:15", "test.ron:5:15"]);
}

#[test]
fn the_shown_error_has_the_file_the_place_and_the_line() {
    let error = load(&GRAPH.replace("size: 4", "sizes: 4"), &[]).unwrap_err();
    let mut shown = String::new();
    let theme = miette::GraphicalTheme::unicode_nocolor();
    miette::GraphicalReportHandler::new_themed(theme).render_report(&mut shown, error.as_ref()).unwrap();
    assert!(shown.contains("test.ron:5:40"), "{shown}");
    assert!(shown.contains(r#"(id: "x", op: "source", with: (sizes: 4, level: 2.0))"#), "{shown}");
    assert!(shown.contains("did you mean `size`?"), "{shown}");
}

#[test]
fn an_empty_file_and_a_file_of_something_else_are_refused() {
    for text in ["", "// nothing", "[]", "\"graph\"", "{\"a\": 1}", "Graph", "{", "\u{feff}Graph()"] {
        assert!(load(text, &[]).is_err(), "{text}");
    }
}
