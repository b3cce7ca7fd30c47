//! Signs of trouble in the numbers of a run. Pure functions; all thresholds are here and in `docs/training.md`.

use super::change::Change;

/// Steps over which a sign is looked for.
pub(super) const WINDOW: usize = 50;
/// Steps over which the loss is looked at, which may get out of hand within a few.
pub(super) const LOSS_WINDOW: usize = 10;

/// A mean is off zero if it is off by more than so many of its standard errors: over a run of some thousand steps, chance alone
/// does not get there.
const SURE: f64 = 4.0;
/// A loss above this many times the one of the frozen network is out of all range...
const LOSS_GROWN: f64 = 10.0;
/// ...if it is also above this: a loss near zero at the start may grow without harm.
const LOSS_LARGE: f64 = 3.0;
/// An accuracy from which on nearly all pairs are told apart.
const ACCURATE: f64 = 0.9;
/// The winner's part of the margin below which the loser alone makes it.
const WINNERS_PART: f64 = 0.1;
/// A gradient factor below which pairs hardly pull any more.
const SATURATED: f64 = 0.02;
/// A logit below which policy and reference are still the same for all purposes...
const STILL: f64 = 0.01;
/// ...after so many updates.
const STILL_UPDATES: f64 = 50.0;
/// Without logits: a travel of the weights that changes nothing that can be seen.
const STILL_TRAVEL: f64 = 1e-4;

/// What is known of a run at some step. All means are over the window; `None` is not measured, or not long enough.
#[derive(Clone, Debug, Default)]
pub(super) struct Moment {
    /// Mean of the loss over [`LOSS_WINDOW`].
    pub loss: Option<f64>,
    /// The loss of the frozen network, or where that is not measured, the mean of the run's first steps.
    pub first_loss: Option<f64>,
    /// What has changed on the pairs that are trained on, under the mask if there is one.
    pub trained: Option<Change>,
    /// The same of whole pictures, where there is a mask.
    pub whole: Option<Change>,
    /// Mean of sigmoid(-logit).
    pub gradient_factor: Option<f64>,
    /// Mean size of a logit.
    pub logit_size: Option<f64>,
    /// Updates made.
    pub updates: Option<f64>,
    /// The largest norm of a gradient so far.
    pub gradient: Option<f64>,
    /// Sum of the learning rates so far.
    pub travel: Option<f64>,
    /// What has changed on held-out pairs by the newest measurement, under the mask and of whole pictures.
    pub held_out: Vec<Change>,
}

/// Something that a user should know of while there is time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sign {
    /// The loss has left any sensible range.
    LossAway,
    /// The winner has become less likely than it was.
    WinnerWorse,
    /// The winner has become less likely where the mask does not look.
    WholeWorse,
    /// Pairs are told apart, but only because the loser has become less likely.
    LoserAlone,
    /// Pairs hardly pull any more.
    Saturated,
    /// The policy is still the reference.
    Still,
    /// The winner has become less likely on pairs that are not trained on.
    HeldOutWorse,
}

impl Sign {
    /// Every sign there is at this moment.
    pub fn of(m: &Moment) -> Vec<Self> {
        let worse = |change: &Change| change.w_diff.is_above_zero(SURE);
        let tests = [
            (Self::LossAway, m.loss.zip(m.first_loss).is_some_and(|(loss, first)| loss_is_away(loss, first))),
            (Self::WinnerWorse, m.trained.as_ref().is_some_and(worse)),
            (Self::WholeWorse, m.whole.as_ref().is_some_and(worse)),
            (Self::LoserAlone, m.trained.as_ref().is_some_and(loser_alone)),
            (Self::Saturated, m.gradient_factor.is_some_and(|factor| factor < SATURATED)),
            (Self::Still, is_still(m)),
            (Self::HeldOutWorse, m.held_out.iter().any(worse)),
        ];
        tests.into_iter().filter(|(_, there)| *there).map(|(sign, _)| sign).collect()
    }
}

fn loss_is_away(loss: f64, first: f64) -> bool {
    loss > LOSS_GROWN * first.abs() && loss > LOSS_LARGE
}

/// Nearly all pairs are told apart, the loser's error has surely risen, and the winner's has not fallen by a tenth of that.
fn loser_alone(c: &Change) -> bool {
    c.accuracy >= ACCURATE && c.l_diff.is_above_zero(SURE) && -c.w_diff.value < WINNERS_PART * c.margin.value
}

