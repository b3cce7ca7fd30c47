//! How long planning takes, and what a step costs besides its operators.

#![allow(missing_docs, reason = "criterion writes the functions")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/small_ops/mod.rs"]
mod small_ops;

use std::{hint::black_box, path::Path, sync::Arc};

use common::*;
use criterion::{Criterion, criterion_group, criterion_main};
use prefgraph::{Plan, spec::load_text};

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

/// From the text of a graph file to a graph, and on to a plan.
fn files(c: &mut Criterion) {
    let mut group = c.benchmark_group("graph file");
    group.sample_size(10);
    let (registry, folder) = (small_ops::registry(), Path::new("."));
    for nodes in [1_000, 10_000, 100_000] {
        let text = small_ops::large(nodes);
        let load = || load_text("large.ron", black_box(&text), folder, &[], &registry).unwrap();
        group.bench_function(format!("{nodes} nodes read"), |b| b.iter(load));
        let graph = load().graph;
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
