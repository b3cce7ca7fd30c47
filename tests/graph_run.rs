//! Runs: gradients, values, errors, lifetimes, state.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use common::*;
use prefgraph::{Graph, Plan, RunError, RunOptions, Runner};
use prefgraph_ops::{
    NamedState, NamedTensor, OpError, Operator,
    ports::{Effect, Effects, EffectsShape, Metrics},
};

fn state(values: &[f32], rows: usize) -> NamedState {
    let dims = vec![rows, values.len() / rows];
    let tensor = NamedTensor { name: "value".into(), dims, values: Arc::new(values.to_vec()) };
    NamedState { tensors: vec![tensor], counters: Vec::new() }
}

fn values(state: &NamedState) -> Vec<f32> {
    state.tensors[0].values.to_vec()
}

/// Central differences of the loss through the whole graph, against what the update node was given.
fn assert_gradients_agree(graph: Graph, cells: &[&str]) {
    let graph = Arc::new(graph);
    let mut run = runner(&graph, 3, 1, 11);
    run.step().unwrap();
    // A point where nothing is zero and no term drowns the others.
    let mut start = run.cells().unwrap();
    for (k, state) in start.values_mut().enumerate() {
        let count = values(state).len();
        let moved = (0..count).map(|i| 0.8 * ((2 * i + k) as f32 + 0.5).sin()).collect();
        state.tensors[0].values = Arc::new(moved);
    }
    let mut loss_at = |cells: &std::collections::BTreeMap<String, NamedState>| {
        run.restore(5, cells).unwrap();
        (f64::from(run.step().unwrap().loss.unwrap()), run.cells().unwrap())
    };
    let (_, after) = loss_at(&start);
    for cell in cells {
        let (before, after) = (values(&start[*cell]), values(&after[*cell]));
        for k in 0..before.len() {
            let mut moved = |h: f32| {
                let mut cells = start.clone();
                let mut v = before.clone();
                v[k] += h;
                cells.insert((*cell).into(), state(&v, start[*cell].tensors[0].dims[0]));
                loss_at(&cells).0
            };
            let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let analytic = f64::from(before[k] - after[k]) / 0.1;
            assert!(
                (analytic - numeric).abs() < 2e-3 + 1e-2 * numeric.abs(),
                "{cell}[{k}]: reverse {analytic}, differences {numeric}"
            );
        }
        assert_ne!(before, after, "the gradient of {cell} is zero: the test shows nothing");
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    assert_gradients_agree(everything(), &["w", "v"]);
}

#[test]
fn gradients_of_a_diamond_with_an_aliased_input_are_summed_once_each() {
    let mut g = Graph::new("diamond");
    let (w,) = g.add("w", Weights(2, 3), ());
    let (square,) = g.add("square", Multiply, (w, w));
    let twice = g.op("twice", (square, square), |a, b| a * b);
    let bent = g.op("bent", (w,), |w| w.tanh());
    let (sum,) = g.add("sum", Total, (vec![twice, bent, twice], Some(w)));
    let loss = mean_square(&mut g, "loss", sum);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    g.set_loss(loss);
    g.carry(w, next);
    assert_gradients_agree(g, &["w"]);
}

#[test]
fn a_closure_and_an_operator_by_hand_have_the_same_gradient() {
    let build = |closure: bool| {
        let mut g = Graph::new("product");
        let (x,) = g.add("x", Data(3, 2), ());
        let (w,) = g.add("w", Weights(3, 2), ());
        let y = if closure { g.op("y", (x, w), |a, b| a * b) } else { g.add("y", Multiply, (x, w)).0 };
        let loss = mean_square(&mut g, "loss", y);
        let (next,) = g.add("next", Descend, (w, w.cotangent()));
        g.set_loss(loss);
        g.carry(w, next);
        Arc::new(g)
    };
    let run = |closure| bits(&mut runner(&build(closure), 2, 1, 3), 4);
    assert_eq!(run(true), run(false));
}

#[test]
fn a_list_and_an_optional_input_may_be_empty_where_the_operator_allows() {
    let mut g = Graph::new("lists");
    let (x,) = g.add("x", Data(2, 2), ());
    let (one,) = g.add("one", Total, (vec![x], None));
    let (three,) = g.add("three", Total, (vec![x, one, x], x));
    let graph = Arc::new(g);
    let mut run = runner(&graph, 2, 0, 0);
    for wire in [x, one, three] {
        run.keep(wire.endpoint()).unwrap();
    }
    let output = run.step().unwrap();
    let [x, one, three] = [x, one, three].map(|w| output.value(w).unwrap().as_vec());
    assert_eq!(one, x);
    let expected: Vec<f32> = x.iter().map(|v| v + v + v + 2.0 * v).collect();
    assert_eq!(three, expected);
}

#[test]
fn kept_cotangents_are_those_of_the_loss() {
    let graph = Arc::new(everything());
    let mut run = runner(&graph, 2, 1, 0);
    run.keep(at(&graph, "grad:w")).unwrap();
    let error = run.keep(at(&graph, "grad:target")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`grad:target` cannot be kept: the plan does not compute it, since no node reads it or needs it"
    );
    run.step().unwrap();
    let before = values(&run.cells().unwrap()["w"]);
    let output = run.step().unwrap();
    let g: Matrix = prefgraph_ops::port::take(output.kept(at(&graph, "grad:w")).unwrap());
    let after = values(&run.cells().unwrap()["w"]);
    for ((b, g), a) in before.iter().zip(g.as_vec()).zip(after) {
        assert_eq!(a, b - g * 0.1);
    }
}

#[test]
fn effects_come_out_with_the_id_of_their_node() {
    let graph = Arc::new(everything());
    let mut run = runner(&graph, 2, 2, 0);
    for step in 0..3 {
        let output = run.step().unwrap();
        assert_eq!(output.step, step);
        let [(node, Effect::Record(metrics))] = &output.effects[..] else { panic!("{:?}", output.effects) };
        assert_eq!(node, "record");
        let recorded = metrics.get("loss").and_then(prefgraph_ops::ports::Metric::mean);
        assert_eq!(recorded, output.loss.map(f64::from));
    }
}

fn with_bomb(bomb: Bomb, ahead: bool) -> Arc<Graph> {
    let mut g = Graph::new("bomb");
    let (x,) = g.add("x", Data(2, 2), ());
    let (w,) = g.add("w", Weights(2, 2), ());
    let (x, y) = if ahead {
        let (x,) = g.add("bomb", bomb, (x,));
        (x, w)
    } else {
        let (w,) = g.add("bomb", bomb, (w,));
        (x, w)
    };
    let (xw,) = g.add("xw", Multiply, (x, y));
    let loss = mean_square(&mut g, "loss", xw);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    g.set_loss(loss);
    g.carry(w, next);
    Arc::new(g)
}

#[test]
fn a_panic_in_an_operator_is_an_error_that_names_the_node_and_stops_no_lane() {
    let graph = with_bomb(Bomb { forward_at: 2, backward_at: 9 }, false);
    for lanes in 1..=4 {
        let mut run = runner(&graph, lanes, 1, 0);
        run.step().unwrap();
        run.step().unwrap();
        let before = run.cells().unwrap();
        for _ in 0..3 {
            let error = run.step().unwrap_err();
            let shown = error.to_string();
            assert!(
                shown.starts_with("step 2: forward of node `bomb` (`bomb`) failed: panicked: "),
                "{shown}"
            );
            assert!(shown.contains("boom"), "{shown}");
        }
        assert_eq!(run.cells().unwrap(), before, "the cells of the last finished step stay");
        assert_eq!(run.next_step(), 2);
    }
}

#[test]
fn a_failing_backward_says_that_it_is_one() {
    let graph = with_bomb(Bomb { forward_at: 9, backward_at: 1 }, false);
    let mut run = runner(&graph, 2, 1, 0);
    run.step().unwrap();
    let error = run.step().unwrap_err();
    assert_eq!(error.to_string(), "step 1: backward of node `bomb` (`bomb`) failed: no way back");
}

#[test]
fn a_node_that_fails_while_running_ahead_is_reported_at_its_own_step() {
    let graph = with_bomb(Bomb { forward_at: 4, backward_at: 9 }, true);
    for ahead in 0..=3 {
        let mut run = runner(&graph, 2, ahead, 0);
        for step in 0..4 {
            assert_eq!(run.step().unwrap().step, step, "with {ahead} ahead");
        }
        let error = run.step().unwrap_err();
        assert!(matches!(&error, RunError::Node { step: 4, node, .. } if node == "bomb"), "{error}");
    }
}

#[test]
fn nodes_run_ahead_as_far_as_allowed_and_never_beyond_the_last_step() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    let mut g = Graph::new("counted");
    let (x,) = g.add("x", Data(2, 2), ());
    let x = g.op("counted", (x,), move |x| {
        counter.fetch_add(1, SeqCst);
        x
    });
    let (w,) = g.add("w", Weights(2, 2), ());
    let (next,) = g.add("next", Multiply, (x, w));
    g.carry(w, next);
    let graph = Arc::new(g);
    let plan = Plan::new(&graph, &options(2, 3)).unwrap();
    let ran_after = |steps: u64, last| {
        let options = RunOptions { last, ..RunOptions::new(0, cpu()) };
        let mut run = Runner::new(graph.clone(), plan.clone(), options).unwrap();
        runs.store(0, SeqCst);
        for _ in 0..steps {
            run.step().unwrap();
        }
        // What runs ahead does so after the step has been answered.
        std::thread::sleep(std::time::Duration::from_millis(200));
        runs.load(SeqCst)
    };
    assert_eq!(ran_after(1, None), 4, "the step and three ahead of it");
    assert_eq!(ran_after(2, None), 5);
    assert_eq!(ran_after(2, Some(3)), 4);
    assert_eq!(ran_after(4, Some(3)), 4);
}

