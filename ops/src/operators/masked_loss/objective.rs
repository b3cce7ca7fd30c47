//! Preference objectives over the four errors of a pair.
//!
//! `m` is the policy's error and `r` the reference's, `w` the winner's and `l` the loser's; `d = m - r`, and the
//! margin is `delta = d_l - d_w`: positive where the policy has come to prefer the winner.

use super::MaskedLossSettings;
use crate::choices;

choices! {
    /// What is asked of the margin.
    pub enum Objective {
        /// Diffusion-DPO: -log sigmoid(beta/2 delta).
        Dpo = "dpo",
        /// DPO with flipped labels: (1 - epsilon) of it, and epsilon of -log sigmoid(-beta/2 delta).
        Cdpo = "cdpo",
        /// (delta - 1 / (2 beta))^2.
        Ipo = "ipo",
        /// max(0, 1 - beta delta), without the half.
        Hinge = "hinge",
        /// DPO on delta - lambda max(0, d_w): a winner that gets worse costs extra.
        Dpop = "dpop",
        /// Without a reference: -log sigmoid(beta (m_l - m_w) - gamma).
        Simpo = "simpo",
        /// Without a reference: m_w - beta log sigmoid(mapo_t (phi(m_w) - phi(m_l))), phi(m) = s m / (exp(s m) - 1).
        Mapo = "mapo",
        /// Winner and loser as two unpaired samples, a good and a bad one.
        Kto = "kto",
        /// The divergence of sigmoid(beta/2 delta) from 1 - alpha.
        Dmpo = "dmpo",
        /// The winner's error alone; every row is a winner.
        Sft = "sft",
    }
}

impl Objective {
    /// Does it compare the policy with the frozen reference?
    pub fn needs_reference(self) -> bool {
        !matches!(self, Self::Simpo | Self::Mapo | Self::Sft)
    }

    /// Are rows winners followed by their losers?
    pub fn is_paired(self) -> bool {
        self != Self::Sft
    }
}

/// The errors of one pair. Without a reference the `r` are zero and `d` is `m`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairErrors {
    /// Error of the policy on the winner.
    pub m_w: f64,
    /// Error of the policy on the loser.
    pub m_l: f64,
    /// Error of the reference on the winner.
    pub r_w: f64,
    /// Error of the reference on the loser.
    pub r_l: f64,
    /// `m_w - r_w`, summed without cancellation.
    pub d_w: f64,
    /// `m_l - r_l`, likewise.
    pub d_l: f64,
}

/// What an objective makes of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term {
    /// The loss of this pair.
    pub loss: f64,
    /// Its derivative by `m_w`.
    pub by_w: f64,
    /// Its derivative by `m_l`.
    pub by_l: f64,
    /// How strongly the pair pulls: the slope of the loss by its logit, of `ipo` in units in which it is 0.5 where policy and reference agree, as for
    /// `dpo`.
    pub pull: f64,
    /// What goes into the sigmoid; for the objectives without one beta/2 delta, of `hinge` beta delta, which it compares with 1.
    pub logit: f64,
}

pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + libm::exp(-x))
    } else {
        let e = libm::exp(x);
        e / (1.0 + e)
    }
}

/// `log sigmoid(x)`, without overflow for any x.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - libm::log1p(libm::exp(-x.abs()))
}

/// Beyond this 1 is nothing beside the exponential.
const FAR: f64 = 300.0;

/// `u / (exp(u) - 1)` and its derivative.
fn bose(u: f64) -> (f64, f64) {
    if u.abs() < 1e-3 {
        // The series; what is left out is below 2e-15.
        return (1.0 - u / 2.0 + u * u / 12.0, -0.5 + u / 6.0 - u * u * u / 180.0);
    }
    if u > FAR {
        // The square of the exponential would overflow long before these are zero.
        let e = libm::exp(-u);
        return (u * e, (1.0 - u) * e);
    }
    let (grown, e) = (libm::expm1(u), libm::exp(u));
    (u / grown, (grown - u * e) / (grown * grown))
}

/// The terms of all pairs of a batch. Only `kto` makes them depend on each other.
pub fn terms(settings: &MaskedLossSettings, pairs: &[PairErrors]) -> Vec<Term> {
    let baseline = baseline(pairs);
    pairs.iter().map(|e| term(settings, e, baseline)).collect()
}

/// KTO's baseline: the mean gain over the batch, not below zero.
fn baseline(pairs: &[PairErrors]) -> f64 {
    let gains = pairs.iter().map(|e| -(e.d_w + e.d_l)).sum::<f64>();
    (gains / (2 * pairs.len()).max(1) as f64).max(0.0)
}

