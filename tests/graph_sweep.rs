//! Variants of a graph as one graph: what they share, and that each computes what it computes alone.

mod common;

use std::sync::Arc;

use common::{Descend, Multiply, Weights, at, chain, cpu, everything, mean_square, options, runner};
use prefgraph::{
    Graph, GraphError, Plan, RunOptions, Runner, Task,
    plan::Phase,
    sweep::{JoinError, Joined, Part, join},
};

/// So many variants of a graph, which differ in the settings of these nodes.
fn joined(graphs: &[Graph], differ: &[&str]) -> Joined {
    let settings: Vec<Vec<String>> = graphs
        .iter()
        .enumerate()
        .map(|(variant, graph)| {
            let of = |id: &str| if differ.contains(&id) { variant.to_string() } else { String::new() };
            graph.nodes().map(|(_, node)| of(&node.id)).collect()
        })
        .collect();
    let parts: Vec<Part<'_>> = (1..)
        .zip(graphs.iter().zip(&settings))
        .map(|(number, (graph, settings))| Part { number, graph, settings })
        .collect();
    join("joined", &parts).unwrap()
}

fn ids(graph: &Graph) -> Vec<&str> {
    graph.nodes().map(|(_, node)| node.id.as_str()).collect()
}

#[test]
fn a_node_is_shared_until_something_it_depends_on_differs() {
    let graphs = [everything(), everything()];
    let shared = |differ: &str| {
        let found = joined(&graphs, &[differ]);
        let nodes = graphs[0].nodes().filter(|(id, _)| found.is_shared(*id));
        nodes.map(|(_, node)| node.id.clone()).collect::<Vec<_>>()
    };
    // Once the update differs, so does the adapter, and all that reads it.
    assert_eq!(shared("step_w"), ["x", "target", "scaled"]);
    assert_eq!(shared("target"), ["x", "scaled"]);
    // What is only looked at changes nothing else.
    assert_eq!(shared("record").len(), graphs[0].len() - 1);
    assert_eq!(shared("nothing").len(), graphs[0].len());
    let found = joined(&graphs, &["step_w"]);
    assert_eq!(ids(&found.graph)[..5], ["x", "target", "scaled", "w#1", "w#2"]);
    assert_eq!((found.graph.losses().len(), found.graph.carries().len()), (2, 4));
}

#[test]
fn variants_that_agree_share_a_node_even_where_others_do_not() {
    let graphs = [everything(), everything(), everything(), everything()];
    let settings: Vec<Vec<String>> = [["a", "p"], ["a", "q"], ["b", "p"], ["b", "q"]]
        .into_iter()
        .map(|[target, step]| {
            let of = |id: &str| match id {
                "target" => target,
                "step_w" => step,
                _ => "",
            };
            graphs[0].nodes().map(|(_, node)| of(&node.id).to_owned()).collect()
        })
        .collect();
    let parts: Vec<Part<'_>> = (1..)
        .zip(graphs.iter().zip(&settings))
        .map(|(number, (graph, settings))| Part { number, graph, settings })
        .collect();
    let found = join("joined", &parts).unwrap();
    let copies = |id: &str| found.copies(graphs[0].find(id).unwrap());
    assert_eq!((copies("x"), copies("target"), copies("w"), copies("loss")), (1, 2, 4, 4));
    let targets: Vec<&str> = ids(&found.graph).into_iter().filter(|id| id.starts_with("target")).collect();
    assert_eq!(targets, ["target#1", "target#3"]);
}

#[test]
fn every_variant_has_the_bits_that_it_has_alone_whatever_is_shared_and_however_many_lanes_there_are() {
    const STEPS: usize = 4;
    let alone = Arc::new(everything());
    let mut single = runner(&alone, 2, 1, 7);
    let losses: Vec<u32> = (0..STEPS).map(|_| single.step().unwrap().loss.unwrap().to_bits()).collect();
    let cells = single.cells().unwrap();
    let every: Vec<String> = alone.nodes().map(|(_, node)| node.id.clone()).collect();
    for (number, differ) in every.iter().enumerate() {
        let graphs = [everything(), everything(), everything()];
        let Joined { graph, .. } = joined(&graphs, &[differ]);
        let graph = Arc::new(graph);
        let lanes = 1 + number % 4;
        let mut runner = runner(&graph, lanes, number % 2, 7);
        for (step, alone) in losses.iter().enumerate() {
            let output = runner.step().unwrap();
            assert_eq!(output.losses.len(), graph.losses().len());
            assert!(output.losses.iter().all(|l| l.to_bits() == *alone), "{differ}, step {step}");
        }
        for (path, state) in runner.cells().unwrap() {
            let own = path.split('#').next().unwrap();
            assert!(state == cells[own], "{differ}: {path}");
        }
    }
}

