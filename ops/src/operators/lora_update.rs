//! `lora-update`: AdamW on an adapter, with schedules, clipping and accumulation.

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, AdapterGrad,
    optim::{AdamW, OptimizerState},
};

use crate::{
    choices,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    port::Grad,
    ports::{AdapterShape, MetricDoc, Metrics, MetricsShape, Moments, MomentsShape},
    resume::{Restart, Restated},
    settings,
};

choices! {
    /// How the learning rate goes on after the warm-up.
    pub enum Schedule {
        /// It stays.
        Constant = "constant",
        /// A straight line to zero at the end of the run.
        Linear = "linear",
        /// Half a cosine to zero at the end of the run.
        Cosine = "cosine",
    }
}

settings! {
    /// Settings of [`LoraUpdate`].
    pub struct LoraUpdateSettings {
        /// Learning rate after the warm-up.
        pub lr: f64 = 1e-5,
        /// How it goes on.
        pub schedule: Schedule = Schedule::Constant,
        /// Updates over which the rate rises from lr / warmup to lr.
        pub warmup: u64 = 0,
        /// Steps of the whole run, each one micro-batch: after `steps / accumulate` updates `linear` and `cosine` end. 0 means unknown, which only `constant` accepts.
        pub steps: u64 = 0,
        /// Decays of the first and second moment.
        pub betas: [f64; 2] = [0.9, 0.999],
        /// Added to the root of the second moment.
        pub eps: f64 = 1e-8,
        /// Decoupled weight decay, of A and B alike.
        pub weight_decay: f64 = 0.01,
        /// Gradients with a larger norm are scaled to it; 0 means none are.
        pub max_grad_norm: f64 = 1.0,
        /// Micro-batches of one update: gradients are summed and divided by their number once.
        pub accumulate: u64 = 1,
    }
}

/// AdamW as in PyTorch, after clipping, at every `accumulate`-th micro-batch.
pub struct LoraUpdate(LoraUpdateSettings);

impl LoraUpdate {
    /// Updates of the whole run.
    fn updates(&self) -> u64 {
        self.0.steps / self.0.accumulate.max(1)
    }

    /// The learning rate of an update, counted from 0.
    fn rate(&self, update: u64) -> f64 {
        let s = &self.0;
        if update < s.warmup {
            return s.lr * (update + 1) as f64 / s.warmup as f64;
        }
        let span = self.updates().saturating_sub(s.warmup).max(1) as f64;
        let done = ((update - s.warmup) as f64 / span).min(1.0);
        match s.schedule {
            Schedule::Constant => s.lr,
            Schedule::Linear => s.lr * (1.0 - done),
            Schedule::Cosine => s.lr * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
        }
    }

    /// The sum of the rates of the first `updates` updates: AdamW moves no value much further. In closed form, since a
    /// graph may ask for any number of steps.
    fn travel(&self, updates: u64) -> f64 {
        let s = &self.0;
        let rising = updates.min(s.warmup) as f64;
        let warmup =
            if s.warmup == 0 { 0.0 } else { s.lr * rising * (rising + 1.0) / (2.0 * s.warmup as f64) };
        let span = self.updates().saturating_sub(s.warmup).max(1) as f64;
        let rest = updates.saturating_sub(s.warmup) as f64;
        // Behind its span, a rate that falls stays at zero.
        let falling = rest.min(span);
        warmup
            + match s.schedule {
                Schedule::Constant => s.lr * rest,
                Schedule::Linear => s.lr * (falling - falling * (falling - 1.0) / (2.0 * span)),
                Schedule::Cosine => {
                    let angle = std::f64::consts::PI / span;
                    // The sum of cos(i angle) over i below `falling`.
                    let sum = libm::sin(falling * angle / 2.0) * libm::cos((falling - 1.0) * angle / 2.0)
                        / libm::sin(angle / 2.0);
                    s.lr * 0.5 * (falling + sum)
                }
            }
    }

    fn adamw(&self, lr: f64) -> AdamW {
        let s = &self.0;
        AdamW { lr, beta1: s.betas[0], beta2: s.betas[1], eps: s.eps, weight_decay: s.weight_decay }
    }
}

