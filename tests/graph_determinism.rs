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

/// Tells when it runs, and works on the GPU where it is said to.
struct Telling {
    name: &'static str,
    on_gpu: bool,
    begun: Begun,
}
impl Operator for Telling {
    operator!(Telling, "telling", (Matrix,): ["x"] -> (Matrix,): ["y"], false);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn gpu_cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        self.on_gpu.then(Cost::default)
    }
    fn forward(&self, ctx: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        self.begun.tell(self.name, ctx.step);
        Ok(((x,), ()))
    }
}

/// Its backward, in the first step, waits until the data of step 2 are there, and finds that no pass of that step has begun.
struct Waits(Begun);
impl Operator for Waits {
    operator!(Waits, "waits", (Matrix,): ["x"] -> (Matrix,): ["y"], true);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn forward(&self, _: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        Ok(((x,), ()))
    }
    fn backward(
        &self,
        ctx: &Ctx<'_>,
        _: Wanted<'_>,
        (): (),
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        if ctx.step == 0 {
            self.0.wait_for("pass", 1)?;
            self.0.wait_for("data", 2)?;
            // A pass that is not held would begin now: its lane is free.
            std::thread::sleep(Duration::from_millis(300));
            if self.0.has("pass", 2) || self.0.has("data", 3) {
                return Err(OpError::new("too much was made ahead"));
            }
        }
        Ok((g,))
    }
}

/// A pass of the step itself after its gradient: no other has begun meanwhile.
struct Own(Begun);
impl Operator for Own {
    operator!(Own, "own", (Matrix,): ["x"] -> (Matrix,): ["y"], false);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn gpu_cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(Cost::default())
    }
    fn forward(&self, ctx: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        if ctx.step == 0 {
            std::thread::sleep(Duration::from_millis(300));
            if self.0.has("pass", 2) {
                return Err(OpError::new("a pass of a later step has begun beside it"));
            }
        }
        Ok(((x,), ()))
    }
}

/// What comes after the passes: in the first step it waits until the pass of step 2 has begun.
struct After(Begun);
impl Operator for After {
    operator!(After, "after", (Matrix,): ["x"] -> (Matrix,): ["y"], false);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn forward(&self, ctx: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        if ctx.step == 0 {
            self.0.wait_for("pass", 2)?;
        }
        Ok(((x,), ()))
    }
}

#[test]
fn on_a_gpu_data_are_made_one_step_further_and_passes_begin_when_those_of_the_step_are_over() {
    let begun = Begun::default();
    let mut g = Graph::new("ahead");
    let (x,) = g.add("x", Data(2, 2), ());
    let (data,) = g.add("data", Telling { name: "data", on_gpu: false, begun: begun.clone() }, (x,));
    let (pass,) = g.add("pass", Telling { name: "pass", on_gpu: true, begun: begun.clone() }, (data,));
    let (w,) = g.add("w", Weights(2, 2), ());
    let (waits,) = g.add("waits", Waits(begun.clone()), (w,));
    let miss = g.op("miss", (waits, pass), |a, b| a - b);
    let loss = mean_square(&mut g, "loss", miss);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    let (next,) = g.add("own", Own(begun.clone()), (next,));
    let (next,) = g.add("after", After(begun.clone()), (next,));
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
