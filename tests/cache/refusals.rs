//! Nodes that cannot be cached, and folders that are not a cache.

use std::fs;

use prefgraph::{
    Graph,
    cache::{Cache, clean},
};

use crate::{Counts, Encoder, Noisy, Numbers, cached, common::*, entries, fill, names, plain, show};

fn refused(graph: &mut Graph, nodes: &[&str]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let error = Cache::attach(graph, dir.path(), &names(nodes), None).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
    (error.to_string(), error.help.unwrap_or_default())
}

#[test]
fn a_node_that_is_random_or_has_a_random_ancestor_is_refused_and_both_are_named() {
    let mut graph = plain(&Counts::default(), Numbers::new(4, 2));
    let (error, help) = refused(&mut graph, &["encoded", "noisy"]);
    assert!(error.contains("`noisy` cannot be cached") && error.contains("draws noise"), "{error}");
    assert!(help.contains("`encoded`") && help.contains("`twice`") && !help.contains("noisy"), "{help}");

    let mut graph = Graph::new("noise first");
    let (x,) = graph.add("x", Numbers::new(4, 2), ());
    let (noisy,) = graph.add("disturbed", Noisy, (x,));
    graph.add("late", Encoder::new(&Counts::default(), 1.0), (noisy,));
    let (error, help) = refused(&mut graph, &["late"]);
    assert!(error.contains("`late`") && error.contains("`disturbed` (`noisy`), which is random"), "{error}");
    assert!(help.contains("no node"), "{help}");
}

#[test]
fn what_learns_and_what_depends_on_it_is_refused() {
    let mut graph = plain(&Counts::default(), Numbers::new(4, 2));
    for (node, why) in [
        ("w", "it is a cell"),
        ("product", "`multiply` does not give one row a sample"),
        ("x", "`numbers` does not give"),
    ] {
        let (error, _) = refused(&mut graph, &[node]);
        assert!(error.contains(why), "{error}");
    }
    let mut graph = Graph::new("below a cell");
    let (w,) = graph.add("w", Weights(2, 3), ());
    graph.add("late", Encoder::new(&Counts::default(), 1.0), (w,));
    let (next,) = graph.add("next", Weights(2, 3), ());
    graph.carry(w, next);
    let (error, _) = refused(&mut graph, &["late"]);
    assert!(error.contains("`late`") && error.contains("the cell `w`"), "{error}");
}

#[test]
fn unknown_nodes_double_ones_and_samples_that_cannot_be_listed_are_refused() {
    let mut graph = plain(&Counts::default(), Numbers::new(4, 2));
    let (error, _) = refused(&mut graph, &["encodde"]);
    assert!(error.contains("`encodde`") && error.contains("encoded"), "{error}");
    let (error, _) = refused(&mut graph, &["encoded", "encoded"]);
    assert!(error.contains("named twice"), "{error}");
    let mut graph = plain(&Counts::default(), Numbers { listed: false, ..Numbers::new(4, 2) });
    let (error, _) = refused(&mut graph, &["twice"]);
    assert!(
        error.contains("`twice`") && error.contains("`x` (`numbers`), which cannot list them"),
        "{error}"
    );
    let counts = Counts::default();
    let mut graph = Graph::new("mixed");
    let (x,) = graph.add("x", Numbers::new(4, 2), ());
    let (mixed,) = graph.add("mixed", Multiply, (x, x));
    graph.add("late", Encoder::new(&counts, 1.0), (mixed,));
    let (error, _) = refused(&mut graph, &["late"]);
    assert!(error.contains("`mixed` (`multiply`), whose rows do not depend on one sample only"), "{error}");
    let mut graph = plain(&counts, Numbers::new(4, 2));
    let (x,) = graph.add("y", Numbers::new(4, 2), ());
    graph.add("blind", Encoder::with_weights(&counts, 1.0, "/nowhere/weights"), (x,));
    let (error, _) = refused(&mut graph, &["blind"]);
    assert!(error.contains("`blind`") && error.contains("/nowhere/weights"), "{error}");
}

#[test]
fn a_folder_that_is_something_else_or_cannot_be_written_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let (graph, mut cache) = cached(&counts, Numbers::new(4, 2), dir.path());
    let error = fill(&graph, &mut cache).unwrap_err().to_string();
    assert!(error.contains("is not a cache: something else is there"), "{error}");
    assert!(show(dir.path()).is_err() && clean(dir.path(), &Default::default()).is_err());
    let (graph, mut cache) = cached(&counts, Numbers::new(4, 2), &dir.path().join("letter.txt/cache"));
    let error = fill(&graph, &mut cache).unwrap_err().to_string();
    assert!(error.contains("cannot be written to"), "{error}");
    assert_eq!(counts.seen().0, 0);
}

#[test]
fn a_full_cache_needs_no_right_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let counts = Counts::default();
    let (graph, mut cache) = cached(&counts, Numbers::new(4, 2), &folder);
    fill(&graph, &mut cache).unwrap();
    let before: Vec<_> =
        entries(&folder).iter().map(|p| fs::metadata(p).unwrap().modified().unwrap()).collect();
    let format = fs::metadata(folder.join("format")).unwrap().modified().unwrap();
    let (graph, mut cache) = cached(&counts, Numbers::new(4, 2), &folder);
    fill(&graph, &mut cache).unwrap();
    let after: Vec<_> =
        entries(&folder).iter().map(|p| fs::metadata(p).unwrap().modified().unwrap()).collect();
    assert_eq!((before, format), (after, fs::metadata(folder.join("format")).unwrap().modified().unwrap()));
}
