//! Plans: derived sets, schedules, memory, errors, and how a plan is shown.

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

use common::*;
use prefgraph::{
    Graph, Plan, PlanError, PlanOptions, Task,
    plan::{GpuOptions, Phase, Place, Rates},
};
use prefgraph_ops::{
    Cost, Ctx, OpError, Operator, Shared, Wanted,
    operator::{InGrads, InShapes, OutGrads, OutShapes},
};
use proptest::prelude::*;

fn plan(g: &Graph, lanes: usize, ahead: usize) -> Plan {
    Plan::new(g, &options(lanes, ahead)).unwrap()
}

fn error(g: &Graph) -> String {
    Plan::new(g, &options(2, 1)).unwrap_err().to_string()
}

fn ids(g: &Graph, pick: impl Fn(prefgraph::NodeId) -> bool) -> Vec<&str> {
    g.nodes().filter(|(id, _)| pick(*id)).map(|(_, node)| node.id.as_str()).collect()
}

#[test]
fn nodes_that_no_cell_reaches_run_ahead_and_those_on_a_path_to_the_loss_have_a_backward() {
    let g = everything();
    let plan = plan(&g, 2, 1);
    assert_eq!(ids(&g, |n| plan.runs_ahead(n)), ["x", "target", "scaled"]);
    assert_eq!(ids(&g, |n| plan.gradient().reaches(n)), ["w", "v", "xw", "bent", "sum", "miss", "loss"]);
    let wanted = |id| plan.gradient().wanted(g.find(id).unwrap()).unwrap().to_vec();
    assert_eq!(wanted("xw"), [false, true], "nobody needs the derivative by the data");
    assert_eq!(wanted("sum"), [true, true]);
    assert_eq!(wanted("miss"), [true, false]);
    assert_eq!(wanted("w"), [false; 0]);
    let phase = |phase| {
        let of = |n: prefgraph::NodeId| plan.tasks()[n.index()].phase == phase;
        ids(&g, of)
    };
    assert_eq!(phase(Phase::Update), ["step_w", "step_v"]);
    assert_eq!(phase(Phase::Effects), ["record"]);
    assert_eq!(phase(Phase::Forward), ["w", "v", "xw", "bent", "sum", "miss", "loss"]);
}

#[test]
fn shapes_that_do_not_go_together_are_named_on_both_sides() {
    let mut g = Graph::new("bad");
    let (a,) = g.add("wide", Data(2, 3), ());
    let (b,) = g.add("tall", Data(4, 3), ());
    g.add("product", Multiply, (a, b));
    let found = Plan::new(&g, &options(1, 0)).unwrap_err();
    assert_eq!(
        found,
        PlanError {
            node: "product".into(),
            op: "multiply".into(),
            input: None,
            message:
                "`a` is f32[2,3] and `b` is f32[4,3] (it reads a = `wide` f32[2,3], b = `tall` f32[4,3])"
                    .into(),
        }
    );
    let mut g = Graph::new("bad");
    let (a,) = g.add("wide", Data(2, 3), ());
    let (b,) = g.add("tall", Data(4, 3), ());
    g.op("miss", (a, b), |a, b| a - b);
    let shown = error(&g);
    assert!(
        shown.starts_with("node `miss` (`closure`): the closure does not accept (f32[2,3], f32[4,3])"),
        "{shown}"
    );
    assert!(shown.ends_with("(it reads a = `wide` f32[2,3], b = `tall` f32[4,3])"), "{shown}");
}

#[test]
fn a_cotangent_that_no_gradient_reaches_is_refused_at_its_reader() {
    let mut g = Graph::new("bad");
    let (w,) = g.add("w", Weights(2, 2), ());
    g.add("next", Descend, (w, w.cotangent()));
    assert_eq!(
        error(&g),
        "node `next` (`descend`), input `g`: it reads `grad:w`, but the graph has no loss to differentiate"
    );
    let (x,) = g.add("x", Data(2, 2), ());
    let loss = mean_square(&mut g, "loss", x);
    g.set_loss(loss);
    assert_eq!(
        error(&g),
        "node `next` (`descend`), input `g`: no gradient reaches `w`: its paths to the loss `loss` end at `next` \
         (descend), which no derivative crosses"
    );
    let mut g = Graph::new("bad");
    let (w,) = g.add("w", Weights(2, 2), ());
    let loss = mean_square(&mut g, "loss", w);
    let (u,) = g.add("u", Weights(2, 2), ());
    g.add("next", Descend, (w, u.cotangent()));
    g.set_loss(loss);
    assert_eq!(
        error(&g),
        "node `next` (`descend`), input `g`: no gradient reaches `u`: no path leads from it to the loss `loss`"
    );
    let (w2,) = g.add("w2", Descend, (w, w.cotangent()));
    let late = mean_square(&mut g, "late", w2);
    g.set_loss(late);
    assert_eq!(
        error(&g),
        "node `w2` (`descend`), input `g`: it reads `grad:w`, a derivative of the loss `late`, and the loss depends on \
         it"
    );
}

