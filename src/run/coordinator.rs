//! The thread that decides what runs next. It alone holds values and cells, so nothing here is locked.
//!
//! A window of steps is in flight: the step that was asked for, and up to `ahead` later ones, of which only the tasks
//! run that no cell reaches. Of all tasks that are ready on a free lane, the earliest step's most urgent one starts.
//!
//! Where passes run on a GPU the host makes the data of one step more. That step's passes begin once the gradient of the step that was asked
//! for is there, and with it what its own passes give: between two steps the host is at work, and the GPU would have nothing to do.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    sync::Arc,
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender};
use prefgraph_ops::{Value, port::take, ports::Effects};

use super::{
    RunError, StepOutput, TaskTime,
    lanes::{Shared, number},
    message::{Answer, Message},
    values::{Reads, Values, open_tasks},
    work::{Done, Job, Product, Work},
};
use crate::{
    graph::{Endpoint, NodeId},
    plan::{Phase, Place, Plan, Seconds, Task, TaskId, due},
};

/// A step in flight.
struct InFlight {
    step: u64,
    open: Vec<usize>,
    unfinished: usize,
    running: usize,
    /// Of those that run, the ones on a GPU.
    on_gpu: usize,
    values: Values,
    /// Ready, but not to start before the step is asked for.
    held: Vec<TaskId>,
    /// Ready, but passes of the step that the window has only data of.
    held_passes: Vec<TaskId>,
    /// Tasks that may run ahead and have not finished.
    ahead_left: usize,
    /// Tasks before which no pass of the extra step begins, and that have not finished.
    first_left: usize,
    /// Other tasks that are ready or running.
    active: usize,
    failed: Option<(TaskId, RunError)>,
    times: Vec<TaskTime>,
}

struct Request {
    answer: Sender<Answer>,
    since: Instant,
    /// Since when nothing but run-ahead tasks of the host has been holding the step up.
    waiting: Option<Instant>,
    waited: f64,
}

/// Earliest step, then most urgent, then first in the plan.
type Ready = Reverse<(u64, Reverse<Seconds>, TaskId)>;

pub(super) struct Coordinator {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    reads: Reads,
    kept: BTreeSet<Endpoint>,
    cells: BTreeMap<Endpoint, Value>,
    window: VecDeque<InFlight>,
    next: u64,
    last: Option<u64>,
    /// The last step of which passes may run ahead.
    passes_until: u64,
    request: Option<Request>,
    ready: Vec<BinaryHeap<Ready>>,
    idle: Vec<bool>,
    lanes: Vec<Sender<Work>>,
    /// Counts restarts; what was started before one is ignored when it comes back.
    epoch: u64,
    began: Instant,
    timing: Timing,
}

/// Measured seconds, until there are enough to plan by.
struct Timing {
    steps_left: u64,
    steps: u32,
    /// Of all steps together.
    seconds: BTreeMap<Task, f64>,
    warm: bool,
}

impl Coordinator {
    pub fn new(shared: Arc<Shared>, lanes: Vec<Sender<Work>>, last: Option<u64>, replan_after: u64) -> Self {
        let plan = shared.plan.clone();
        let kept = BTreeSet::new();
        let reads = Reads::new(&shared.graph, plan.slots(), &kept);
        Self {
            ready: lanes.iter().map(|_| BinaryHeap::new()).collect(),
            idle: vec![true; lanes.len()],
            shared,
            plan,
            reads,
            kept,
            cells: BTreeMap::new(),
            window: VecDeque::new(),
            next: 0,
            last,
            passes_until: 0,
            request: None,
            lanes,
            epoch: 0,
            began: Instant::now(),
            timing: Timing { steps_left: replan_after, steps: 0, seconds: BTreeMap::new(), warm: false },
        }
    }

