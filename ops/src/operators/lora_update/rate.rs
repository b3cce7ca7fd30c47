//! The learning rate from update to update, and what changed settings do to it.

use super::{LoraUpdate, LoraUpdateSettings};
use crate::{
    choices,
    resume::{Restart, Restated},
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

impl LoraUpdate {
    /// Updates of the whole run.
    pub(super) fn updates(&self) -> u64 {
        self.0.steps / self.0.accumulate.max(1)
    }

    /// The learning rate of an update, counted from 0.
    pub(super) fn rate(&self, update: u64) -> f64 {
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
    pub(super) fn travel(&self, updates: u64) -> f64 {
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
}

fn shown(rate: f64) -> String {
    if rate == 0.0 { "0".into() } else { format!("{rate:.3e}") }
}

/// The effect of changed settings on the learning rate.
pub(super) fn restated(
    now: &LoraUpdate,
    old: &LoraUpdateSettings,
    restart: &Restart<'_>,
) -> Option<Restated> {
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
            "the {} schedule had ended at update {} and now ends at update {}: the learning rate jumps from 0 to {is:.3e}",
            old.schedule.name(),
            before.updates(),
            now.updates()
        ),
        _ => {
            let rate = match was == is {
                true => format!("the learning rate stays {}", shown(is)),
                false => format!("the learning rate jumps from {} to {}", shown(was), shown(is)),
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