#[test]
fn a_cell_keeps_its_shape() {
    let mut g = Graph::new("bad");
    let (w,) = g.add("w", Weights(2, 2), ());
    let (x,) = g.add("x", Data(4, 2), ());
    g.carry(w, x);
    assert_eq!(
        error(&g),
        "node `w` (`weights`): it holds f32[2,2], but `x` gives f32[4,2]; a cell keeps its shape from step to step"
    );
}

#[test]
fn every_combination_of_two_sources_with_variants_is_inferred_and_runs() {
    let mut g = Graph::new("two");
    let (a,) = g.add("a", Turns { rows: vec![1, 2], lies: false }, ());
    let (b,) = g.add("b", Turns { rows: vec![1, 3, 5], lies: false }, ());
    let (aa,) = g.add("aa", Multiply, (a, a));
    let (bb,) = g.add("bb", Multiply, (b, b));
    let found = plan(&g, 1, 0);
    let rows = |v: &prefgraph::plan::Variant| [aa, bb].map(|w| v.shape(&g, w.endpoint()).describe());
    let expected = [(1, 1), (2, 1), (1, 3), (2, 3), (1, 5), (2, 5)]
        .map(|(a, b)| [format!("f32[{a},3]"), format!("f32[{b},3]")]);
    assert_eq!(found.variants().iter().map(rows).collect::<Vec<_>>(), expected);
    let mut runner = runner(&Arc::new(g), 2, 1, 0);
    (0..6).for_each(|_| drop(runner.step().unwrap()));
}

#[test]
fn combinations_without_end_are_refused() {
    let mut g = Graph::new("many");
    g.add("a", Turns { rows: vec![1; 40], lies: false }, ());
    g.add("b", Turns { rows: vec![1; 40], lies: false }, ());
    let found = error(&g);
    assert!(found.contains("node `b`") && found.contains("1600 combinations"), "{found}");
}

#[test]
fn the_largest_variant_is_shown_and_all_are_inferred() {
    let mut g = Graph::new("turns");
    let (x,) = g.add("x", Turns { rows: vec![2, 5, 3], lies: false }, ());
    let (y,) = g.add("y", Multiply, (x, x));
    let plan = plan(&g, 1, 0);
    assert_eq!(plan.variants().len(), 3);
    assert_eq!(plan.shape(&g, y.endpoint()).describe(), "f32[5,3]");
    assert_eq!(plan.variants()[2].shape(&g, y.endpoint()).describe(), "f32[3,3]");
    assert!(plan.explain(&g).to_string().contains("shapes: the largest of 3 variants"));
}

#[test]
fn steps_that_are_ahead_are_in_the_predicted_memory() {
    let mut g = Graph::new("ahead");
    let alive = Arc::new(AtomicUsize::new(0));
    let (c,) = g.add("c", MakeCounted(alive), (None,));
    let (w,) = g.add("w", Weights(2, 2), ());
    let (x,) = g.add("n", CountAlive, (c,));
    let y = g.op("y", (w, x), |w, x| {
        use dfdx::tensor_ops::BroadcastTo;
        let shape = *dfdx::shapes::HasShape::shape(&w);
        w * x.broadcast_like::<_, dfdx::shapes::Axes2<0, 1>>(&shape)
    });
    g.carry(w, y);
    let peak = |ahead| plan(&g, 1, ahead).memory().clone();
    assert_eq!(peak(0).ahead, 0);
    assert_eq!(peak(3).ahead, 3 * 4, "one number of each of three steps");
    assert!(peak(0).peak >= 1_000_000 && peak(3).peak >= 1_000_000);
}