    pub fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Step(answer) => self.begin(answer),
                Message::Done(done) => self.done(done),
                Message::Last(last) => self.last = last,
                Message::Keep(at) => {
                    self.kept.insert(at);
                    self.reads = Reads::new(&self.shared.graph, self.plan.slots(), &self.kept);
                    self.restart();
                }
                Message::Cells(answer) => {
                    // The runner may be gone; then nobody is left to be told.
                    let _ = answer.send(self.cells.clone());
                }
                Message::Restore(step, cells) => {
                    self.restart();
                    (self.next, self.cells) = (step, cells);
                }
                Message::Stop => return,
            }
            self.finish();
            self.let_passes_begin();
            self.dispatch();
            self.watch();
        }
    }

    /// Forget all steps in flight.
    fn restart(&mut self) {
        self.epoch += 1;
        self.window.clear();
        self.ready.iter_mut().for_each(BinaryHeap::clear);
    }

    fn begin(&mut self, answer: Sender<Answer>) {
        self.request = Some(Request { answer, since: Instant::now(), waiting: None, waited: 0.0 });
        self.passes_until = self.next + self.plan.options().ahead as u64;
        let mut end = self.next + self.plan.options().made_ahead() as u64;
        if let Some(last) = self.last {
            end = end.min(last).max(self.next);
        }
        // Ready before those of later steps are even admitted.
        if let Some(front) = self.window.front_mut() {
            for id in std::mem::take(&mut front.held) {
                self.is_ready(0, id);
            }
        }
        while self.window.back().map_or(self.next, |w| w.step + 1) <= end {
            let step = self.window.back().map_or(self.next, |w| w.step + 1);
            self.admit(step);
        }
        self.release_passes();
    }

    /// Those of one step more, where the gradient of the step that was asked for is there and its own passes are over.
    fn let_passes_begin(&mut self) {
        let Some(front) = self.window.front().filter(|_| self.request.is_some()) else { return };
        if front.first_left == 0 && front.ahead_left == 0 && front.failed.is_none() {
            self.passes_until = front.step + self.plan.options().made_ahead() as u64;
            self.release_passes();
        }
    }

    fn release_passes(&mut self) {
        for index in 0..self.window.len() {
            if self.window[index].step <= self.passes_until {
                for id in std::mem::take(&mut self.window[index].held_passes) {
                    self.is_ready(index, id);
                }
            }
        }
    }

    fn admit(&mut self, step: u64) {
        let (graph, plan) = (self.shared.graph.clone(), self.plan.clone());
        let mut open = open_tasks(&plan);
        let mut values = Values::new(&graph, &self.reads);
        let mut runs = vec![true; plan.tasks().len()];
        let due = due(&graph, step, self.kept.iter().copied());
        for (id, _) in graph.nodes().filter(|(id, _)| !due[id.index()]) {
            // The forward of a node is the task of its number. It waits for what never comes, and reads nothing.
            (runs[id.index()], open[id.index()]) = (false, usize::MAX);
            values.release(&graph, id, plan.slots());
        }
        let running = plan.tasks().iter().zip(&runs).filter(|(_, runs)| **runs).map(|(task, _)| task);
        let first: Vec<TaskId> = (0..open.len()).filter(|&id| open[id] == 0).collect();
        self.window.push_back(InFlight {
            step,
            open,
            unfinished: running.clone().count(),
            running: 0,
            on_gpu: 0,
            values,
            held: Vec::new(),
            held_passes: Vec::new(),
            ahead_left: running.clone().filter(|t| t.phase == Phase::Ahead).count(),
            first_left: running.filter(|t| t.comes_first()).count(),
            active: 0,
            failed: None,
            times: Vec::new(),
        });
        let index = self.window.len() - 1;
        for id in first {
            self.is_ready(index, id);
        }
    }

    /// A task waits for no other: queue it, hold it back until its step is asked for, or be done with it at once.
    fn is_ready(&mut self, index: usize, id: TaskId) {
        let planned = &self.plan.tasks()[id];
        let asked = index == 0 && self.request.is_some();
        let in_flight = &mut self.window[index];
        if planned.phase != Phase::Ahead {
            if !asked {
                in_flight.held.push(id);
                return;
            }
            in_flight.active += 1;
        } else if planned.place != Place::Cpu && in_flight.step > self.passes_until {
            in_flight.held_passes.push(id);
            return;
        }
        if let Task::Forward(node) = planned.task {
            let outputs = (0..self.shared.graph[node].outputs.len()).map(|p| Endpoint::value(node, p));
            let held: Option<Vec<Value>> = outputs.map(|at| self.cells.get(&at).cloned()).collect();
            if let Some(outputs) = held.filter(|_| self.plan.is_cell(node)) {
                self.succeeded(index, id, Product::Forward { outputs, saved: None });
                return;
            }
        }
        let (lane, urgency) = (planned.lane, planned.urgency);
        self.ready[lane].push(Reverse((in_flight.step, Reverse(Seconds(urgency)), id)));
    }

    /// Give every idle lane the best of what is ready for it.
    fn dispatch(&mut self) {
        for lane in 0..self.lanes.len() {
            while self.idle[lane] {
                let Some(Reverse((step, _, id))) = self.ready[lane].pop() else { break };
                let index = self.index(step);
                if self.window[index].failed.is_some() {
                    continue;
                }
                let planned = &self.plan.tasks()[id];
                let (task, on_gpu) = (planned.task, planned.place != Place::Cpu);
                let job = self.job(index, task);
                self.window[index].running += 1;
                self.window[index].on_gpu += usize::from(on_gpu);
                self.idle[lane] = false;
                let work = Work { epoch: self.epoch, step, id, task, job };
                self.lanes[lane].send(work).expect("a lane lives until its sender is dropped");
            }
        }
    }

    fn index(&self, step: u64) -> usize {
        let front = self.window.front().expect("asked about a step in flight");
        (step - front.step) as usize
    }

    fn job(&mut self, index: usize, task: Task) -> Job {
        let (graph, slots) = (&self.shared.graph, self.plan.slots());
        let values = &mut self.window[index].values;
        match task {
            Task::Forward(node) => {
                let read =
                    |wires: &Vec<Endpoint>| wires.iter().map(|&from| values.get(from, slots)).collect();
                Job::Forward(graph[node].wires.iter().map(read).collect())
            }
            Task::Backward(node) => {
                let mut came: Vec<Vec<Value>> = vec![Vec::new(); graph[node].outputs.len()];
                for (edge, _, wire) in graph.edges_from(node) {
                    came[wire.port].extend(values.take_travelling(edge));
                }
                Job::Backward(values.take_saved(node), came)
            }
        }
    }

    fn done(&mut self, done: Done) {
        self.idle[done.lane] = true;
        if done.epoch != self.epoch {
            return;
        }
        let index = self.index(done.step);
        let planned = &self.plan.tasks()[done.id];
        let in_flight = &mut self.window[index];
        in_flight.running -= 1;
        in_flight.on_gpu -= usize::from(planned.place != Place::Cpu);
        in_flight.times.push(TaskTime {
            task: planned.task,
            lane: done.lane,
            start: done.started.duration_since(self.began).as_secs_f64(),
            seconds: done.seconds,
        });
        match done.result {
            Ok(product) => self.succeeded(index, done.id, product),
            Err(source) => {
                let node = &self.shared.graph[planned.task.node()];
                let error = RunError::Node {
                    step: done.step,
                    direction: planned.task.direction(),
                    node: node.id.clone(),
                    op: node.op.name().to_owned(),
                    source,
                };
                // Of several that failed beside each other, the first of the plan.
                if in_flight.failed.as_ref().is_none_or(|(first, _)| done.id < *first) {
                    in_flight.failed = Some((done.id, error));
                }
            }
        }
    }

    fn succeeded(&mut self, index: usize, id: TaskId, product: Product) {
        let plan = self.plan.clone();
        let graph = &self.shared.graph;
        let planned = &plan.tasks()[id];
        let node: NodeId = planned.task.node();
        let in_flight = &mut self.window[index];
        match product {
            Product::Forward { outputs, saved } => {
                in_flight.values.put_outputs(node, outputs, saved, plan.slots());
                in_flight.values.release(graph, node, plan.slots());
            }
            Product::Backward { sums, to_inputs } => {
                in_flight.values.put_cotangents(graph, &plan, node, sums, to_inputs);
            }
        }
        in_flight.unfinished -= 1;
        in_flight.first_left -= usize::from(planned.comes_first());
        if planned.phase == Phase::Ahead {
            in_flight.ahead_left -= 1;
        } else {
            in_flight.active -= 1;
        }
        for &next in &planned.before {
            let in_flight = &mut self.window[index];
            in_flight.open[next] -= 1;
            if in_flight.open[next] == 0 {
                self.is_ready(index, next);
            }
        }
    }

    /// Answer the request if its step has come to an end.
    fn finish(&mut self) {
        if self.request.is_none() || self.window.is_empty() {
            return;
        }
        let front = &mut self.window[0];
        if front.running > 0 && front.failed.is_some() || front.unfinished > 0 && front.failed.is_none() {
            return;
        }
        let request = self.request.take().expect("looked at above");
        let answer = match front.failed.take() {
            Some((_, error)) => {
                self.restart();
                Err(error)
            }
            None => {
                let output = self.output(&request);
                let enough = self.measure(&output.times);
                Ok((output, enough.then(|| self.plan_again())))
            }
        };
        // The runner may be gone; then nobody is left to be told.
        let _ = request.answer.send(answer);
    }

    fn output(&mut self, request: &Request) -> StepOutput {
        let (graph, slots) = (self.shared.graph.clone(), self.plan.slots());
        let mut front = self.window.pop_front().expect("a step has ended");
        let value = |at: Endpoint| front.values.get(at, slots);
        let next = graph.carries().iter().filter_map(|carry| Some((carry.cell, value(carry.next)?)));
        self.cells = next.collect();
        let effects = self.reads.effects.iter().filter_map(|&at| Some((at.node, value(at)?)));
        let effects = effects.flat_map(|(node, effects)| {
            let id = graph[node].id.clone();
            take::<Effects>(&effects).0.into_iter().map(move |effect| (id.clone(), effect))
        });
        front.times.sort_by(|a, b| a.start.total_cmp(&b.start));
        let losses: Vec<f32> = graph.losses().iter().filter_map(|&at| Some(number(&value(at)?))).collect();
        let output = StepOutput {
            step: front.step,
            loss: losses.first().copied(),
            losses,
            effects: effects.collect(),
            times: std::mem::take(&mut front.times),
            seconds: request.since.elapsed().as_secs_f64(),
            data_seconds: request.waited,
            kept: self.kept.iter().filter_map(|&at| Some((at, value(at)?))).collect(),
        };
        self.next = front.step + 1;
        output
    }

    /// Keep count of the time in which only run-ahead tasks of the host hold the step up. One that works on the GPU brings no data: it is a pass
    /// that gave way to those of the steps before.
    fn watch(&mut self) {
        let Some(request) = &mut self.request else { return };
        let front = self.window.front();
        let waits = front.is_some_and(|f| f.active == 0 && f.ahead_left > 0 && f.on_gpu == 0);
        match (request.waiting, waits) {
            (None, true) => request.waiting = Some(Instant::now()),
            (Some(since), false) => {
                request.waited += since.elapsed().as_secs_f64();
                request.waiting = None;
            }
            _ => {}
        }
    }

    /// Note what the tasks of a step took, and say whether that was enough to plan by.
    fn measure(&mut self, times: &[TaskTime]) -> bool {
        // The first step of a run opens files and touches memory for the first time.
        if !std::mem::replace(&mut self.timing.warm, true) || self.timing.steps_left == 0 {
            return false;
        }
        for time in times {
            *self.timing.seconds.entry(time.task).or_default() += time.seconds;
        }
        self.timing.steps += 1;
        self.timing.steps_left -= 1;
        self.timing.steps_left == 0
    }

    /// Plan by what the steps took. Results do not change: who runs a task is all that does.
    fn plan_again(&mut self) -> Arc<Plan> {
        // What is due every so many steps only, and was not, takes no time: a plan is for the steps between.
        let sum = |task: Task| self.timing.seconds.get(&task).copied().unwrap_or_default();
        let means = self.plan.tasks().iter().map(|t| (t.task, sum(t.task) / f64::from(self.timing.steps)));
        let plan = Arc::new(self.plan.with_times(&means.collect()));
        let queued: Vec<Ready> = self.ready.iter_mut().flat_map(BinaryHeap::drain).collect();
        self.plan = plan.clone();
        for Reverse((step, _, id)) in queued {
            let planned = &plan.tasks()[id];
            self.ready[planned.lane].push(Reverse((step, Reverse(Seconds(planned.urgency)), id)));
        }
        plan
    }
}