#[test]
fn values_are_dropped_after_their_last_reader() {
    let alive = Arc::new(AtomicUsize::new(0));
    let mut g = Graph::new("chain");
    // A cell in front keeps the chain from running ahead.
    let (mut value,) = g.add("c0", MakeCounted(alive.clone()), (None,));
    for k in 1..20 {
        (value,) = g.add(&format!("c{k}"), MakeCounted(alive.clone()), (value,));
    }
    let (last,) = g.add("alive", CountAlive, (value,));
    let graph = Arc::new(g);
    for lanes in [1, 2] {
        let mut run = runner(&graph, lanes, 0, 0);
        run.keep(last.endpoint()).unwrap();
        let alive = dfdx::tensor::AsArray::array(&run.step().unwrap().value(last).unwrap());
        assert_eq!(alive, 2.0, "the last value and the copy that its reader was given");
    }
    assert_eq!(alive.load(SeqCst), 0);
    let memory = Plan::new(&graph, &options(1, 0)).unwrap().memory().clone();
    assert_eq!(memory.peak, 2_000_000, "one value being read and one being made");
}

#[test]
fn an_output_of_an_unplanned_shape_is_an_error_that_names_both() {
    let run = |lies| {
        let mut g = Graph::new("turns");
        g.add("batch", Turns { rows: vec![2, 4], lies }, ());
        let mut run = runner(&Arc::new(g), 1, 0, 0);
        run.step()?;
        run.step()
    };
    run(false).unwrap();
    assert_eq!(
        run(true).unwrap_err().to_string(),
        "step 0: forward of node `batch` (`turns`) failed: output `x` was promised as f32[2,3] or f32[4,3], and is \
         f32[3,3]"
    );
}