#[test]
fn a_plan_is_a_value() {
    let g = everything();
    assert_eq!(plan(&g, 3, 1), plan(&everything(), 3, 1));
    assert_ne!(plan(&g, 3, 1), plan(&g, 2, 1));
    let text = plan(&g, 2, 1).explain(&g).to_string();
    assert_eq!(text, plan(&g, 2, 1).explain(&g).to_string());
}

#[test]
fn explain_has_one_line_a_task() {
    let mut g = Graph::new("small");
    let (x,) = g.add("x", Data(2, 3), ());
    let (w,) = g.add("w", Weights(2, 3), ());
    let (y,) = g.add("y", Multiply, (x, w));
    let loss = mean_square(&mut g, "loss", y);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    g.add("record", Record, (loss,));
    g.set_loss(loss);
    g.carry(w, next);
    let text = plan(&g, 2, 1).explain(&g).to_string();
    let golden = include_str!("ui/explain.txt");
    assert_eq!(text, golden, "\n{text}");
}

#[test]
fn dot_shows_phases_lanes_cotangents_and_cells() {
    let g = everything();
    let text = plan(&g, 2, 1).to_dot(&g).to_string();
    for part in [
        "subgraph cluster_ahead",
        "subgraph cluster_forward",
        "subgraph cluster_backward",
        "subgraph cluster_update",
        "subgraph cluster_effects",
        "style=dashed, color=\"#dc2626\"",
        "style=dotted, constraint=false",
        "[label=\"f32[4,3]\"]",
        "lane 1",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    assert_eq!(text.matches('{').count(), text.matches('}').count());
    let tasks = plan(&g, 2, 1).tasks().len();
    assert_eq!(text.matches("shape=plain").count(), 1);
    assert_eq!(text.matches("[label=<<TABLE").count(), tasks, "one box a task");
}

#[test]
fn a_graph_of_a_hundred_thousand_nodes_can_be_planned() {
    let g = chain(100_000);
    let plan = plan(&g, 4, 1);
    assert_eq!(plan.order().len(), plan.tasks().len());
    assert!(plan.tasks().len() > 149_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_schedule_keeps_dependencies_and_a_lane_does_one_thing_at_a_time(
        lanes in 1usize..9,
        ahead in 0usize..3,
        times in prop::collection::vec(1e-5f64..1e-2, 20),
    ) {
        let g = everything();
        let declared = plan(&g, lanes, ahead);
        let measured: BTreeMap<Task, f64> = declared.tasks().iter().map(|t| t.task).zip(times).collect();
        for plan in [declared.clone(), declared.with_times(&measured)] {
            let tasks = plan.tasks();
            let mut seen = plan.order().to_vec();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..tasks.len()).collect::<Vec<_>>());
            for (id, task) in tasks.iter().enumerate() {
                prop_assert!(task.lane < lanes);
                for &before in &task.after {
                    let within = ahead == 0 || (tasks[before].phase == Phase::Ahead) == (task.phase == Phase::Ahead);
                    prop_assert!(!within || tasks[before].end <= task.start, "{} starts before {} ends", id, before);
                }
                for other in &tasks[..id] {
                    let apart = other.end <= task.start || task.end <= other.start;
                    prop_assert!(other.lane != task.lane || apart);
                }
                if ahead > 0 && lanes > 1 && task.phase == Phase::Ahead {
                    prop_assert!(task.lane > 0, "the first lane is for this step");
                }
            }
            prop_assert!(plan.critical_seconds() <= plan.seconds() + 1e-12);
        }
    }

    #[test]
    fn lanes_of_one_processor_are_planned_as_fast_as_one(lanes in 2usize..9) {
        let g = everything();
        let (several, one) = (plan(&g, lanes, 0).seconds(), plan(&g, 1, 0).seconds());
        prop_assert!((several / one - 1.0).abs() < 1e-9, "{} and {}", several, one);
    }
}

/// A node that works on the GPU in a run that has one.
#[derive(Default)]
struct OnGpu {
    urgent: bool,
}
impl Operator for OnGpu {
    operator!(OnGpu, "on-gpu", (Matrix,): ["x"] -> (Matrix,): ["y"], false);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost { forward_flops: 1e9, resident_bytes: 100_000_000, scratch_bytes: 10_000_000, ..Cost::default() }
    }
    fn gpu_cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(Cost {
            forward_flops: 1e9,
            resident_bytes: 50_000_000,
            scratch_bytes: 5_000_000,
            queue_bytes: 1_000_000,
            urgent: self.urgent,
            host_bytes: 2_000_000,
            ..Cost::default()
        })
    }
    fn forward(&self, _: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        Ok(((x,), ()))
    }
}

