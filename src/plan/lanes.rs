//! List scheduling: whenever a lane is free, it takes the most urgent task that is ready. A task is as urgent as the
//! longest path behind it is long; work for later steps is less urgent than anything of this one.
//!
//! A lane is a thread that asks for work; the work is done at a place. Of `k` tasks at one place each has the `k`th part of it, so
//! that two lanes of the processor are no faster than one. Tasks of two places do not slow each other down.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use super::{Phase, Place, PlanOptions, PlannedTask, TaskId};

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

/// What seconds of a task are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Those of a place that it has for itself: at a place that others use, too, it takes longer.
    Planned,
    /// Those of a run, in which it had shared its place already.
    Measured,
}

/// Choose lane, start and end of every task.
pub(super) fn schedule(tasks: &mut [PlannedTask], options: &PlanOptions, sharing: Sharing) -> Schedule {
    let critical = urgencies(tasks, options);
    let mut simulation = Simulation::new(tasks, options, sharing);
    loop {
        simulation.start_all(tasks);
        if !simulation.finish_next(tasks) {
            break;
        }
    }
    Schedule { order: simulation.order, critical, seconds: simulation.time }
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

/// A task that has begun.
struct Running {
    id: TaskId,
    lane: usize,
    place: Place,
    /// Seconds that it would still take if it had its place for itself.
    left: f64,
}

struct Simulation<'a> {
    options: &'a PlanOptions,
    sharing: Sharing,
    /// Seconds since the start of the step.
    time: f64,
    /// By task: how many it still waits for.
    open: Vec<usize>,
    /// Most urgent first; of two alike, the first.
    ready: BinaryHeap<(Seconds, Reverse<TaskId>)>,
    /// The same for work of later steps.
    later: BinaryHeap<(Seconds, Reverse<TaskId>)>,
    running: Vec<Running>,
    free: Vec<bool>,
    order: Vec<TaskId>,
}

impl<'a> Simulation<'a> {
    fn new(tasks: &[PlannedTask], options: &'a PlanOptions, sharing: Sharing) -> Self {
        let waits =
            |id: TaskId| tasks[id].after.iter().filter(|&&a| within_step(tasks, a, id, options)).count();
        let open: Vec<usize> = (0..tasks.len()).map(waits).collect();
        let mut simulation = Self {
            options,
            sharing,
            time: 0.0,
            open,
            ready: BinaryHeap::new(),
            later: BinaryHeap::new(),
            running: Vec::new(),
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

    fn start_all(&mut self, tasks: &mut [PlannedTask]) {
        while self.free.contains(&true) {
            let Some((_, Reverse(id))) = self.ready.pop() else { break };
            self.start(tasks, id, 0);
        }
        // The first of several lanes takes no work of later steps: the longest path of this one never waits for it.
        let first = usize::from(self.options.lanes > 1);
        while self.free[first..].contains(&true) {
            let Some((_, Reverse(id))) = self.later.pop() else { break };
            self.start(tasks, id, first);
        }
    }

    /// On the lane of the task that finished last before it, if that is free: what it made is still in that core's
    /// cache. Else on the first free lane from `first`.
    fn start(&mut self, tasks: &mut [PlannedTask], id: TaskId, first: usize) {
        let producers = tasks[id].after.iter().filter(|&&a| within_step(tasks, a, id, self.options));
        let near = producers.max_by_key(|&&a| Seconds(tasks[a].end)).map(|&a| tasks[a].lane);
        let near = near.filter(|&lane| lane >= first && self.free[lane]);
        let any = || (first..self.free.len()).find(|&lane| self.free[lane]);
        let lane = near.or_else(any).expect("called while a lane is free");
        self.free[lane] = false;
        self.order.push(id);
        let task = &mut tasks[id];
        (task.lane, task.start) = (lane, self.time);
        self.running.push(Running { id, lane, place: task.place, left: task.seconds });
    }

    /// How many tasks share a place.
    fn sharers(&self, place: Place) -> f64 {
        match self.sharing {
            Sharing::Planned => self.running.iter().filter(|r| r.place == place).count() as f64,
            Sharing::Measured => 1.0,
        }
    }

    /// Go on until the next task ends, the one on the first lane of several; false where nothing runs.
    fn finish_next(&mut self, tasks: &mut [PlannedTask]) -> bool {
        let places = [Place::Cpu, self.options.networks()].map(|place| (place, self.sharers(place)));
        let slowness = |place| places.iter().find(|(p, _)| *p == place).map_or(1.0, |(_, sharers)| *sharers);
        let wait = |r: &Running| r.left * slowness(r.place);
        let order = |r: &Running| (Seconds(wait(r)), r.lane);
        let Some(next) = (0..self.running.len()).min_by_key(|&i| order(&self.running[i])) else {
            return false;
        };
        let passed = wait(&self.running[next]);
        self.running.iter_mut().for_each(|r| r.left = (r.left - passed / slowness(r.place)).max(0.0));
        self.time += passed;
        let Running { id, lane, .. } = self.running.swap_remove(next);
        tasks[id].end = self.time;
        self.free[lane] = true;
        for &next in &tasks[id].before {
            if within_step(tasks, id, next, self.options) {
                self.open[next] -= 1;
                if self.open[next] == 0 {
                    self.is_ready(tasks, next);
                }
            }
        }
        true
    }
}