#[test]
fn no_more_variants_than_lanes_hold_values_for_their_backward_at_once() {
    let graphs: Vec<Graph> = (0..6).map(|_| everything()).collect();
    let Joined { graph, .. } = joined(&graphs, &["step_w"]);
    for lanes in 1..=4 {
        let plan = Plan::new(&graph, &options(lanes, 1)).unwrap();
        let (mut open, mut most) = (std::collections::BTreeSet::new(), 0);
        for &id in plan.order() {
            let planned = &plan.tasks()[id];
            let turn = graph[planned.task.node()].turn;
            match planned.phase {
                // The first product with the adapter keeps its operands.
                Phase::Forward if turn > 0 && graph[planned.task.node()].id.starts_with("xw") => {
                    open.insert(turn);
                }
                Phase::Update => drop(open.remove(&turn)),
                _ => {}
            }
            most = most.max(open.len());
        }
        assert!((1..=lanes).contains(&most), "{lanes} lanes: {most} variants abreast");
    }
    let peak = |lanes| Plan::new(&graph, &options(lanes, 0)).unwrap().memory().peak;
    assert!(peak(1) <= peak(4));
}

#[test]
fn several_losses_are_differentiated_as_their_sum() {
    let build = |one: bool| {
        let mut g = Graph::new("two");
        let (w,) = g.add("w", Weights(2, 2), ());
        let (square,) = g.add("square", Multiply, (w, w));
        let first = mean_square(&mut g, "first", square);
        let second = mean_square(&mut g, "second", w);
        let both = g.op("both", (first, second), |a, b| a + b);
        let (next,) = g.add("next", Descend, (w, w.cotangent()));
        g.carry(w, next);
        if one {
            g.set_loss(both);
        } else {
            g.set_loss(first);
            g.add_loss_at(second.endpoint()).unwrap();
            g.add_loss_at(second.endpoint()).unwrap();
        }
        g
    };
    let run = |g: Graph| {
        let g = Arc::new(g);
        let mut runner = runner(&g, 2, 1, 3);
        let losses = runner.step().unwrap().losses;
        let cells = runner.cells().unwrap();
        (losses, cells["w"].tensors[0].values.to_vec())
    };
    let ((sum, one), (two, several)) = (run(build(true)), run(build(false)));
    assert_eq!((sum.len(), two.len()), (1, 2));
    assert!((two[0] + two[1] - sum[0]).abs() < 1e-6);
    assert!(one.iter().zip(&several).all(|(a, b)| (a - b).abs() < 1e-6), "{one:?} {several:?}");
    let g = build(false);
    let plan = Plan::new(&g, &options(1, 0)).unwrap();
    assert!(plan.tasks().iter().any(|t| t.task == Task::Backward(g.find("second").unwrap())));
    let mut g = build(false);
    let discrete = at(&g, "square");
    assert!(matches!(g.add_loss_at(discrete), Err(GraphError::Loss { .. })));
}

#[test]
fn graphs_that_differ_in_more_than_settings_are_no_variants() {
    let (a, b) = (everything(), chain(8));
    let none: Vec<String> = Vec::new();
    let parts =
        [Part { number: 1, graph: &a, settings: &none }, Part { number: 2, graph: &b, settings: &none }];
    assert!(matches!(join("x", &parts), Err(JoinError::Structure { .. })));
    assert!(matches!(join("x", &[]), Err(JoinError::Empty)));
    let alone = join("x", &parts[..1]).unwrap();
    assert_eq!(ids(&alone.graph), ids(&a));
    let plan = Plan::new(&alone.graph, &options(1, 0)).unwrap();
    assert!(Runner::new(Arc::new(alone.graph), plan, RunOptions::new(0, cpu())).is_ok());
}