/// `baseline` is KTO's; no derivative goes through it.
fn term(settings: &MaskedLossSettings, e: &PairErrors, baseline: f64) -> Term {
    let beta = settings.beta;
    let delta = e.d_l - e.d_w;
    let logit = 0.5 * beta * delta;
    // `slope` is the loss's derivative by the logit; a logit falls with m_w and rises with m_l.
    let paired = |loss: f64, slope: f64, rate: f64, logit: f64| Term {
        loss,
        by_w: -rate * slope,
        by_l: rate * slope,
        pull: slope.abs(),
        logit,
    };
    match settings.objective {
        Objective::Dpo => paired(-log_sigmoid(logit), -sigmoid(-logit), 0.5 * beta, logit),
        Objective::Cdpo => {
            let epsilon = settings.epsilon;
            let loss = -(1.0 - epsilon) * log_sigmoid(logit) - epsilon * log_sigmoid(-logit);
            paired(loss, epsilon * sigmoid(logit) - (1.0 - epsilon) * sigmoid(-logit), 0.5 * beta, logit)
        }
        Objective::Ipo => {
            let gap = delta - 0.5 / beta;
            Term { pull: beta * gap.abs(), ..paired(gap * gap, 2.0 * gap, 1.0, logit) }
        }
        Objective::Hinge => {
            let gap = 1.0 - beta * delta;
            paired(gap.max(0.0), if gap > 0.0 { -1.0 } else { 0.0 }, beta, beta * delta)
        }
        Objective::Dpop => {
            let logit = 0.5 * beta * (delta - settings.lambda * e.d_w.max(0.0));
            let mut term = paired(-log_sigmoid(logit), -sigmoid(-logit), 0.5 * beta, logit);
            if e.d_w > 0.0 {
                term.by_w *= 1.0 + settings.lambda;
            }
            term
        }
        Objective::Simpo => {
            let logit = beta * (e.m_l - e.m_w) - settings.gamma;
            paired(-log_sigmoid(logit), -sigmoid(-logit), beta, logit)
        }
        Objective::Mapo => {
            let (s, t) = (settings.mapo_s, settings.mapo_t);
            let ((phi_w, slope_w), (phi_l, slope_l)) = (bose(s * e.m_w), bose(s * e.m_l));
            let logit = t * (phi_w - phi_l);
            let pull = beta * sigmoid(-logit) * t * s;
            Term {
                loss: e.m_w - beta * log_sigmoid(logit),
                by_w: 1.0 - pull * slope_w,
                by_l: pull * slope_l,
                pull: sigmoid(-logit),
                logit,
            }
        }
        Objective::Kto => {
            let (good, bad) = (sigmoid(beta * (-e.d_w - baseline)), sigmoid(-beta * (-e.d_l - baseline)));
            let (of_good, of_bad) = (good * (1.0 - good), bad * (1.0 - bad));
            Term {
                loss: 0.5 * ((1.0 - good) + (1.0 - bad)),
                by_w: 0.5 * beta * of_good,
                by_l: -0.5 * beta * of_bad,
                pull: of_good + of_bad,
                logit,
            }
        }
        Objective::Dmpo => {
            let (p, alpha) = (sigmoid(logit), settings.alpha);
            let (log_q, log_alpha) = (libm::log1p(-alpha), libm::log(alpha));
            let loss = p * (log_sigmoid(logit) - log_q) + (1.0 - p) * (log_sigmoid(-logit) - log_alpha);
            let slope = p * (1.0 - p) * (logit - (log_q - log_alpha));
            paired(loss, slope, 0.5 * beta, logit)
        }
        Objective::Sft => Term { loss: e.m_w, by_w: 1.0, by_l: 0.0, pull: 1.0, logit },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn number(case: &Value, key: &str, default: f64) -> f64 {
        case[key].as_f64().unwrap_or(default)
    }

    fn settings_of(case: &Value) -> MaskedLossSettings {
        let base = MaskedLossSettings::default();
        MaskedLossSettings {
            objective: serde_json::from_value(case["objective"].clone()).unwrap(),
            beta: number(case, "beta", f64::NAN),
            epsilon: number(case, "epsilon", base.epsilon),
            lambda: number(case, "lambda", base.lambda),
            gamma: number(case, "gamma", base.gamma),
            mapo_s: number(case, "s", base.mapo_s),
            mapo_t: number(case, "t", base.mapo_t),
            alpha: number(case, "alpha", base.alpha),
            ..base
        }
    }

    fn errors(m_w: f64, m_l: f64) -> PairErrors {
        let (r_w, r_l) = (0.1002, 0.1008);
        PairErrors { m_w, m_l, r_w, r_l, d_w: m_w - r_w, d_l: m_l - r_l }
    }

    #[test]
    fn every_objective_gives_the_published_loss_and_derivatives() {
        let file: Value = serde_json::from_str(include_str!("losses.json")).unwrap();
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 9);
        for case in cases {
            let found = terms(&settings_of(case), &[errors(number(case, "m_w", 0.1), 0.1010)])[0];
            for (found, key) in [(found.loss, "loss"), (found.by_w, "d_mw"), (found.by_l, "d_ml")] {
                let expected = case[key].as_f64().unwrap();
                assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-2), "{case}: {key} {found}");
            }
        }
    }

    #[test]
    fn the_hinge_has_no_half() {
        let settings = MaskedLossSettings { objective: Objective::Hinge, beta: 1000.0, ..Default::default() };
        let found = terms(&settings, &[errors(0.1, 0.1010)])[0];
        assert!((found.loss - 0.6).abs() < 1e-9 && (found.by_w - 1000.0).abs() < 1e-9, "{found:?}");
        let beyond = terms(&MaskedLossSettings { beta: 3000.0, ..settings }, &[errors(0.1, 0.1010)])[0];
        assert_eq!((beyond.loss, beyond.by_w, beyond.by_l), (0.0, 0.0, 0.0));
    }

    #[test]
    fn every_derivative_is_that_of_finite_differences() {
        use Objective::*;
        // A second pair that gains much, so that KTO's baseline is above zero.
        let other = errors(0.09, 0.08);
        for objective in [Dpo, Cdpo, Ipo, Hinge, Dpop, Simpo, Mapo, Kto, Dmpo, Sft] {
            for (m_w, m_l) in [(0.1, 0.101), (0.1012, 0.0999), (0.3, 1e-5)] {
                let settings = MaskedLossSettings { objective, beta: 300.0, ..Default::default() };
                let pairs = [errors(m_w, m_l), other];
                // What is held constant in the derivative is held constant here.
                let baseline = baseline(&pairs);
                assert!(m_w > 0.2 || baseline > 0.0, "{baseline}");
                let loss = |w, l| term(&settings, &errors(w, l), baseline).loss;
                let found = terms(&settings, &pairs)[0];
                let h = 1e-7;
                let by_w = (loss(m_w + h, m_l) - loss(m_w - h, m_l)) / (2.0 * h);
                let by_l = (loss(m_w, m_l + h) - loss(m_w, m_l - h)) / (2.0 * h);
                for (found, slope) in [(found.by_w, by_w), (found.by_l, by_l)] {
                    assert!(
                        (found - slope).abs() < 1e-5 * slope.abs().max(1.0),
                        "{objective:?} {found} {slope}"
                    );
                }
            }
        }
    }

    #[test]
    fn how_strongly_a_pair_pulls_is_its_slope_and_a_half_where_policy_and_reference_agree() {
        use Objective::*;
        let of = |objective, delta: f64| {
            let settings = MaskedLossSettings { objective, beta: 100.0, epsilon: 0.1, ..Default::default() };
            let pair = PairErrors { m_w: 0.1, m_l: 0.1 + delta, d_l: delta, ..Default::default() };
            terms(&settings, &[pair])[0].pull
        };
        for objective in [Dpo, Dpop, Ipo, Kto] {
            assert!((of(objective, 0.0) - 0.5).abs() < 1e-12, "{objective:?}");
        }
        // Where each is settled: far out, at its margin, at the logit of its share of wrong labels, past 1.
        assert!(of(Dpo, 1.0) < 1e-12 && of(Dpop, 1.0) < 1e-12 && of(Kto, 1.0) < 0.3);
        assert!(of(Ipo, 0.005) < 1e-12 && of(Ipo, 0.01) > 0.4);
        assert!(of(Cdpo, 2.0 * libm::log(9.0) / 100.0) < 1e-12 && of(Cdpo, 0.1) > 0.05);
        assert!(of(Hinge, 0.02) == 0.0 && of(Hinge, 0.0) == 1.0);
    }

    #[test]
    fn no_setting_within_its_bounds_makes_a_loss_or_its_derivative_infinite() {
        for u in [299.0, 301.0, 705.0, 709.7, 710.0, 1e6] {
            let (value, slope) = bose(u);
            assert!(value.is_finite() && slope.is_finite() && value >= 0.0 && slope <= 0.0, "{u}");
        }
        // The two forms meet.
        let (below, above) = (bose(FAR), bose(FAR * (1.0 + f64::EPSILON)));
        assert!((below.0 / above.0 - 1.0).abs() < 1e-10 && (below.1 / above.1 - 1.0).abs() < 1e-10);
        for alpha in [1e-300, 1e-17, 1.0 - 1e-16] {
            let settings = MaskedLossSettings { objective: Objective::Dmpo, alpha, ..Default::default() };
            let term = terms(&settings, &[errors(0.1, 0.101)])[0];
            assert!(term.loss.is_finite() && term.by_w.is_finite(), "{alpha}: {term:?}");
        }
    }

    #[test]
    fn the_log_sigmoid_is_finite_wherever_its_value_is() {
        assert_eq!(log_sigmoid(-1e4), -1e4);
        assert_eq!(log_sigmoid(1e4), 0.0);
        assert_eq!(log_sigmoid(0.0), -std::f64::consts::LN_2);
    }

    #[test]
    fn the_baseline_of_kto_is_the_mean_gain_of_the_batch() {
        let settings = MaskedLossSettings { objective: Objective::Kto, beta: 100.0, ..Default::default() };
        // Gains 0.003 and 0.001: baseline 0.002.
        let pair = PairErrors { d_w: -0.003, d_l: -0.001, ..Default::default() };
        let found = terms(&settings, &[pair])[0];
        assert!((found.loss - (1.0 - sigmoid(0.1))).abs() < 1e-12, "{found:?}");
    }
}