/// Works on the processor for as long as [`OnGpu`] does on a GPU of its speed.
struct OnProcessor;
impl Operator for OnProcessor {
    operator!(OnProcessor, "on-processor", (Matrix,): ["x"] -> (Matrix,): ["y"], false);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost { forward_flops: 1e9, ..Cost::default() }
    }
    fn forward(&self, _: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        Ok(((x,), ()))
    }
}

#[test]
fn costs_have_a_place_and_a_gpu_works_beside_the_processor() {
    let mut g = Graph::new("places");
    let (x,) = g.add("x", Data(2, 2), ());
    let (gpu,) = g.add("gpu", OnGpu::default(), (x,));
    let (cpu,) = g.add("cpu", OnProcessor, (x,));
    let gpu_options = |rates| GpuOptions { number: 3, rates, driver: 7 };
    let with = |gpu| Plan::new(&g, &PlanOptions { gpu, ..options(2, 0) }).unwrap();
    let places = [Place::Cpu, Place::Cuda(3)];

    let processor = with(None);
    let second = 1e9 / Rates::default().flops;
    assert!((processor.seconds() / (2.0 * second) - 1.0).abs() < 0.01, "one after the other");
    assert_eq!(processor.memory_by_place().len(), 1);
    assert!(processor.memory().peak >= 110_000_000);

    let both = with(Some(gpu_options(Some(Rates::default()))));
    assert!((both.seconds() / second - 1.0).abs() < 0.01, "one beside the other: {}", both.seconds());
    assert_eq!([cpu, gpu].map(|wire| both.place(wire.endpoint().node)), places);
    let memory: BTreeMap<Place, usize> =
        both.memory_by_place().iter().map(|(place, memory)| (*place, memory.peak)).collect();
    assert_eq!(memory[&Place::Cuda(3)], 50_000_000 + 5_000_000 + 1_000_000 + 7);
    assert!(
        (2_000_000..3_000_000).contains(&memory[&Place::Cpu]),
        "what is pinned, and the matrices: {memory:?}"
    );
    let text = both.explain(&g).to_string();
    assert!(text.contains("memory of cuda:3: peak") && text.contains("place"), "{text}");

    // Without speeds there is an order and no time.
    let untimed = with(Some(gpu_options(None)));
    assert!(!untimed.is_timed() && untimed.order().len() == both.order().len());
    let text = untimed.explain(&g).to_string();
    assert!(text.contains("a step: no times, since the speed of cuda:3 is unknown"), "{text}");
    let measured = untimed.tasks().iter().map(|t| (t.task, 0.5)).collect();
    assert!(untimed.with_times(&measured).is_timed());
}

#[test]
fn a_gpu_keeps_its_urgent_queues_and_the_others_whatever_runs_at_once() {
    let queues = |urgent: [bool; 2]| {
        let mut g = Graph::new("queues");
        let (x,) = g.add("x", Data(2, 2), ());
        let (first,) = g.add("first", OnGpu { urgent: urgent[0] }, (x,));
        g.add("second", OnGpu { urgent: urgent[1] }, (first,));
        let gpu = Some(GpuOptions { number: 0, rates: None, driver: 0 });
        let plan = Plan::new(&g, &PlanOptions { gpu, ..options(2, 0) }).unwrap();
        plan.memory_by_place().iter().find(|(place, _)| *place == Place::Cuda(0)).unwrap().1.queues
    };
    assert_eq!(
        [false, true].map(|kind| queues([kind; 2])),
        [1_000_000; 2],
        "one after the other has the first one's"
    );
    assert_eq!(queues([true, false]), 2_000_000);
}

