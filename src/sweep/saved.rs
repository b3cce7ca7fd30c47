//! What a run of all variants at once costs, against a run of each by itself.

use std::collections::HashMap;

use crate::{
    graph::Graph,
    plan::{Place, Plan, due},
};

/// What a run costs by its plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that the host holds at the fullest moment.
    pub peak: usize,
    /// The same of a GPU, if networks run on one.
    pub gpu_peak: Option<usize>,
    /// Seconds, where the plan has them.
    pub seconds: Option<f64>,
}

/// Both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Saved {
    /// All variants at once.
    pub together: Cost,
    /// All variants one after the other: operations and seconds of all, and the largest peak of one.
    pub apart: Cost,
}

impl Saved {
    /// Operations together as a share of those apart: as far as shared work can shorten the time.
    pub fn ratio(&self) -> f64 {
        if self.apart.flops > 0.0 { self.together.flops / self.apart.flops } else { 1.0 }
    }
}

/// Steps that are looked at, at most; the rest of a run is taken to be like its beginning.
const LOOKED_AT: u64 = 1000;

impl Cost {
    /// Of a run of so many steps, with what is due at some of them only.
    pub fn of(graph: &Graph, plan: &Plan, steps: u64) -> Self {
        let looked_at = steps.clamp(1, LOOKED_AT);
        // Few different sets of nodes are due.
        let mut known: HashMap<Vec<bool>, (f64, Option<f64>)> = HashMap::new();
        let (mut flops_of_all, mut seconds) = (0.0, Some(0.0));
        for step in 0..looked_at {
            let due = due(graph, step, []);
            let (flops, time) =
                *known.entry(due).or_insert_with_key(|due| (flops(plan, due), plan.seconds_of(due)));
            flops_of_all += flops;
            seconds = seconds.zip(time).map(|(all, one)| all + one);
        }
        let share = steps as f64 / looked_at as f64;
        let gpu = plan.memory_by_place().iter().find(|(place, _)| *place != Place::Cpu);
        Self {
            flops: flops_of_all * share,
            peak: plan.memory().peak,
            gpu_peak: gpu.map(|(_, memory)| memory.peak),
            seconds: seconds.map(|s| s * share),
        }
    }
}

/// Floating-point operations of a step in which these nodes run, by index.
pub fn flops(plan: &Plan, due: &[bool]) -> f64 {
    plan.tasks().iter().filter(|t| due[t.task.node().index()]).map(|t| t.flops).sum()
}
