//! Files that extend others, references, settings of the command line, and resolved graphs.

mod small_ops;

use std::{fs, path::Path};

use prefgraph::{
    Tap,
    spec::{Loaded, SpecError, diff, load as load_file},
};
use small_ops::{GRAPH, load, registry};

/// Write `files` into a folder and load the last.
fn in_folder(files: &[(&str, &str)], sets: &[&str]) -> (tempfile::TempDir, Result<Loaded, Box<SpecError>>) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let last = folder.path().join(files.last().unwrap().0);
    let loaded = load_file(&last, &sets, &registry());
    (folder, loaded)
}

/// What the resolved graph says of a setting.
fn setting(loaded: &Loaded, what: &str) -> String {
    let changes = diff("Graph(nodes: [])", &loaded.resolved).unwrap();
    let node = what.split('.').next().unwrap();
    let change = changes.iter().find(|c| c.what == what || c.what == node);
    assert!(change.is_some(), "{what} in {changes:?}");
    let (_, rest) = loaded.resolved.split_once(&format!("id: \"{node}\"")).unwrap_or(("", &loaded.resolved));
    let key = format!("{}: ", what.split('.').nth(1).unwrap());
    let value = rest.split_once(&key).unwrap().1;
    value.split([',', '\n']).next().unwrap().trim_end_matches([')', ' ']).to_owned()
}

#[test]
fn a_child_changes_inputs_and_settings_by_key_and_keeps_the_rest() {
    let child = r#"Graph(extends: "base.ron", name: "child", nodes: [
        (id: "x", with: (level: 5.0)),
        (id: "extra", op: "source", with: (size: 4)),
        (id: "sum", in: (b: None, more: ["extra", "noise"])),
    ], run: (seed: 9))"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", child)], &[]);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.graph.name, "child");
    assert_eq!((loaded.run.steps, loaded.run.seed), (7, 9));
    assert_eq!((setting(&loaded, "x.size"), setting(&loaded, "x.level")), ("4".into(), "5.0".into()));
    let sum = loaded.graph.find("sum").unwrap();
    let counts: Vec<usize> = loaded.graph[sum].wires.iter().map(Vec::len).collect();
    assert_eq!(counts, [1, 0, 2]);
}

#[test]
fn another_operator_replaces_the_node_whole() {
    let child = r#"Graph(extends: "base.ron", nodes: [(id: "noise", op: "add", in: (a: "x"))])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", child)], &[]);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.graph[loaded.graph.find("noise").unwrap()].op.name(), "add");
    assert!(!loaded.resolved.contains("kind: random"));
}

#[test]
fn a_removed_node_is_gone_and_whoever_reads_it_is_told_where_it_went() {
    let good = r#"Graph(extends: "base.ron", remove: ["log", "noise"], nodes: [(id: "sum", in: (b: None))])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", good)], &[]);
    assert_eq!(loaded.unwrap().graph.len(), 4);
    let beginning =
        r#"Graph(extends: "base.ron", remove: ["log*", "noise"], nodes: [(id: "sum", in: (b: None))])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", beginning)], &[]);
    assert_eq!(loaded.unwrap().graph.len(), 4);
    let none = r#"Graph(extends: "base.ron", remove: ["nx*"])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", none)], &[]);
    assert_eq!(loaded.unwrap_err().message(), "the parent has no node `nx*` to remove");
    let twice = r#"Graph(extends: "base.ron", remove: ["no*", "noise"])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", twice)], &[]);
    assert_eq!(loaded.unwrap_err().message(), "`noise` is removed twice");
    let bad = r#"Graph(extends: "base.ron", remove: ["noise"])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", bad)], &[]);
    let error = loaded.unwrap_err();
    let places = error.places();
    assert_eq!(error.message(), "there is no node `noise`");
    assert!(places[0].0.contains("base.ron:7"), "{places:?}");
    assert!(places[1].0.contains("child.ron:1") && places[1].1 == "noise", "{places:?}");
    let unknown = r#"Graph(extends: "base.ron", remove: ["nose"])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", unknown)], &[]);
    assert!(loaded.unwrap_err().advice().unwrap().contains("did you mean `noise`?"));
}

