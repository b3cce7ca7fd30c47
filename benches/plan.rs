//! The time that planning takes, and the overhead of a step beyond its operators.

#![allow(missing_docs, reason = "criterion writes the functions")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/small_ops/mod.rs"]
mod small_ops;

use std::{fs, hint::black_box, sync::Arc};

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use prefgraph::{Plan, spec::load};

fn plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan");
    group.sample_size(10);
    for nodes in [1_000, 10_000, 100_000] {
        let graph = chain(nodes);
        group.bench_function(format!("{nodes} nodes"), |b| {
            b.iter(|| Plan::new(black_box(&graph), &options(4, 1)).unwrap());
        });
    }
    group.finish();
}

/// From graph files to a graph, alone and as a parent of another file, and on to a plan.
fn files(c: &mut Criterion) {
    let mut group = c.benchmark_group("graph file");
    group.sample_size(10);
    let (registry, folder) = (small_ops::registry(), tempfile::tempdir().unwrap());
    let (parent, child) = (folder.path().join("parent.ron"), folder.path().join("child.ron"));
    for nodes in [1_000, 10_000, 100_000] {
        fs::write(&parent, small_ops::large(nodes)).unwrap();
        fs::write(&child, small_ops::large_child(nodes, "parent.ron")).unwrap();
        for (what, path) in [("read", &parent), ("read as a parent", &child)] {
            let load = || load(black_box(path), &[], &registry).unwrap();
            group.bench_function(format!("{nodes} nodes {what}"), |b| b.iter(load));
        }
        let graph = load(&parent, &[], &registry).unwrap().graph;
        group.bench_function(format!("{nodes} nodes planned"), |b| {
            b.iter(|| Plan::new(black_box(&graph), &options(4, 1)).unwrap());
        });
    }
    group.finish();
}

/// A step of tasks that do next to nothing: what is left is the cost of scheduling them.
fn steps(c: &mut Criterion) {
    let graph = Arc::new(chain(1_000));
    let mut group = c.benchmark_group("step of 1000 nodes");
    group.sample_size(20);
    for lanes in [1, 2] {
        let mut run = runner(&graph, lanes, 1, 0);
        group.bench_function(format!("{lanes} lanes"), |b| b.iter(|| run.step().unwrap()));
    }
    group.finish();
}

criterion_group!(benches, plans, files, steps);
criterion_main!(benches);