#[test]
fn a_saved_state_that_is_not_of_the_graph_is_refused_with_names() {
    let graph = Arc::new(everything());
    let mut run = runner(&graph, 1, 0, 0);
    run.step().unwrap();
    let good = run.cells().unwrap();
    let mut refused = |change: &dyn Fn(&mut std::collections::BTreeMap<String, NamedState>)| {
        let mut cells = good.clone();
        change(&mut cells);
        run.restore(1, &cells).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|c| drop(c.remove("v"))),
        "cell `v` cannot be restored: the state does not hold it; it holds w"
    );
    assert_eq!(
        refused(&|c| drop(c.insert("u".into(), NamedState::default()))),
        "cell `u` cannot be restored: the graph has no such cell; it has w, v"
    );
    assert_eq!(
        refused(&|c| drop(c.insert("w".into(), state(&[1.0, 2.0], 1)))),
        "cell `w` cannot be restored: the state has axes [1, 2], the graph [4, 3]"
    );
    run.restore(1, &good).unwrap();
    assert_eq!(run.step().unwrap().step, 1);
}

#[test]
fn a_plan_of_another_graph_is_refused() {
    let graph = Arc::new(everything());
    let plan = Plan::new(&Graph::new("empty"), &options(1, 0)).unwrap();
    let error = Runner::new(graph, plan, RunOptions::new(0, cpu())).err().unwrap();
    assert_eq!(error.to_string(), "the plan is of another graph: it has 0 nodes, the graph 13");
}

