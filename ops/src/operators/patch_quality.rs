//! `patch-quality`: how well another picture reproduces each patch of a picture (PatchDPO).
//!
//! Shape letters: `B` batch, `h` `w` patches of the generated picture, `p` `q` of the reference, `F` feature width.

use dfdx::shapes::{Const, HasShape};

use super::tensors::{mask, same};
use crate::{
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Features, Quality},
    role::As,
    row_major::RowMajor,
    settings::Nothing,
};

/// For every patch of either picture, the largest cosine with a patch of the other.
pub struct PatchQuality;

/// Rows of `x`, each of unit length; a row of zeros stays.
fn normalised(x: &[f32], width: usize) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    for row in out.chunks_exact_mut(width) {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|v| *v /= length);
        }
    }
    out
}

impl Operator for PatchQuality {
    const NAME: &'static str = "patch-quality";
    const DOC: &'static str = "For every patch of the generated picture and of the reference, the largest cosine with a \
                               patch of the other (PatchDPO).";
    const IN: [&'static str; 2] = ["f_gen", "f_ref"];
    const OUT: [&'static str; 2] = ["q_gen", "q_ref"];
    type Settings = Nothing;
    /// `[B, h, w, F]` and `[B, p, q, F]`.
    type In = (Features, Features);
    type Out = (Quality, Quality);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(&self, (generated, reference): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let (batch, height, width, features) = generated;
        same("batch and width of f_ref", (reference.0, reference.3), "those of f_gen", (batch, features))?;
        if [batch, features, height, width, reference.1, reference.2].contains(&0) {
            return Err(OpError::new(format!(
                "f_gen {generated:?} and f_ref {reference:?}: there are no features"
            )));
        }
        Ok(((batch, Const, height, width), (batch, Const, reference.1, reference.2)))
    }

    fn cost(&self, (generated, reference): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        let (batch, h, w, features) = *generated;
        let products: f64 =
            [batch, h, w, reference.1, reference.2, features].into_iter().map(|n| n as f64).product();
        Cost { forward_flops: 2.0 * products, ..Cost::default() }
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (As(_, generated), As(_, reference)): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let &(batch, h, w, width) = HasShape::shape(&generated);
        let &(_, p, q, _) = HasShape::shape(&reference);
        let (generated, reference) = (generated.row_major(), reference.row_major());
        let (mut q_gen, mut q_ref) = (Vec::new(), Vec::new());
        for b in 0..batch {
            let ours = normalised(&generated[b * h * w * width..(b + 1) * h * w * width], width);
            let theirs = normalised(&reference[b * p * q * width..(b + 1) * p * q * width], width);
            let mut best_of_ref = vec![f64::NEG_INFINITY; p * q];
            for (cell, row) in ours.chunks_exact(width).enumerate() {
                let mut best = f64::NEG_INFINITY;
                for (other, best_of_ref) in theirs.chunks_exact(width).zip(&mut best_of_ref) {
                    let cosine: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                    best = best.max(cosine);
                    *best_of_ref = best_of_ref.max(cosine);
                }
                if !best.is_finite() {
                    return Err(OpError::new(format!(
                        "sample {b}: the features of patch {cell} are not finite"
                    )));
                }
                q_gen.push(best as f32);
            }
            // A cosine that is no number is passed over by `max`, so that the other side's patches alone do not show it.
            if let Some(cell) = best_of_ref.iter().position(|best| !best.is_finite()) {
                return Err(OpError::new(format!(
                    "sample {b}: the features of the reference's patch {cell} are not finite"
                )));
            }
            q_ref.extend(best_of_ref.into_iter().map(|q| q as f32));
        }
        Ok(((mask(ctx, (batch, h, w), q_gen)?.into(), mask(ctx, (batch, p, q), q_ref)?.into()), ()))
    }
}

#[cfg(test)]
mod tests {
    use prefgraph_nn::files::TensorFiles;

    use super::*;
    use crate::operators::{
        tensors::tensor,
        testing::{Bench, case, worst},
    };

    #[test]
    fn features_that_are_not_finite_are_refused_on_either_side() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let features = |bad: Option<usize>| -> Features {
            let mut values: Vec<f32> = (1u8..=8).map(f32::from).collect();
            bad.into_iter().for_each(|at| values[at] = f32::NAN);
            tensor(&ctx, (1, 2, 2, 2), values).unwrap().into()
        };
        let refused = |ours, theirs| {
            PatchQuality.forward(&ctx, (features(ours), features(theirs))).err().map(|e| e.to_string())
        };
        assert_eq!(refused(None, None), None);
        assert!(refused(Some(2), None).unwrap().contains("features of patch 1 are not finite"));
        assert!(
            refused(None, Some(7)).unwrap().contains("features of the reference's patch 3 are not finite")
        );
    }

    #[test]
    fn qualities_are_those_of_the_golden_cases() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        for name in ["flux_uno", "flux_uno_multi"] {
            let files = TensorFiles::open(&case(name).join("forward.safetensors")).unwrap();
            let features = |name: &str| -> Features {
                let s = files.info(name).unwrap().shape.clone();
                tensor(&ctx, (s[0], s[1], s[2], s[3]), files.read(name).unwrap()).unwrap().into()
            };
            let ((q_gen, q_ref), ()) =
                PatchQuality.forward(&ctx, (features("f_gen"), features("f_ref"))).unwrap();
            for (found, golden) in [(q_gen, "patch_quality_gen"), (q_ref, "patch_quality_ref")] {
                assert!(worst(&found.as_vec(), &files.read(golden).unwrap()) < 1e-6, "{name} {golden}");
            }
        }
    }
}