#[test]
fn a_file_that_extends_itself_by_a_detour_is_refused() {
    let a = r#"Graph(extends: "b.ron")"#;
    let b = r#"Graph(extends: "./a.ron")"#;
    let (_folder, loaded) = in_folder(&[("b.ron", b), ("a.ron", a)], &[]);
    let error = loaded.unwrap_err();
    assert!(error.message().contains("extends itself"), "{}", error.message());
    assert!(error.places()[0].0.contains("b.ron:1:17"), "{:?}", error.places());
}

#[test]
fn files_of_a_list_are_laid_over_the_first_in_their_order_and_have_no_parent_of_their_own() {
    let first = r#"Graph(nodes: [(id: "x", with: (level: 5.0))])"#;
    let second = r#"Graph(nodes: [(id: "x", with: (level: 6.0))])"#;
    let level = |child: &str| {
        let files = [("base.ron", GRAPH), ("first.ron", first), ("second.ron", second), ("child.ron", child)];
        in_folder(&files, &[]).1.map(|loaded| setting(&loaded, "x.level"))
    };
    assert_eq!(level(r#"Graph(extends: ["base.ron", "first.ron", "second.ron"])"#).unwrap(), "6.0");
    assert_eq!(level(r#"Graph(extends: ["base.ron", "second.ron", "first.ron"])"#).unwrap(), "5.0");
    let own = r#"Graph(extends: ["base.ron", "first.ron"], nodes: [(id: "x", with: (level: 7.0))])"#;
    assert_eq!(level(own).unwrap(), "7.0");

    let whole = r#"Graph(extends: "base.ron")"#;
    let files = [
        ("base.ron", GRAPH),
        ("whole.ron", whole),
        ("child.ron", r#"Graph(extends: ["base.ron", "whole.ron"])"#),
    ];
    let error = in_folder(&files, &[]).1.unwrap_err();
    assert!(error.message().contains("cannot extend one itself"), "{}", error.message());
    assert!(error.places()[0].0.contains("whole.ron:1"), "{:?}", error.places());
}

#[test]
fn a_mistake_in_a_parent_is_shown_in_the_parent() {
    let parent = GRAPH.replace("size: 4", "sise: 4");
    let (_folder, loaded) = in_folder(&[("p.ron", &parent), ("c.ron", r#"Graph(extends: "p.ron")"#)], &[]);
    let error = loaded.unwrap_err();
    assert!(error.places()[0].0.contains("p.ron:5"), "{:?}", error.places());
}

#[test]
fn paths_are_relative_to_the_file_that_states_them() {
    let base = GRAPH.replace("size: 4", r#"size: 4, file: "../data/a.txt", files: ["b.txt", "/c.txt"]"#);
    let child =
        r#"Graph(extends: "sub/base.ron", nodes: [(id: "noise", with: (file: "n.txt", files: "@x.files"))])"#;
    let (folder, loaded) = in_folder(&[("sub/base.ron", &base), ("child.ron", child)], &[]);
    let loaded = loaded.unwrap();
    let root = fs::canonicalize(folder.path()).unwrap();
    for path in ["data/a.txt", "sub/b.txt", "n.txt"] {
        let path = root.join(path);
        assert!(
            loaded.resolved.contains(&format!("{:?}", path.display().to_string())),
            "{}",
            loaded.resolved
        );
    }
    assert_eq!(loaded.resolved.matches("sub/b.txt").count(), 2, "a reference keeps the folder of the value");
}

#[test]
fn references_reach_settings_defaults_derived_facts_and_the_run() {
    let text = GRAPH
        .replace(
            "(id: \"noise\", op: \"source\", with: (size: \"@x.size\"",
            "(id: \"noise\", op: \"source\", with: (size: 4",
        )
        .replace(
            "nodes: [",
            r#"nodes: [
            (id: "a", op: "source", with: (size: "@x.double", level: "@run.seed", words: ["@@", "@x.y"])),
            (id: "b", op: "source", with: (size: "@a.double", kind: "@x.kind", words: "@a.words")),
            (id: "c", op: "source", with: (kind: "@a.way", files: "@a.no_files", file: "@noise.kind")),"#,
        );
    let loaded = load(&text, &["run.seed=3"]).unwrap();
    assert_eq!(setting(&loaded, "a.size"), "8");
    assert_eq!(setting(&loaded, "a.level"), "3.0");
    assert_eq!(setting(&loaded, "b.size"), "16");
    assert_eq!(setting(&loaded, "b.kind"), "same");
    assert_eq!(setting(&loaded, "update.steps"), "7");
    assert_eq!((setting(&loaded, "c.kind"), setting(&loaded, "c.files")), ("random".into(), "None".into()));
}

#[test]
fn the_command_line_wins_and_needs_no_quotes_for_text() {
    let sets = ["noise.kind=same", "x.file=some dir/f.txt", "x.size=5", "run.steps=10", "x.words=[\"b\"]"];
    let loaded = load(GRAPH, &sets).unwrap();
    assert_eq!((setting(&loaded, "noise.kind"), setting(&loaded, "noise.size")), ("same".into(), "5".into()));
    assert_eq!(setting(&loaded, "update.steps"), "10");
    let here = std::env::current_dir().unwrap().join("some dir/f.txt");
    assert!(loaded.resolved.contains(&here.display().to_string()), "{}", loaded.resolved);
    let loaded = load(GRAPH, &["x.size=6", "noise.level=@x.size"]).unwrap();
    assert_eq!(setting(&loaded, "noise.level"), "6.0");
}

#[test]
fn a_star_sets_a_setting_in_every_node_that_has_it() {
    let text = GRAPH
        .replace("nodes: [", "nodes: [(id: \"noisy\", op: \"source\", with: (kind: random)),")
        .replace("level: 2.0", "level: 2.0, kind: random");
    let values = |sets: &[&str]| {
        let loaded = load(&text, sets).unwrap();
        let kinds = ["x", "noise", "noisy"].map(|node| setting(&loaded, &format!("{node}.kind")));
        (kinds.map(|kind| kind == "same"), loaded.sets.clone())
    };
    let [none, two, all] = [&[][..], &["nois*.kind=same"], &["*.kind=same"]].map(values);
    assert_eq!(none.0, [false; 3]);
    // The graph is told what was set where, so that a run is resumed with the same.
    assert_eq!(two, ([false, true, true], vec!["noisy.kind=same".into(), "noise.kind=same".into()]));
    assert_eq!(all.0, [true; 3], "and nodes without the setting stay as they are");
    assert_eq!(values(&["*.kind=same", "noisy.kind=random"]).0, [true, true, false], "the last one counts");
}

#[test]
fn mistakes_on_the_command_line_are_shown_on_the_command_line() {
    let wrong = [
        ("nois.kind=same", "there is no node `nois`", "nois", "did you mean `noise`?"),
        ("noise.knd=same", "`source` has no setting `knd`", "knd", "did you mean `kind`?"),
        ("noise.kind=sam", "`kind` of `source` cannot be `sam`", "sam", "did you mean `same`?"),
        ("x.size=four", "`size` of `source` cannot be `four`", "four", "Number of values"),
        ("x.size=0", "`size` is 0", "0", "graph-run ops source"),
        ("run.stepz=1", "a run has no setting `stepz`", "stepz", "did you mean `steps`?"),
        ("run.steps=x", "`steps` of `run` cannot be `x`", "x", "Steps until"),
        ("x.size", "`x.size` sets nothing", "x.size", "noise.process=flow"),
        ("noise.level=@z.size", "there is no node `z`", "z", "nodes"),
        ("q*.kind=same", "no node begins with `q`", "q*", "nodes: `x`"),
        ("nois*.knd=same", "no node that `nois*` means has a setting `knd`", "knd", "did you mean `kind`?"),
        ("*.kind=sam", "`kind` of `source` cannot be `sam`", "sam", "did you mean `same`?"),
    ];
    for (set, message, marked, help) in wrong {
        let error = load(GRAPH, &[set]).unwrap_err();
        let shown = format!("{set}: {} / {:?} / {:?}", error.message(), error.advice(), error.places());
        assert!(error.message().contains(message), "{shown}");
        assert!(error.advice().unwrap_or_default().contains(help), "{shown}");
        assert!(error.places().iter().any(|(p, m)| p.starts_with("--set:1:") && m == marked), "{shown}");
    }
}

/// A graph as far as a plan can tell: operators, names and wires.
fn skeleton(loaded: &Loaded) -> Vec<String> {
    let graph = &loaded.graph;
    let nodes = graph.nodes().map(|(_, node)| {
        let wires: Vec<_> =
            node.wires.iter().flatten().map(|w| (w.tap == Tap::Value, graph.path(*w))).collect();
        format!("{} {} {wires:?}", node.id, node.op.name())
    });
    let loss = graph.loss().map(|l| graph.path(l));
    let carries = graph.carries().iter().map(|c| format!("{} {}", graph.path(c.cell), graph.path(c.next)));
    nodes.chain([format!("{loss:?} {:?}", loaded.run)]).chain(carries).collect()
}

#[test]
fn a_resolved_graph_loads_to_the_same_graph_and_resolves_to_itself() {
    let child = r#"Graph(extends: "base.ron", nodes: [
        (id: "x", with: (file: "d/\"q\".txt", words: ["@@at", "b // c"])),
        (id: "late", op: "add", in: (a: "later", more: ["x"])),
        (id: "later", op: "source", with: (size: "@x.size")),
    ])"#;
    let (_folder, loaded) = in_folder(&[("base.ron", GRAPH), ("child.ron", child)], &["run.ahead=2"]);
    let loaded = loaded.unwrap();
    let again = load(&loaded.resolved, &[]).unwrap();
    assert_eq!(skeleton(&loaded), skeleton(&again));
    assert_eq!(loaded.resolved, again.resolved);
    assert_eq!(diff(&loaded.resolved, &again.resolved).unwrap(), []);
}

#[test]
fn a_difference_of_graphs_names_settings_nodes_and_wires_and_knows_what_is_harmless() {
    let old = load(GRAPH, &[]).unwrap().resolved;
    let child = GRAPH
        .replace("(id: \"log\", op: \"note\", in: (metrics: [\"loss.metrics\", \"update.metrics\"])),", "")
        .replace("b: \"noise\"", "b: \"x\"")
        .replace("nodes: [", "nodes: [(id: \"new\", op: \"source\"),");
    let new = load(&child, &["update.lr=0.25", "run.steps=70", "run.seed=1"]).unwrap().resolved;
    let changes = diff(&old, &new).unwrap();
    let shown: Vec<String> = changes.iter().map(ToString::to_string).collect();
    for line in [
        "update.lr: 0.5 -> 0.25",
        "run.steps: 7 -> 70",
        "run.seed: 0 -> 1",
        "sum.in.b: noise -> x",
        "log was removed (it was note)",
        "new was added (source)",
    ] {
        assert!(shown.iter().any(|s| s == line), "{line} in {shown:#?}");
    }
    let harmless: Vec<&str> = changes.iter().filter(|c| c.harmless).map(|c| c.what.as_str()).collect();
    assert_eq!(harmless, ["run.steps"]);
    assert!(!shown.iter().any(|s| s.starts_with("new.") || s.starts_with("log.")), "{shown:#?}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load_file(Path::new("/no/such/graph.ron"), &[], &registry()).unwrap_err();
    assert!(error.message().contains("/no/such/graph.ron"));
}