impl Schedule {
    /// As a graph file states it.
    fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

/// The effect of changed settings on the learning rate.
fn restated(now: &LoraUpdate, old: &LoraUpdateSettings, restart: &Restart<'_>) -> Option<Restated> {
    let new = &now.0;
    let settings: Vec<&'static str> = [
        ("lr", old.lr != new.lr),
        ("schedule", old.schedule != new.schedule),
        ("warmup", old.warmup != new.warmup),
        ("steps", old.steps != new.steps),
        ("accumulate", old.accumulate != new.accumulate),
    ]
    .into_iter()
    .filter_map(|(name, changed)| changed.then_some(name))
    .collect();
    let before = LoraUpdate(old.clone());
    let counted = restart.cells.get("moments").and_then(|moments| moments.counter("updates").ok());
    let update = counted.unwrap_or(restart.step / old.accumulate.max(1));
    let (was, is) = (before.rate(update), now.rate(update));
    // A warm-up may be longer than the schedule.
    let over = |op: &LoraUpdate| update >= op.updates() && op.rate(update) == 0.0 && op.0.lr != 0.0;
    let end =
        |op: &LoraUpdate| format!("the {} schedule ends at update {}", op.0.schedule.name(), op.updates());
    let effect = match (over(&before), over(now)) {
        (_, true) if restart.step < restart.steps => format!(
            "{}, and {update} have been made, so the learning rate stays 0: set `steps` to the steps of the run",
            end(now)
        ),
        // A run that has ended needs no rate.
        (_, true) => return None,
        _ if settings.is_empty() => return None,
        (true, false) if old.schedule == new.schedule => format!(
            "the {} schedule had ended at update {} and now ends at update {}: the learning rate jumps from {was:e} to \
             {is:.3e}",
            old.schedule.name(),
            before.updates(),
            now.updates()
        ),
        _ => {
            let rate = match was == is {
                true => format!("the learning rate stays {is:.3e}"),
                false => format!("the learning rate jumps from {was:.3e} to {is:.3e}"),
            };
            match new.schedule {
                Schedule::Constant => rate,
                _ => format!("{rate}; {}", end(now)),
            }
        }
    };
    // A schedule that ends with the run moves with its end.
    let follows = settings == ["steps"] && (new.steps == restart.steps || new.schedule == Schedule::Constant);
    Some(Restated { settings, effect, follows })
}

