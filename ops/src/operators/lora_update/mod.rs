//! `lora-update`: AdamW on an adapter, with schedules, clipping and accumulation.

mod rate;
#[cfg(test)]
mod tests;

use prefgraph_nn::{
    Adapter, AdapterGrad, DeviceKind,
    device::DeviceVec,
    optim::{AdamW, OptimizerState, clip_factor},
};
pub use rate::Schedule;

use crate::{
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    port::Grad,
    ports::{AdapterShape, MetricDoc, Metrics, MetricsShape, Moments, MomentsShape},
    resume::{Restart, Restated},
    settings,
    words::count,
};

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
        /// Decoupled weight decay, of A and B alike; what is trained whole decays towards its frozen weights.
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
    fn adamw(&self, lr: f64) -> AdamW {
        let s = &self.0;
        AdamW { lr, beta1: s.betas[0], beta2: s.betas[1], eps: s.eps, weight_decay: s.weight_decay }
    }
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
                "schedule `{}` ends with the run: `steps` is needed, most simply `steps: \"@run.steps\"`",
                s.schedule.name()
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
        let waiting = if self.0.accumulate > 1 { n.saturating_mul(size_of::<f32>()) } else { 0 };
        Cost {
            forward_flops: 15.0 * n as f64,
            moved_bytes: 28.0 * n as f64,
            // The sum of some gradients waits from one step to the next, where the next sum takes its place.
            cell_bytes: waiting,
            scratch_bytes: waiting,
            ..Cost::default()
        }
    }

    /// The state of an adapter is updated where it lies.
    fn gpu_cost(&self, inputs: &InShapes<Self>, outputs: &OutShapes<Self>) -> Option<Cost> {
        let queue_bytes = DeviceKind::Cuda.queue_bytes();
        Some(Cost { queue_bytes, urgent: true, ..Operator::cost(self, inputs, outputs) })
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        let s = &self.0;
        let batches = match s.accumulate {
            1 => String::new(),
            n => format!(", {n} micro-batches each"),
        };
        let line = match self.updates() {
            0 if s.steps == 0 => format!(
                "AdamW, lr {:e}: each value moves by about {:.1e} at most in 1000 updates{batches}",
                s.lr,
                self.travel(1000)
            ),
            updates => format!(
                "AdamW, lr {:e}: each value moves by about {:.1e} at most in {}{batches}",
                s.lr,
                self.travel(updates),
                count(updates, "update")
            ),
        };
        let left = s.steps % s.accumulate;
        let left = (left > 0).then(|| {
            format!(
                "{} make {} of {} micro-batches, with {left} left over: their gradients stay in the checkpoint for a longer run and do not \
                 reach the adapter; --steps {} would use them",
                count(s.steps, "step"),
                count(self.updates(), "update"),
                s.accumulate,
                s.steps.saturating_add(s.accumulate - left)
            )
        });
        let updates = self.updates();
        let short = (updates > 0 && updates < s.warmup).then(|| {
            format!(
                "the warm-up is {} long and the run {}: its last learning rate is {:.3e}, and {:e} is never reached",
                count(s.warmup, "update"),
                count(updates, "update"),
                self.rate(updates - 1),
                s.lr
            )
        });
        std::iter::once(line).chain(short).chain(left).collect()
    }

    fn restated(&self, old: &LoraUpdateSettings, restart: &Restart<'_>) -> Option<Restated> {
        rate::restated(self, old, restart)
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (mut adapter, grad, mut moments): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let mut sum = match (std::mem::take(&mut moments.pending), grad.0) {
            (pending, None) if pending.is_empty() => adapter.values.zeros_beside()?,
            (pending, None) => pending,
            (pending, Some(grad)) if pending.is_empty() => grad.values,
            (mut pending, Some(grad)) => {
                pending.add(&grad.values)?;
                pending
            }
        };
        moments.micro_batches += 1;
        let count = moments.micro_batches;
        let norm = sum.sum_of_squares(ctx.cpu)?.sqrt() / count as f64;
        if !norm.is_finite() {
            let place = match sum.find_not_finite()? {
                None => "its norm overflows".into(),
                Some(at) => {
                    format!("the factors of `{}` got {}", adapter.layout.module_at(at), sum.host()?[at])
                }
            };
            return Err(OpError::not_finite(ctx.step, format!("the gradient is not finite ({place})")));
        }
        let lr = self.rate(moments.updates);
        let mut metrics = Metrics::default();
        metrics.number("grad_norm", norm);
        metrics.number("lr", lr);
        if count < self.0.accumulate {
            moments.pending = sum;
        } else {
            if count > 1 {
                sum.scale(ctx.cpu, 1.0 / count as f32)?;
            }
            let gradient = AdapterGrad { layout: adapter.layout.clone(), values: sum };
            let factor = match self.0.max_grad_norm {
                0.0 => 1.0,
                limit if count == 1 => clip_factor(norm, limit),
                // Dividing has rounded every value.
                limit => clip_factor(gradient.norm(ctx.cpu)?, limit),
            };
            let mut state = OptimizerState {
                first_moment: moments.m,
                second_moment: moments.v,
                updates: moments.updates,
            };
            state.step_scaled(ctx.cpu, &self.adamw(lr), &mut adapter, (&gradient, factor))?;
            moments = Moments {
                layout: moments.layout,
                m: state.first_moment,
                v: state.second_moment,
                pending: DeviceVec::default(),
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
