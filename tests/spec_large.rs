//! Graphs of any size are read in a time that grows as they do.

mod small_ops;

use std::{
    fs,
    time::{Duration, Instant},
};

use prefgraph::{
    Plan, PlanOptions,
    spec::{diff, load},
};
use small_ops::{large, large_child, registry};

/// The fastest of three.
fn fastest(mut work: impl FnMut()) -> Duration {
    let one = |_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    (0..3).map(one).min().unwrap_or_default()
}

#[test]
fn a_graph_of_eight_times_as_many_nodes_takes_about_eight_times_as_long() {
    let folder = tempfile::tempdir().unwrap();
    let times = [4_000, 32_000].map(|nodes| {
        let (parent, child) = (folder.path().join("parent.ron"), folder.path().join("child.ron"));
        fs::write(&parent, large(nodes)).unwrap();
        fs::write(&child, large_child(nodes, "parent.ron")).unwrap();
        let loaded = load(&parent, &[], &registry()).unwrap();
        let changed = load(&child, &["c7.level=3.0".into()], &registry()).unwrap();
        [
            ("reading", fastest(|| drop(load(&parent, &[], &registry()).unwrap()))),
            ("reading what extends", fastest(|| drop(load(&child, &[], &registry()).unwrap()))),
            ("planning", fastest(|| drop(Plan::new(&loaded.graph, &PlanOptions::default()).unwrap()))),
            (
                "comparing",
                fastest(|| assert!(!diff(&loaded.resolved, &changed.resolved).unwrap().is_empty())),
            ),
        ]
    });
    for ((what, small), (_, large)) in times[0].iter().zip(&times[1]) {
        println!("{what}: {small:.1?}, of eight times as many {large:.1?}");
        // 64 times as long if it were quadratic; other work on the machine makes all of this longer.
        assert!(*large < *small * 28, "{what}: {small:?}, of eight times as many {large:?}");
    }
}
