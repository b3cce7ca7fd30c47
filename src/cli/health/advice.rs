//! The warning for each sign, with its numbers and the settings that help.

use prefgraph_ops::words::count;

use super::{
    Health,
    change::{Change, Steps},
    signs::{LOSS_WINDOW, Sign, WINDOW},
    summary::signed,
};
use crate::cli::recent::RecentValues;

impl Health {
    /// What is wrong, and what to do about it.
    pub(super) fn advice(&self, sign: Sign) -> String {
        let value = |window: &RecentValues| window.mean().map_or(f64::NAN, |m| m.value);
        let (update, loss, lr) = (&self.names.update, &self.names.loss, self.latest.lr);
        let lower =
            format!("lower `{update}.lr` (it reached {lr:e}), e.g. --set {update}.lr={:e}", tenth(lr));
        let hold = format!("--set {loss}.objective=dpop, a larger `{loss}.sft_weight` or `{loss}.anchor`");
        match sign {
            Sign::LossAway => format!(
                "the loss has left any sensible range: {:.4} over the last {LOSS_WINDOW} steps. Stop here and {lower}",
                value(&self.recent_loss),
            ),
            Sign::WinnerWorse => format!(
                "the winner's error is above the frozen network's on average over {WINDOW} steps ({}): the policy unlearns what it \
                 should draw. To help, {lower}, or hold the winner: {hold}",
                diffs(&self.trained, ""),
            ),
            Sign::WholeWorse => format!(
                "the policy gets worse outside the mask: the error of the whole winner is above the frozen network's on average over \
                 {WINDOW} steps ({}). To help, raise `{loss}.sft_weight` or `{loss}.anchor`, which look at the whole picture, or \
                 {lower}",
                diffs(&self.whole, "plain_"),
            ),
            Sign::LoserAlone => format!(
                "accuracy comes from the loser alone ({} over {WINDOW} steps): pairs are told apart, but the winner has not become \
                 more likely. What helps: {hold}, or a lower `{update}.lr` (it reached {lr:e})",
                diffs(&self.trained, ""),
            ),
            Sign::Saturated => format!(
                "pairs hardly pull any more: the gradient factor is {:.3} over {WINDOW} steps. Logits saturate, or all pairs are where the objective \
                 wants them: lower `{loss}.beta`, or stop here, since more steps on these pairs teach little",
                value(&self.gradient_factor),
            ),
            Sign::Still => {
                let seen = match self.logit_size.mean() {
                    _ if self.latest.gradient == Some(0.0) => {
                        return "nothing moves: every gradient has been 0. Does the loss depend on the adapter?".into();
                    }
                    Some(size) => format!("the mean size of a logit is {:.1e}", size.value),
                    None => format!(
                        "weights can have moved by about {:.1e} at most",
                        self.latest.travel.unwrap_or_default()
                    ),
                };
                format!(
                    "nothing moves: after {} {seen}. Raise `{update}.lr` (it reached {lr:e}); `graph-run plan` shows how \
                     far a weight can travel",
                    count(self.latest.updates.unwrap_or_default(), "update"),
                )
            }
            Sign::HeldOutWorse => {
                let found = self.held_out.iter().flat_map(|(name, h)| {
                    let changes = h.changes();
                    let alone = changes.len() == 1;
                    changes.into_iter().map(move |change| (name, h.len(), alone, change))
                });
                let worst = found.max_by(|a, b| height(&a.3).total_cmp(&height(&b.3)));
                let place = worst.map_or_else(String::new, |(name, count, alone, c)| {
                    format!(
                        "{count} pairs ({name}.{}w_diff {} ± {:.1e})",
                        if c.masked || alone { "" } else { "plain_" },
                        signed(c.w_diff.value),
                        c.w_diff.error
                    )
                });
                format!(
                    "the winner's error is above the frozen network's on {place}: what the policy learns of its own pairs makes it \
                     worse at others. What helps: {hold}, fewer `run.steps`, more pairs, or a lower `{update}.lr` (it reached \
                     {lr:e})"
                )
            }
        }
    }
}

/// How many standard errors the winner's error has risen by.
fn height(change: &Change) -> f64 {
    change.w_diff.value / change.w_diff.error.max(f64::MIN_POSITIVE)
}

/// The differences under the names of their metrics.
fn diffs(steps: &Steps, prefix: &str) -> String {
    steps.change().map_or_else(String::new, |c| {
        format!(
            "{prefix}w_diff {}, {prefix}l_diff {}, accuracy {:.2}",
            signed(c.w_diff.value),
            signed(c.l_diff.value),
            c.accuracy
        )
    })
}

/// A tenth of a rate, without the digits that division leaves behind.
fn tenth(lr: f64) -> f64 {
    format!("{:.2e}", lr / 10.0).parse().unwrap_or(lr / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_a_rate_is_readable() {
        assert_eq!(format!("{:e}", tenth(3e-4)), "3e-5");
        assert_eq!(format!("{:e}", tenth(1e-3)), "1e-4");
    }
}