#[test]
fn a_pass_of_a_later_step_has_room_beside_the_update() {
    let graph = |measures: bool| {
        let mut g = Graph::new("beside");
        let (x,) = g.add("x", Data(2, 2), ());
        let (pass,) = g.add("pass", OnGpu::default(), (x,));
        let (w,) = g.add("w", Weights(2, 2), ());
        let (y,) = g.add("y", Multiply, (w, pass));
        let loss = mean_square(&mut g, "loss", y);
        let (next,) = g.add("next", Descend, (w, w.cotangent()));
        let (update,) = g.add("update", OnGpu { urgent: true }, (next,));
        if measures {
            let (held_out,) = g.add("held_out", OnGpu::default(), (update,));
            let error = mean_square(&mut g, "error", held_out);
            g.add("record", Record, (error,));
        }
        g.set_loss(loss);
        g.carry(w, update);
        g
    };
    let gpu = Some(GpuOptions { number: 0, rates: Some(Rates::default()), driver: 0 });
    let passes = |measures, lanes, ahead| {
        let g = graph(measures);
        let plan = Plan::new(&g, &PlanOptions { gpu, ..options(lanes, ahead) }).unwrap();
        let memory = &plan.memory_by_place().iter().find(|(place, _)| *place == Place::Cuda(0)).unwrap().1;
        memory.peak - memory.resident - memory.queues
    };
    assert_eq!(passes(false, 2, 1), 10_000_000);
    // Without run-ahead, and with one lane, they run one after the other; and a pass of the step itself comes first.
    assert_eq!([passes(false, 2, 0), passes(false, 1, 1), passes(true, 1, 1)], [5_000_000; 3]);
    // What the pass gives is there of two later steps, and what it reads waits for it in the second.
    let g = graph(false);
    let ahead = |gpu| Plan::new(&g, &PlanOptions { gpu, ..options(2, 1) }).unwrap().memory().ahead;
    let matrix = 2 * 2 * size_of::<f32>();
    assert_eq!([ahead(gpu), ahead(None)], [3 * matrix, matrix]);
}

/// Doubles, keeps eight million bytes for its backward, and says what it was told of one.
struct Keeping {
    alone: Option<usize>,
    told: Arc<Mutex<BTreeMap<String, bool>>>,
}
impl Operator for Keeping {
    operator!(Keeping, "keeping", (Matrix,): ["x"] -> (Matrix,): ["y"], true);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost {
            saved_bytes: 8_000_000,
            scratch_bytes: 1_000_000,
            backward_scratch_bytes: 3_000_000,
            alone_bytes: self.alone,
            shared: Some(Shared { input: 0, bytes: 500_000 }),
            urgent: true,
            ..Cost::default()
        }
    }
    fn forward(&self, ctx: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        self.told.lock().unwrap().insert(ctx.node.into(), ctx.backward_follows);
        Ok(((x * 2.0,), ()))
    }
    fn backward(
        &self,
        _: &Ctx<'_>,
        _: Wanted<'_>,
        (): (),
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        Ok((g.map(|g| g * 2.0),))
    }
}

#[test]
fn a_pass_that_no_backward_follows_is_told_so_and_planned_without_what_it_would_keep() {
    let told = Arc::new(Mutex::default());
    let graph = |alone, trains: bool| {
        let keeping = || Keeping { alone, told: Arc::clone(&told) };
        let mut g = Graph::new("keeping");
        let (w,) = g.add("w", Weights(2, 2), ());
        let (measured,) = g.add("measured", keeping(), (w,));
        let error = mean_square(&mut g, "error", measured);
        g.add("record", Record, (error,));
        if trains {
            let (trained,) = g.add("trained", keeping(), (w,));
            let loss = mean_square(&mut g, "loss", trained);
            let (next,) = g.add("next", Descend, (w, w.cotangent()));
            g.set_loss(loss);
            g.carry(w, next);
        }
        Arc::new(g)
    };
    let memory = |alone, trains| {
        let memory = plan(&graph(alone, trains), 1, 0).memory().clone();
        (memory.peak / 100_000, memory.resident)
    };
    // What it holds by itself, or what an operator holds that keeps all the same; and what is packed for backwards.
    assert_eq!(memory(Some(2_000_000), false), (20, 0));
    assert_eq!(memory(None, false), (95, 500_000));
    assert_eq!(memory(Some(2_000_000), true), (115, 500_000), "the backward of the other one");

    let g = graph(Some(2_000_000), true);
    let cost = |id| *plan(&g, 1, 0).cost(g.find(id).unwrap());
    let (measured, trained) = (cost("measured"), cost("trained"));
    assert!(!measured.urgent && trained.urgent);
    assert_eq!(
        [measured, trained].map(|c| (c.saved_bytes, c.scratch_bytes)),
        [(0, 2_000_000), (8_000_000, 1_000_000)]
    );
    runner(&g, 1, 0, 7).step().unwrap();
    let told = told.lock().unwrap().clone();
    assert_eq!(told, BTreeMap::from([("measured".into(), false), ("trained".into(), true)]));
}
