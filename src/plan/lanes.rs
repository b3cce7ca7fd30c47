//! List scheduling: whenever a lane is free, it takes the most urgent task that is ready. A task is as urgent as the
//! longest path behind it is long; work for later steps is less urgent than anything of this one.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use super::{Phase, PlanOptions, PlannedTask, TaskId};

/// What a schedule is besides the lane and the start of every task.
pub(super) struct Schedule {
    /// By start.
    pub order: Vec<TaskId>,
    /// Longest path, in seconds.
    pub critical: f64,
    /// Planned seconds of a step.
    pub seconds: f64,
}

/// Seconds that can be compared: a plan holds no NaN.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Seconds(pub f64);

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Choose lane and start of every task.
pub(super) fn schedule(tasks: &mut [PlannedTask], options: &PlanOptions) -> Schedule {
    let critical = urgencies(tasks, options);
    let mut simulation = Simulation::new(tasks, options);
    let mut time = 0.0;
    loop {
        simulation.start_all(tasks, time);
        let Some(Reverse((Seconds(end), lane, id))) = simulation.running.pop() else { break };
        time = end;
        simulation.finish(tasks, lane, id);
    }
    Schedule { order: simulation.order, critical, seconds: time }
}

/// Is the wait of one task for another a wait within a step? What runs ahead was finished a step before.
fn within_step(tasks: &[PlannedTask], from: TaskId, to: TaskId, options: &PlanOptions) -> bool {
    options.ahead == 0 || (tasks[from].phase == Phase::Ahead) == (tasks[to].phase == Phase::Ahead)
}

/// The longest path behind every task; returns the longest of a step.
fn urgencies(tasks: &mut [PlannedTask], options: &PlanOptions) -> f64 {
    let mut open: Vec<usize> = tasks.iter().map(|t| t.before.len()).collect();
    let mut ready: Vec<TaskId> = (0..tasks.len()).filter(|&id| open[id] == 0).collect();
    let mut critical: f64 = 0.0;
    while let Some(id) = ready.pop() {
        let behind = tasks[id].before.iter().map(|&b| tasks[b].urgency).fold(0.0, f64::max);
        tasks[id].urgency = tasks[id].seconds + behind;
        if options.ahead == 0 || tasks[id].phase != Phase::Ahead {
            critical = critical.max(tasks[id].urgency);
        }
        for index in 0..tasks[id].after.len() {
            let before = tasks[id].after[index];
            open[before] -= 1;
            if open[before] == 0 {
                ready.push(before);
            }
        }
    }
    critical
}

struct Simulation<'a> {
    options: &'a PlanOptions,
    /// By task: how many it still waits for.
    open: Vec<usize>,
    /// Most urgent first; of two alike, the first.
    ready: BinaryHeap<(Seconds, Reverse<TaskId>)>,
    /// The same for work of later steps.
    later: BinaryHeap<(Seconds, Reverse<TaskId>)>,
    running: BinaryHeap<Reverse<(Seconds, usize, TaskId)>>,
    free: Vec<bool>,
    order: Vec<TaskId>,
}

impl<'a> Simulation<'a> {
    fn new(tasks: &[PlannedTask], options: &'a PlanOptions) -> Self {
        let waits =
            |id: TaskId| tasks[id].after.iter().filter(|&&a| within_step(tasks, a, id, options)).count();
        let open: Vec<usize> = (0..tasks.len()).map(waits).collect();
        let mut simulation = Self {
            options,
            open,
            ready: BinaryHeap::new(),
            later: BinaryHeap::new(),
            running: BinaryHeap::new(),
            free: vec![true; options.lanes],
            order: Vec::with_capacity(tasks.len()),
        };
        for id in (0..tasks.len()).filter(|&id| simulation.open[id] == 0).collect::<Vec<_>>() {
            simulation.is_ready(tasks, id);
        }
        simulation
    }

    fn is_ready(&mut self, tasks: &[PlannedTask], id: TaskId) {
        let later = self.options.ahead > 0 && tasks[id].phase == Phase::Ahead;
        let heap = if later { &mut self.later } else { &mut self.ready };
        heap.push((Seconds(tasks[id].urgency), Reverse(id)));
    }

    fn start_all(&mut self, tasks: &mut [PlannedTask], time: f64) {
        while self.free.contains(&true) {
            let Some((_, Reverse(id))) = self.ready.pop() else { break };
            self.start(tasks, time, id, 0);
        }
        // The first of several lanes takes no work of later steps: the longest path of this one never waits for it.
        let first = usize::from(self.options.lanes > 1);
        while self.free[first..].contains(&true) {
            let Some((_, Reverse(id))) = self.later.pop() else { break };
            self.start(tasks, time, id, first);
        }
    }

    /// On the lane of the task that finished last before it, if that is free: what it made is still in that core's
    /// cache. Else on the first free lane from `first`.
    fn start(&mut self, tasks: &mut [PlannedTask], time: f64, id: TaskId, first: usize) {
        let end = |t: &PlannedTask| Seconds(t.start + t.seconds);
        let producers = tasks[id].after.iter().filter(|&&a| within_step(tasks, a, id, self.options));
        let near = producers.max_by_key(|&&a| end(&tasks[a])).map(|&a| tasks[a].lane);
        let near = near.filter(|&lane| lane >= first && self.free[lane]);
        let any = || (first..self.free.len()).find(|&lane| self.free[lane]);
        let lane = near.or_else(any).expect("called while a lane is free");
        self.free[lane] = false;
        self.order.push(id);
        (tasks[id].lane, tasks[id].start) = (lane, time);
        self.running.push(Reverse((end(&tasks[id]), lane, id)));
    }

    fn finish(&mut self, tasks: &[PlannedTask], lane: usize, id: TaskId) {
        self.free[lane] = true;
        for &next in &tasks[id].before {
            if within_step(tasks, id, next, self.options) {
                self.open[next] -= 1;
                if self.open[next] == 0 {
                    self.is_ready(tasks, next);
                }
            }
        }
    }
}
