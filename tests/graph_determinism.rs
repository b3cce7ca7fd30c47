//! Lanes, run-ahead and restarts change no bit; and when what runs ahead begins.

mod common;

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use common::*;
use prefgraph::{Graph, Plan, PlanOptions, RunOptions, Runner, plan::GpuOptions};
use prefgraph_ops::{
    Cost, Ctx, OpError, Operator, Wanted,
    operator::{InGrads, InShapes, OutGrads, OutShapes},
};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lanes_and_run_ahead_do_not_change_a_bit(lanes in 1usize..9, ahead in 0usize..4, seed: u64) {
        let graph = Arc::new(everything());
        prop_assert_eq!(bits(&mut runner(&graph, lanes, ahead, seed), 7), bits(&mut runner(&graph, 1, 0, seed), 7));
    }

    #[test]
    fn a_run_that_is_resumed_at_any_step_is_the_same_run(
        lanes in 1usize..5,
        ahead in 0usize..4,
        stop in 0usize..8,
        seed: u64,
    ) {
        let graph = Arc::new(everything());
        let whole = bits(&mut runner(&graph, 1, 1, seed), 8);
        let mut first = runner(&graph, 2, 1, seed);
        let mut all: Vec<u32> = (0..stop).map(|_| first.step().unwrap().loss.unwrap().to_bits()).collect();
        let mut second = runner(&graph, lanes, ahead, seed);
        second.restore(first.next_step(), &first.cells().unwrap()).unwrap();
        all.extend(bits(&mut second, 8 - stop));
        prop_assert_eq!(all, whole);
    }
}

/// Which node has begun at which step.
#[derive(Clone, Default)]
struct Begun(Arc<(Mutex<Starts>, Condvar)>);

/// Nodes and steps.
type Starts = Vec<(&'static str, u64)>;

impl Begun {
    fn tell(&self, node: &'static str, step: u64) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).push((node, step));
        self.0.1.notify_all();
    }

    fn has(&self, node: &'static str, step: u64) -> bool {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&(node, step))
    }

    /// An error if it does not begin while the caller waits.
    fn wait_for(&self, node: &'static str, step: u64) -> Result<(), OpError> {
        let all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |all: &mut Vec<_>| !all.contains(&(node, step));
        let waiting = self.0.1.wait_timeout_while(all, Duration::from_secs(20), missing);
        let (all, waited) = waiting.unwrap_or_else(PoisonError::into_inner);
        drop(all);
        if waited.timed_out() {
            Err(OpError::new(format!("{node} of step {step} does not begin")))
        } else {
            Ok(())
        }
    }
}

/// What a node does at a step.
type Act = Box<dyn Fn(u64) -> Result<(), OpError> + Send + Sync>;

/// Passes a matrix on, and does something at each of its steps on the way there and back.
struct Acting {
    on_gpu: bool,
    forward: Act,
    backward: Act,
}

impl Acting {
    /// On the way there only.
    fn forward(act: impl Fn(u64) -> Result<(), OpError> + Send + Sync + 'static) -> Self {
        Self { on_gpu: false, forward: Box::new(act), backward: Box::new(|_| Ok(())) }
    }

    /// On the way back only.
    fn backward(act: impl Fn(u64) -> Result<(), OpError> + Send + Sync + 'static) -> Self {
        Self { on_gpu: false, forward: Box::new(|_| Ok(())), backward: Box::new(act) }
    }

    /// The same, with its work on the GPU in a plan that has one.
    fn on_gpu(self) -> Self {
        Self { on_gpu: true, ..self }
    }
}

impl Operator for Acting {
    operator!(Acting, "acting", (Matrix,): ["x"] -> (Matrix,): ["y"], true);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn gpu_cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        self.on_gpu.then(Cost::default)
    }
    fn forward(&self, ctx: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        (self.forward)(ctx.step)?;
        Ok(((x,), ()))
    }
    fn backward(
        &self,
        ctx: &Ctx<'_>,
        _: Wanted<'_>,
        (): (),
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        (self.backward)(ctx.step)?;
        Ok((g,))
    }
}

/// A pass that is not held would begin meanwhile: its lane is free.
fn let_others_begin() {
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn on_a_gpu_data_are_made_one_step_further_and_passes_begin_when_those_of_the_step_are_over() {
    let begun = Begun::default();
    let tells = |node: &'static str| {
        let begun = begun.clone();
        Acting::forward(move |step| {
            begun.tell(node, step);
            Ok(())
        })
    };
    let in_first = |act: fn(&Begun) -> Result<(), OpError>| {
        let begun = begun.clone();
        move |step| if step == 0 { act(&begun) } else { Ok(()) }
    };
    let gradient = in_first(|begun| {
        begun.wait_for("pass", 1)?;
        begun.wait_for("data", 2)?;
        let_others_begin();
        match begun.has("pass", 2) || begun.has("data", 3) {
            true => Err(OpError::new("too much was made ahead")),
            false => Ok(()),
        }
    });
    // A pass of the step itself after its gradient: no other has begun meanwhile.
    let own = in_first(|begun| {
        let_others_begin();
        match begun.has("pass", 2) {
            true => Err(OpError::new("a pass of a later step has begun beside it")),
            false => Ok(()),
        }
    });
    let after = in_first(|begun| begun.wait_for("pass", 2));

    let mut g = Graph::new("ahead");
    let (x,) = g.add("x", Data(2, 2), ());
    let (data,) = g.add("data", tells("data"), (x,));
    let (pass,) = g.add("pass", tells("pass").on_gpu(), (data,));
    let (w,) = g.add("w", Weights(2, 2), ());
    let (waits,) = g.add("waits", Acting::backward(gradient), (w,));
    let miss = g.op("miss", (waits, pass), |a, b| a - b);
    let loss = mean_square(&mut g, "loss", miss);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    let (next,) = g.add("own", Acting::forward(own).on_gpu(), (next,));
    let (next,) = g.add("after", Acting::forward(after), (next,));
    g.set_loss(loss);
    g.carry(w, next);
    let gpu = Some(GpuOptions { number: 0, rates: None, driver: 0 });
    let plan = Plan::new(&g, &PlanOptions { gpu, ..options(2, 1) }).unwrap();
    let options = RunOptions { last: Some(3), ..RunOptions::new(7, cpu()) };
    let mut runner = Runner::new(Arc::new(g), plan, options).unwrap();
    for _ in 0..4 {
        runner.step().unwrap();
    }
    assert!(!begun.has("data", 4), "nothing runs beyond the last step");
}
