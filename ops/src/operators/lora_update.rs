//! `lora-update`: how an adapter moves.

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, AdapterGrad, AdapterLayout,
    optim::{AdamW, OptimizerState},
};

use crate::{
    choices,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    port::Grad,
    ports::{AdapterShape, MetricDoc, Metrics, MetricsShape, Moments, MomentsShape},
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

    fn adamw(&self, lr: f64) -> AdamW {
        let s = &self.0;
        AdamW { lr, beta1: s.betas[0], beta2: s.betas[1], eps: s.eps, weight_decay: s.weight_decay }
    }
}

/// The name of the linear whose factor holds a value.
fn module_of(layout: &AdapterLayout, at: usize) -> &str {
    let found = layout.ranges().iter().position(|(a, b)| a.contains(&at) || b.contains(&at));
    found.map_or("?", |i| layout.modules[i].name.as_str())
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
            scratch_bytes: n * size_of::<f32>(),
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
                (0..1000).map(|u| self.rate(u)).sum::<f64>()
            ),
            updates => format!(
                "AdamW, lr {:e}: no value moves further than about {:.3e} in {updates} updates{batches}",
                s.lr,
                (0..updates).map(|u| self.rate(u)).sum::<f64>()
            ),
        };
        vec![line]
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
                format!("the factors of `{}` got {}", module_of(&adapter.layout, at), sum[at])
            });
            return Err(OpError::new(format!("the gradient is not finite: {place}")));
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
        metrics.number("travel", moments.travel);
        Ok(((adapter, moments, metrics), ()))
    }
}

#[cfg(test)]
mod tests {
    use prefgraph_nn::lora::AdaptedLinear;

    use super::*;
    use crate::{operators::testing::Bench, random::Random};

    fn layout() -> Arc<AdapterLayout> {
        let module = |name: &str| AdaptedLinear { name: name.into(), inputs: 3, outputs: 2 };
        Arc::new(AdapterLayout { modules: vec![module("a"), module("b")], rank: 2, alpha: 2.0 })
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