#[test]
fn after_a_few_steps_the_plan_is_by_measured_times() {
    let graph = Arc::new(everything());
    let mut run = runner(&graph, 2, 1, 0);
    for _ in 0..3 {
        run.step().unwrap();
        assert!(!run.plan().is_measured());
    }
    run.step().unwrap();
    assert!(run.plan().is_measured());
    assert!(run.plan().explain(&graph).to_string().contains("by measured times"));
}

#[test]
fn waiting_for_data_is_counted_apart() {
    /// Takes its time.
    struct Slow;
    impl Operator for Slow {
        operator!(Slow, "slow", (): [] -> (Matrix,): ["x"], false);
        type Saved = ();
        fn shapes(&self, (): (), _: usize) -> Result<((usize, usize),), OpError> {
            Ok(((2, 2),))
        }
        fn forward(&self, _: &prefgraph_ops::Ctx<'_>, (): ()) -> Result<((Matrix,), ()), OpError> {
            std::thread::sleep(std::time::Duration::from_millis(60));
            Ok(((matrix(vec![1.0; 4], 2, 2),), ()))
        }
    }
    let mut g = Graph::new("slow");
    let (x,) = g.add("x", Slow, ());
    let (w,) = g.add("w", Weights(2, 2), ());
    let (y,) = g.add("y", Multiply, (x, w));
    g.carry(w, y);
    let graph = Arc::new(g);
    let mut run = runner(&graph, 2, 0, 0);
    let output = run.step().unwrap();
    assert!(output.data_seconds > 0.03 && output.data_seconds <= output.seconds, "{output:?}");
    // With a step in hand and time to fetch the next, nothing waits.
    let mut run = runner(&graph, 2, 1, 0);
    run.step().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let output = run.step().unwrap();
    assert!(output.data_seconds < 0.03, "{output:?}");
}

/// Counts how often it runs, and is passed on.
struct Counted(Arc<AtomicUsize>);
impl Operator for Counted {
    operator!(Counted, "counted", (Matrix,): ["x"] -> (Matrix,): ["x"], false);
    type Saved = ();
    fn shapes(&self, (x,): ((usize, usize),), _: usize) -> Result<((usize, usize),), OpError> {
        Ok((x,))
    }
    fn cost(&self, _: &((usize, usize),), _: &((usize, usize),)) -> prefgraph_ops::Cost {
        prefgraph_ops::Cost { forward_flops: 1e12, ..Default::default() }
    }
    fn forward(&self, _: &prefgraph_ops::Ctx<'_>, (x,): (Matrix,)) -> Result<((Matrix,), ()), OpError> {
        self.0.fetch_add(1, SeqCst);
        Ok(((x,), ()))
    }
}