impl Operator for LoraUpdate {
    const NAME: &'static str = "lora-update";
    const DOC: &'static str = "Move the adapter by AdamW: clipping, learning-rate schedule, gradient accumulation. \
                               Connect `grad:` of the adapter's cell to `grad`.";
    const IN: [&'static str; 3] = ["adapter", "grad", "moments"];
    const OUT: [&'static str; 3] = ["adapter", "moments", "metrics"];
    const METRICS: &'static [MetricDoc] = &[
        MetricDoc::number(
            "grad_norm",
            "Norm of the gradient before clipping; under accumulation, of the mean of the micro-batches so far.",
        ),
        MetricDoc::number("lr", "Learning rate of the update that this step belongs to."),
        MetricDoc::number("update", "Updates made so far: steps, divided by the micro-batches of an update."),
        MetricDoc::number(
            "travel",
            "Sum of the learning rates of the updates made: about the furthest that a value can have moved.",
        ),
        MetricDoc::number(
            "micro_batch",
            "Under accumulation only: which micro-batch of its update this step is, from 1.",
        ),
        MetricDoc::number("micro_batches", "Under accumulation only: micro-batches of an update."),
    ];
    type Settings = LoraUpdateSettings;
    type In = (Adapter, Grad<Adapter>, Moments);
    type Out = (Adapter, Moments, Metrics);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(s: LoraUpdateSettings) -> Result<Self, OpError> {
        if s.accumulate == 0 {
            return Err(OpError::new("accumulate: at least 1 is needed"));
        }
        if !(s.max_grad_norm >= 0.0 && s.max_grad_norm.is_finite()) {
            return Err(OpError::new(format!(
                "max_grad_norm {}: 0 or a positive number is needed",
                s.max_grad_norm
            )));
        }
        if s.schedule != Schedule::Constant && s.steps == 0 {
            return Err(OpError::new(format!(
                "schedule {:?} ends with the run: `steps` is needed, most simply `steps: \"@run.steps\"`",
                s.schedule
            )));
        }
        let op = Self(s);
        op.adamw(op.0.lr).check()?;
        Ok(op)
    }

    fn shapes(&self, (adapter, grad, moments): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        if grad.0 != adapter || moments.0 != adapter.0 {
            return Err(OpError::new(
                "`adapter`, `grad` and `moments` belong to adapters of different layouts",
            ));
        }
        Ok((AdapterShape(adapter.0.clone()), MomentsShape(adapter.0), MetricsShape))
    }

    fn cost(&self, (adapter, ..): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        let n = adapter.0.len();
        Cost {
            forward_flops: 15.0 * n as f64,
            moved_bytes: 28.0 * n as f64,
            scratch_bytes: n.saturating_mul(size_of::<f32>()),
            ..Cost::default()
        }
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        let s = &self.0;
        let batches = match s.accumulate {
            1 => String::new(),
            n => format!(", {n} micro-batches each"),
        };
        let line = match self.updates() {
            0 if s.steps == 0 => format!(
                "AdamW, lr {:e}: no value moves further than about {:.3e} in 1000 updates{batches}",
                s.lr,
                self.travel(1000)
            ),
            updates => format!(
                "AdamW, lr {:e}: no value moves further than about {:.3e} in {updates} updates{batches}",
                s.lr,
                self.travel(updates)
            ),
        };
        let left = s.steps % s.accumulate;
        let left = (left > 0).then(|| {
            format!(
                "{} steps make {} updates of {} micro-batches, with {left} left over: their gradients stay in the checkpoint \
                 for a longer run and do not reach the adapter; --steps {} would use them",
                s.steps,
                self.updates(),
                s.accumulate,
                s.steps.saturating_add(s.accumulate - left)
            )
        });
        std::iter::once(line).chain(left).collect()
    }

    fn restated(&self, old: &LoraUpdateSettings, restart: &Restart<'_>) -> Option<Restated> {
        restated(self, old, restart)
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (mut adapter, grad, mut moments): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let len = adapter.values.len();
        let mut sum = std::mem::take(&mut moments.pending);
        if sum.is_empty() {
            sum = match grad.0 {
                Some(grad) => grad.values,
                None => Arc::new(vec![0.0; len]),
            };
        } else if let Some(grad) = grad.0 {
            Arc::make_mut(&mut sum).iter_mut().zip(grad.values.iter()).for_each(|(sum, g)| *sum += g);
        }
        moments.micro_batches += 1;
        let count = moments.micro_batches;
        let norm =
            AdapterGrad { layout: adapter.layout.clone(), values: sum.clone() }.norm(ctx.cpu) / count as f64;
        if !norm.is_finite() {
            let at = sum.iter().position(|g| !g.is_finite());
            let place = at.map_or("its norm overflows".into(), |at| {
                format!("the factors of `{}` got {}", adapter.layout.module_at(at), sum[at])
            });
            return Err(OpError::diverged(format!("the gradient is not finite: {place}")));
        }
        let lr = self.rate(moments.updates);
        let mut metrics = Metrics::default();
        metrics.number("grad_norm", norm);
        metrics.number("lr", lr);
        if count < self.0.accumulate {
            moments.pending = sum;
        } else {
            if count > 1 {
                let share = 1.0 / count as f32;
                Arc::make_mut(&mut sum).iter_mut().for_each(|g| *g *= share);
            }
            let mut gradient = AdapterGrad { layout: adapter.layout.clone(), values: sum };
            if self.0.max_grad_norm > 0.0 {
                gradient.clip(ctx.cpu, self.0.max_grad_norm);
            }
            let mut state = OptimizerState {
                first_moment: moments.m,
                second_moment: moments.v,
                updates: moments.updates,
            };
            state.step(ctx.cpu, &self.adamw(lr), &mut adapter, &gradient)?;
            moments = Moments {
                layout: moments.layout,
                m: state.first_moment,
                v: state.second_moment,
                pending: Arc::default(),
                micro_batches: 0,
                updates: state.updates,
                travel: moments.travel + lr,
            };
        }
        metrics.number("update", moments.updates as f64);
        if self.0.accumulate > 1 {
            metrics.number("micro_batch", count as f64);
            metrics.number("micro_batches", self.0.accumulate as f64);
        }
        metrics.number("travel", moments.travel);
        Ok(((adapter, moments, metrics), ()))
    }
}

#[cfg(test)]
mod tests {
    use prefgraph_nn::{AdapterLayout, LinearLayout, models::flux::NAMES};

    use super::*;
    use crate::{operators::testing::Bench, port::NamedState, random::Random};

    fn layout() -> Arc<AdapterLayout> {
        let module = |name: &str| LinearLayout { name: name.into(), inputs: 3, outputs: 2 };
        let modules = vec![module("a"), module("b")];
        Arc::new(AdapterLayout { names: &NAMES, modules, rank: 2, alpha: 2.0 })
    }

