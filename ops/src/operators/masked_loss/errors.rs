//! The errors of a sample, summed in f64, and their gradient with respect to the policy's prediction.
//!
//! Shape letters: `C` latent channels, `H` `W` latent grid; a sample is `[C, H, W]`, a weight `[H, W]`.

use crate::choices;

choices! {
    /// What a sum of weighted squared errors is divided by.
    pub enum Reduction {
        /// C H W: a mask scales the logit with its area, and beta means what it means without one.
        FullMean = "full_mean",
        /// C times the sum of the squared mask: beta does not depend on the mask's area.
        MaskMean = "mask_mean",
        /// One: the squared norm, as the papers write it.
        Sum = "sum",
    }
}

/// A sample's predictions, target and squared mask.
#[derive(Clone, Copy)]
pub(super) struct Sample<'a> {
    pub policy: &'a [f32],
    pub target: &'a [f32],
    pub reference: Option<&'a [f32]>,
    /// The mask squared, one a latent cell: the weight stands inside the norm.
    pub weight: &'a [f64],
}

impl Sample<'_> {
    /// Which of what is given, and not trained, holds values that are not finite; `None` if all are.
    pub fn given(&self) -> Option<&'static str> {
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        match self {
            Self { target, .. } if !finite(target) => Some("`target`"),
            Self { reference: Some(reference), .. } if !finite(reference) => Some("`reference`"),
            Self { weight, .. } if !weight.iter().all(|v| v.is_finite()) => Some("`mask`"),
            _ => None,
        }
    }
}

/// The errors of a sample.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    /// The policy's, weighted and reduced.
    pub policy: f64,
    /// The reference's, likewise.
    pub reference: f64,
    /// Their difference.
    pub difference: f64,
    /// The policy's mean squared error without a mask.
    pub plain: f64,
    /// The same less the reference's; the same itself where there is no reference.
    pub plain_difference: f64,
    /// Mean squared distance of policy and reference without a mask.
    pub drift: f64,
}

/// By how much each of a sample's errors is to be multiplied in the loss's derivative.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pull {
    pub policy: f64,
    pub plain: f64,
    pub drift: f64,
}

impl Reduction {
    /// The divisor for `channels` and a squared mask.
    pub(super) fn divisor(self, channels: usize, weight: &[f64]) -> f64 {
        match self {
            Self::FullMean => (channels * weight.len()) as f64,
            Self::MaskMean => channels as f64 * weight.iter().sum::<f64>(),
            Self::Sum => 1.0,
        }
    }
}

/// `x / divisor`; a mask that is zero everywhere has no error.
fn over(x: f64, divisor: f64) -> f64 {
    if divisor > 0.0 { x / divisor } else { 0.0 }
}

/// A value of a sample's tensors, in f64.
struct Cell {
    policy: f64,
    target: f64,
    reference: Option<f64>,
    weight: f64,
}