fn is_still(m: &Moment) -> bool {
    if !m.updates.is_some_and(|updates| updates >= STILL_UPDATES) {
        return false;
    }
    if m.gradient == Some(0.0) {
        return true;
    }
    match (m.logit_size, m.travel) {
        (Some(size), _) => size < STILL,
        (None, Some(travel)) => travel < STILL_TRAVEL,
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::recent::Mean;

    /// Of a winner's and a loser's error, both with the same standard error.
    fn change(w_diff: f64, l_diff: f64, accuracy: f64, error: f64) -> Change {
        let mean = |value| Mean { value, error };
        let (w_diff, l_diff, margin) = (mean(w_diff), mean(l_diff), mean(l_diff - w_diff));
        Change { w_diff, l_diff, margin, accuracy, masked: false }
    }

    fn trained(w_diff: f64, l_diff: f64, accuracy: f64) -> Moment {
        Moment { trained: Some(change(w_diff, l_diff, accuracy, 1e-4)), ..healthy() }
    }

    /// A run that does what it is for.
    fn healthy() -> Moment {
        let good = change(-1e-3, 1e-3, 0.95, 1e-4);
        Moment {
            loss: Some(0.4),
            first_loss: Some(std::f64::consts::LN_2),
            trained: Some(good),
            whole: Some(good),
            gradient_factor: Some(0.2),
            logit_size: Some(2.0),
            updates: Some(200.0),
            gradient: Some(1.0),
            travel: Some(1e-2),
            held_out: vec![good, good],
        }
    }

    #[test]
    fn a_run_that_does_what_it_is_for_shows_no_sign_and_neither_does_one_without_numbers() {
        assert_eq!(Sign::of(&healthy()), []);
        assert_eq!(Sign::of(&Moment::default()), []);
    }

    #[test]
    fn a_winner_that_gets_surely_worse_is_a_sign_and_noise_is_none() {
        assert_eq!(Sign::of(&trained(3e-4, 1e-3, 0.8)), []);
        assert_eq!(Sign::of(&trained(5e-4, 1e-3, 0.8)), [Sign::WinnerWorse]);
        let worse = change(5e-4, 1e-3, 0.8, 1e-4);
        assert_eq!(Sign::of(&Moment { whole: Some(worse), ..healthy() }), [Sign::WholeWorse]);
        let held_out = vec![change(-1e-3, 1e-3, 0.8, 1e-4), worse];
        assert_eq!(Sign::of(&Moment { held_out, ..healthy() }), [Sign::HeldOutWorse]);
    }

    #[test]
    fn accuracy_through_the_loser_alone_is_a_sign_even_where_the_winner_is_not_surely_worse() {
        assert_eq!(Sign::of(&trained(-5e-5, 1e-3, 0.95)), [Sign::LoserAlone]);
        assert_eq!(Sign::of(&trained(-5e-5, 1e-3, 0.8)), [], "not nearly all pairs are told apart");
        assert_eq!(Sign::of(&trained(-2e-5, 3e-4, 0.95)), [], "the loser may be noise");
        assert_eq!(Sign::of(&trained(-2e-4, 1e-3, 0.95)), [], "the winner has its part");
    }

    #[test]
    fn a_loss_far_above_its_start_is_a_sign_and_a_small_one_is_none() {
        assert_eq!(Sign::of(&Moment { loss: Some(759.0), ..healthy() }), [Sign::LossAway]);
        assert_eq!(Sign::of(&Moment { loss: Some(6.0), ..healthy() }), []);
        // Of `ipo`, which starts at 1 / (2 beta)^2.
        assert_eq!(Sign::of(&Moment { loss: Some(1e-4), first_loss: Some(6e-8), ..healthy() }), []);
    }

    #[test]
    fn logits_without_gradient_are_a_sign() {
        assert_eq!(Sign::of(&Moment { gradient_factor: Some(0.01), ..healthy() }), [Sign::Saturated]);
    }

    #[test]
    fn a_policy_that_is_still_the_reference_after_fifty_updates_is_a_sign() {
        let still = Moment { logit_size: Some(1e-5), ..healthy() };
        assert_eq!(Sign::of(&still), [Sign::Still]);
        assert_eq!(Sign::of(&Moment { updates: Some(49.0), ..still }), []);
        assert_eq!(Sign::of(&Moment { gradient: Some(0.0), ..healthy() }), [Sign::Still]);
        let without_logits = Moment { logit_size: None, travel: Some(1e-6), ..healthy() };
        assert_eq!(Sign::of(&without_logits), [Sign::Still]);
        assert_eq!(Sign::of(&Moment { travel: Some(1e-3), ..without_logits }), []);
    }
}