    fn start() -> (Adapter, Moments) {
        let layout = layout();
        let zeros = Arc::new(vec![0.0; layout.len()]);
        let moments = Moments {
            layout: layout.clone(),
            m: zeros.clone(),
            v: zeros,
            pending: Arc::default(),
            micro_batches: 0,
            updates: 0,
            travel: 0.0,
        };
        let values = Arc::new(Random::new(1, "", 0, "").normals(layout.len()));
        (Adapter { layout, values }, moments)
    }

    fn gradient(seed: u64) -> AdapterGrad {
        let layout = layout();
        let values = Arc::new(Random::new(seed, "", 0, "g").normals(layout.len()));
        AdapterGrad { layout, values }
    }

    fn op(settings: LoraUpdateSettings) -> LoraUpdate {
        LoraUpdate::new(settings).unwrap()
    }

    #[test]
    fn micro_batches_give_the_update_of_their_mean() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let whole = op(LoraUpdateSettings { lr: 0.1, ..Default::default() });
        let parts = op(LoraUpdateSettings { lr: 0.1, accumulate: 2, ..Default::default() });
        let (adapter, moments) = start();
        let (a, b) = (gradient(1), gradient(2));
        let mean = a.values.iter().zip(b.values.iter()).map(|(a, b)| 0.5 * (a + b)).collect();
        let mean = AdapterGrad { layout: layout(), values: Arc::new(mean) };
        let run = |op: &LoraUpdate, adapter: &Adapter, grad: AdapterGrad, moments: &Moments| {
            op.forward(&ctx, (adapter.clone(), Grad(Some(grad)), moments.clone())).unwrap().0
        };
        let (expected, _, metrics) = run(&whole, &adapter, mean, &moments);
        let (between, kept, _) = run(&parts, &adapter, a, &moments);
        assert_eq!((between.values == adapter.values, kept.updates, kept.micro_batches), (true, 0, 1));
        let (found, after, last) = run(&parts, &between, b, &kept);
        assert_eq!((after.updates, after.micro_batches, after.pending.len()), (1, 0, 0));
        for (found, expected) in found.values.iter().zip(expected.values.iter()) {
            assert!((found - expected).abs() < 1e-6);
        }
        let norms = [&metrics, &last].map(|m| m.get("grad_norm").unwrap().mean().unwrap());
        assert!((norms[0] - norms[1]).abs() < 1e-5, "{norms:?}");
    }