impl Sample<'_> {
    /// The values of each channel: the weights are the same in all.
    fn channels(&self) -> impl Iterator<Item = impl Iterator<Item = Cell>> {
        let cells = self.weight.len().max(1);
        let channels = self.policy.chunks_exact(cells).zip(self.target.chunks_exact(cells)).enumerate();
        channels.map(move |(channel, (policy, target))| {
            let reference = self.reference.map(|values| &values[channel * cells..][..cells]);
            let values = policy.iter().zip(target).zip(self.weight).enumerate();
            values.map(move |(i, ((policy, target), weight))| Cell {
                policy: f64::from(*policy),
                target: f64::from(*target),
                reference: reference.map(|values| f64::from(values[i])),
                weight: *weight,
            })
        })
    }

    /// All errors. The difference of policy and reference is the sum of `M^2 (p - r)(p + r - 2 target)`: two sums of
    /// nearly equal squares would cancel, and beta would amplify what is left of them.
    pub(super) fn errors(&self, reduction: Reduction) -> Errors {
        let cells = self.weight.len();
        let mut sums = Errors::default();
        self.channels().flatten().for_each(|Cell { policy, target, reference, weight }| {
            let error = (policy - target) * (policy - target);
            sums.policy += weight * error;
            sums.plain += error;
            if let Some(reference) = reference {
                let step = policy - reference;
                sums.reference += weight * (reference - target) * (reference - target);
                sums.difference += weight * step * (policy + reference - 2.0 * target);
                sums.plain_difference += step * (policy + reference - 2.0 * target);
                sums.drift += step * step;
            }
        });
        let divisor = reduction.divisor(self.policy.len() / cells, self.weight);
        let all = self.policy.len() as f64;
        let (policy, plain) = (over(sums.policy, divisor), sums.plain / all);
        let compared = self.reference.is_some();
        Errors {
            policy,
            reference: over(sums.reference, divisor),
            difference: if compared { over(sums.difference, divisor) } else { policy },
            plain,
            plain_difference: if compared { sums.plain_difference / all } else { plain },
            drift: sums.drift / all,
        }
    }

    /// The derivative of `pull.policy * policy + pull.plain * plain + pull.drift * drift` by the prediction.
    pub(super) fn gradient(&self, reduction: Reduction, pull: Pull, out: &mut Vec<f32>) {
        let cells = self.weight.len();
        let divisor = reduction.divisor(self.policy.len() / cells, self.weight);
        let all = self.policy.len() as f64;
        let (masked, plain) = (2.0 * over(pull.policy, divisor), 2.0 * pull.plain / all);
        let drift = 2.0 * pull.drift / all;
        let gradient = |Cell { policy, target, reference, weight }| {
            let by = (masked * weight + plain) * (policy - target);
            reference.map_or(by, |reference| by + drift * (policy - reference)) as f32
        };
        for cells in self.channels() {
            out.extend(cells.map(gradient));
        }
    }
}

/// The squares of a token mask `[h, w]` on the latent grid `[rows, columns]` that it covers.
pub(super) fn squared_on_grid(mask: &[f32], width: usize, (rows, columns): (usize, usize)) -> Vec<f64> {
    let factor = columns / width;
    let cell = |y: usize, x: usize| f64::from(mask[y / factor * width + x / factor]);
    (0..rows).flat_map(|y| (0..columns).map(move |x| cell(y, x) * cell(y, x))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_token_covers_its_cells() {
        let found = squared_on_grid(&[1.0, 0.5], 2, (2, 4));
        assert_eq!(found, [1.0, 1.0, 0.25, 0.25, 1.0, 1.0, 0.25, 0.25]);
    }

    #[test]
    fn the_difference_does_not_cancel_where_the_errors_agree_to_the_last_bits() {
        let mut random = Random::new(1, "", 0, "");
        let target = random.normals(4096);
        let reference = random.normals(4096);
        let policy: Vec<f32> = reference.iter().map(|r| r * (1.0 + f32::EPSILON)).collect();
        let weight = vec![1.0; 1024];
        let sample =
            Sample { policy: &policy, target: &target, reference: Some(&reference), weight: &weight };
        let found = sample.errors(Reduction::FullMean).difference;
        // The first order of e - r, in the exact steps that f32 made.
        let exact: f64 = (0..4096)
            .map(|i| {
                let (p, r, t) = (f64::from(policy[i]), f64::from(reference[i]), f64::from(target[i]));
                (p - r) * ((p - t) + (r - t))
            })
            .sum::<f64>()
            / 4096.0;
        assert!((found - exact).abs() < 1e-9 * exact.abs(), "{found} {exact}");
    }

    #[test]
    fn reductions_differ_by_their_divisors_and_an_empty_mask_gives_zero() {
        let weight = [1.0, 0.25, 0.0, 0.0];
        assert_eq!(Reduction::FullMean.divisor(3, &weight), 12.0);
        assert_eq!(Reduction::MaskMean.divisor(3, &weight), 3.75);
        let sample = Sample { policy: &[1.0; 4], target: &[0.0; 4], reference: None, weight: &[0.0; 4] };
        assert_eq!(sample.errors(Reduction::MaskMean).policy, 0.0);
    }
}