/// Asks for a record every third step.
struct Third;
impl Operator for Third {
    operator!(Third, "third", (Matrix,): ["x"] -> (Effects,): ["effects"], false);
    type Saved = ();
    fn due(&self, step: u64) -> bool {
        step.is_multiple_of(3)
    }
    fn shapes(&self, _: ((usize, usize),), _: usize) -> Result<(EffectsShape,), OpError> {
        Ok((EffectsShape::default(),))
    }
    fn forward(&self, _: &prefgraph_ops::Ctx<'_>, _: (Matrix,)) -> Result<((Effects,), ()), OpError> {
        Ok(((Effects(vec![Effect::Record(Metrics::default())]),), ()))
    }
}

/// A training step, and beside it a picture every third step: of data through `ahead`, of the cell through `late`.
fn learning(pictures: bool) -> (Arc<Graph>, [Arc<AtomicUsize>; 2], Option<prefgraph::Wire<Matrix>>) {
    let mut g = Graph::new("learning");
    let counts = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let (x,) = g.add("x", Data(4, 3), ());
    let (w,) = g.add("w", Weights(4, 3), ());
    let (y,) = g.add("y", Multiply, (x, w));
    let loss = mean_square(&mut g, "loss", y);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    g.add("record", Record, (loss,));
    g.set_loss(loss);
    g.carry(w, next);
    let late = pictures.then(|| {
        let (ahead,) = g.add("ahead", Counted(counts[0].clone()), (x,));
        let (late,) = g.add("late", Counted(counts[1].clone()), (w,));
        g.add("picture_ahead", Third, (ahead,));
        g.add("picture_late", Third, (late,));
        late
    });
    (Arc::new(g), counts, late)
}

#[test]
fn what_only_pictures_read_runs_only_where_pictures_are_due() {
    for ahead in [0, 2] {
        let (graph, counts, _) = learning(true);
        let mut run = runner(&graph, 2, ahead, 0);
        run.set_last(Some(7)).unwrap();
        let mut effects = Vec::new();
        for _ in 0..8 {
            let output = run.step().unwrap();
            effects.push(output.effects.len());
            let ran = output.times.iter().any(|t| graph[t.task.node()].id == "late");
            assert_eq!(ran, output.step.is_multiple_of(3));
        }
        assert_eq!(effects, [3, 1, 1, 3, 1, 1, 3, 1]);
        assert_eq!(counts.map(|c| c.load(SeqCst)), [3, 3]);
    }
    // What is learned is the same with pictures and without.
    let bits = |pictures| bits(&mut runner(&learning(pictures).0, 2, 1, 0), 5);
    assert_eq!(bits(true), bits(false));
}

#[test]
fn what_is_kept_runs_at_every_step() {
    let (graph, counts, late) = learning(true);
    let late = late.unwrap();
    let mut run = runner(&graph, 2, 1, 0);
    run.keep(late.endpoint()).unwrap();
    for _ in 0..4 {
        assert_eq!(run.step().unwrap().value(late).unwrap().as_vec().len(), 12);
    }
    assert_eq!(counts[1].load(SeqCst), 4);
}

#[test]
fn a_plan_by_measured_times_counts_no_time_for_what_was_not_due() {
    let (graph, ..) = learning(true);
    let plan = Plan::new(&graph, &options(2, 0)).unwrap();
    let late = graph.find("late").unwrap().index();
    let seconds = |plan: &Plan| plan.tasks()[late].seconds;
    assert!(seconds(&plan) > 1.0);
    let options = RunOptions { replan_after: 2, ..RunOptions::new(0, cpu()) };
    let mut run = Runner::new(graph.clone(), plan, options).unwrap();
    // The first step, at which the pictures are due, is not measured.
    (0..3).for_each(|_| drop(run.step().unwrap()));
    assert!(run.plan().is_measured());
    assert_eq!(seconds(run.plan()), run.plan().options().rates.start);
}