    #[test]
    fn schedules_warm_up_and_end_where_they_should() {
        let rate = |schedule, update| {
            op(LoraUpdateSettings { lr: 1.0, schedule, warmup: 4, steps: 12, ..Default::default() })
                .rate(update)
        };
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            assert_eq!([0, 1, 3, 4].map(|u| rate(schedule, u)), [0.25, 0.5, 1.0, 1.0], "{schedule:?}");
        }
        assert_eq!(rate(Schedule::Constant, 100), 1.0);
        assert_eq!(rate(Schedule::Linear, 8), 0.5);
        assert!((rate(Schedule::Cosine, 8) - 0.5).abs() < 1e-12);
        assert_eq!(rate(Schedule::Linear, 12), 0.0);
        assert_eq!(rate(Schedule::Cosine, 99), 0.0);
    }

    fn resumed(old: LoraUpdateSettings, new: LoraUpdateSettings, step: u64) -> Option<Restated> {
        let steps = new.steps;
        resumed_in_a_run_of(steps, old, new, step)
    }

    fn resumed_in_a_run_of(
        steps: u64,
        old: LoraUpdateSettings,
        new: LoraUpdateSettings,
        step: u64,
    ) -> Option<Restated> {
        let moments = NamedState { counters: vec![("updates".into(), step)], ..Default::default() };
        let cells = [("moments".to_owned(), &moments)].into();
        op(new.clone()).restated(&old, &Restart { step, steps, cells })
    }

    #[test]
    fn a_run_that_goes_on_longer_is_told_what_becomes_of_its_rate() {
        let with = |schedule, steps| LoraUpdateSettings { lr: 1.0, schedule, steps, ..Default::default() };
        let told = |schedule, step| resumed(with(schedule, 12), with(schedule, 24), step).unwrap();
        let constant = told(Schedule::Constant, 12);
        assert!(constant.follows && constant.effect.contains("stays 1.000e0"), "{constant:?}");
        let ended = told(Schedule::Linear, 12);
        assert!(ended.follows && ended.effect.contains("had ended at update 12"), "{ended:?}");
        assert!(ended.effect.contains("jumps from 0e0 to 5.000e-1"), "{ended:?}");
        let running = told(Schedule::Linear, 6);
        assert!(running.follows && running.effect.contains("jumps from 5.000e-1 to 7.500e-1"), "{running:?}");
        assert_eq!(running.settings, ["steps"]);
        let ended = || with(Schedule::Cosine, 12);
        let over = resumed_in_a_run_of(20, ended(), ended(), 12).unwrap();
        assert!(over.effect.contains("the learning rate stays 0"), "{over:?}");
        assert_eq!(resumed(ended(), ended(), 11), None);
        assert_eq!(resumed(ended(), ended(), 12), None, "a run that has ended needs no rate");
    }

    #[test]
    fn another_rate_is_shown_with_both_values_and_does_not_follow() {
        let old = LoraUpdateSettings { lr: 1e-3, ..Default::default() };
        let told = resumed(old.clone(), LoraUpdateSettings { lr: 2e-3, ..old }, 3).unwrap();
        assert!(!told.follows && told.settings == ["lr"], "{told:?}");
        assert!(told.effect.contains("from 1.000e-3 to 2.000e-3"), "{told:?}");
    }

    #[test]
    fn steps_that_make_no_whole_update_are_said_before_the_run() {
        let shape = || AdapterShape(layout());
        let inputs = (shape(), crate::port::GradShape(shape()), MomentsShape(layout()));
        let notes =
            |steps| op(LoraUpdateSettings { accumulate: 3, steps, ..Default::default() }).notes(&inputs);
        assert_eq!(notes(6).len(), 1);
        let left = &notes(8)[1];
        assert!(left.contains("2 updates of 3 micro-batches, with 2 left over"), "{left}");
        assert!(left.contains("--steps 9"), "{left}");
    }

    #[test]
    fn the_travel_in_closed_form_is_the_sum_of_the_rates() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            for (warmup, steps, accumulate) in
                [(0, 1, 1), (0, 200, 1), (10, 200, 1), (10, 203, 4), (50, 20, 1)]
            {
                let op = op(LoraUpdateSettings {
                    lr: 0.3,
                    schedule,
                    warmup,
                    steps,
                    accumulate,
                    ..Default::default()
                });
                for updates in [0, 1, 5, 10, 11, 49, 200, 500] {
                    let sum: f64 = (0..updates).map(|u| op.rate(u)).sum();
                    let found = op.travel(updates);
                    assert!(
                        (found - sum).abs() < 1e-9 * sum.max(1.0),
                        "{schedule:?} {updates}: {found} {sum}"
                    );
                }
            }
        }
        let endless =
            op(LoraUpdateSettings { steps: u64::MAX, schedule: Schedule::Cosine, ..Default::default() });
        assert!(endless.travel(u64::MAX).is_finite());
    }

    #[test]
    fn no_value_moves_further_than_the_travel() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let op = op(LoraUpdateSettings { lr: 0.01, weight_decay: 0.0, warmup: 3, ..Default::default() });
        let (first, mut moments) = start();
        let mut adapter = first.clone();
        for _ in 0..10 {
            let inputs = (adapter, Grad(Some(gradient(5))), moments);
            (adapter, moments, _) = op.forward(&ctx, inputs).unwrap().0;
        }
        let moved = adapter.values.iter().zip(first.values.iter()).map(|(a, b)| f64::from((a - b).abs()));
        let furthest = moved.fold(0.0, f64::max);
        assert!(furthest <= moments.travel * 1.001 && furthest > 0.9 * moments.travel, "{furthest}");
        assert!((moments.travel - (0.01 * (1.0 + 2.0) / 3.0 + 0.08)).abs() < 1e-12, "{}", moments.travel);
    }

    #[test]
    fn a_gradient_that_is_not_finite_names_its_linear() {
        let bench = Bench::new();
        let (adapter, moments) = start();
        let mut grad = gradient(1);
        Arc::make_mut(&mut grad.values)[11] = f32::NAN;
        let op = op(LoraUpdateSettings::default());
        let error = op.forward(&bench.ctx(), (adapter, Grad(Some(grad)), moments)).err().unwrap().to_string();
        assert!(error.contains("`b`") && error.contains("NaN"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for settings in [
            LoraUpdateSettings { accumulate: 0, ..Default::default() },
            LoraUpdateSettings { lr: f64::NAN, ..Default::default() },
            LoraUpdateSettings { betas: [0.9, 1.0], ..Default::default() },
            LoraUpdateSettings { schedule: Schedule::Cosine, ..Default::default() },
        ] {
            assert!(LoraUpdate::new(settings.clone()).is_err(), "{settings:?}");
        }
    }
}
