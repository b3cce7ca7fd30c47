//! `mask-field`: the parts of the subjects that were not found (FocusDPO, Eq. 6).
//!
//! Shape letters: `B` batch, `R` subjects, `h` `w` focus grid.

use dfdx::shapes::HasShape;

use super::tensors::{mask, same};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{List, Mask, Prior, Structure},
    row_major::RowMajor,
    settings::Nothing,
};

/// `M_s`: the cells of each subject's prior that its own reference did not find, united over subjects; and the
/// union of the priors. Subject by subject, because a subject found by another's reference is not found.
pub struct MaskField;

impl Operator for MaskField {
    const NAME: &'static str = "mask-field";
    const DOC: &'static str = "Unite over subjects the prior less what was matched (M_s, FocusDPO Eq. 6), and the \
                               priors themselves. Without `matched` both are the union of the priors.";
    const IN: [&'static str; 2] = ["matched", "priors"];
    const OUT: [&'static str; 2] = ["structure", "prior"];
    type Settings = Nothing;
    type In = (Option<List<Mask>>, List<Mask>);
    type Out = (Structure, Prior);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(&self, (matched, priors): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let Some(first) = priors.0.first().copied() else {
            return Err(OpError::new(
                "the samples have no references, and a focus mask needs at least one subject: leave such samples out with \
                 `reference_counts: [1, 2]` on the node that reads them (its notes and `graph-run data check` name their \
                 lines), or give them references",
            ));
        };
        for (r, prior) in priors.0.iter().enumerate() {
            same(&format!("the prior of subject {r}"), *prior, "that of subject 0", first)?;
        }
        if let Some(matched) = matched {
            same("`matched`", matched, "`priors`", priors)?;
        }
        Ok((first, first))
    }

    fn forward(&self, ctx: &Ctx<'_>, (matched, priors): Self::In) -> Result<(Self::Out, ()), OpError> {
        let &(batch, _, height, width) = HasShape::shape(&priors.0[0]);
        let mut structure = vec![0f32; batch * height * width];
        let mut union = structure.clone();
        for (r, prior) in priors.0.iter().enumerate() {
            let prior = prior.row_major();
            let matched = matched.as_ref().map_or_else(|| vec![0.0; prior.len()], |m| m.0[r].row_major());
            for (i, (prior, matched)) in prior.into_iter().zip(matched).enumerate() {
                structure[i] = structure[i].max(prior * (1.0 - matched));
                union[i] = union[i].max(prior);
            }
        }
        let shape = (batch, height, width);
        Ok(((mask(ctx, shape, structure)?.into(), mask(ctx, shape, union)?.into()), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::{Bench, mask_of};

    #[test]
    fn a_subject_found_by_the_other_reference_is_not_found() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let m = |v: &[f32]| mask_of(&ctx, (1, 1, 4), v);
        let priors = List(vec![m(&[1., 1., 0., 0.]), m(&[0., 0., 1., 0.])]);
        let matched = List(vec![m(&[1., 0., 1., 0.]), m(&[0., 1., 0., 0.])]);
        let ((structure, prior), ()) = MaskField.forward(&ctx, (Some(matched), priors)).unwrap();
        assert_eq!(structure.as_vec(), [0., 1., 1., 0.]);
        assert_eq!(prior.as_vec(), [1., 1., 1., 0.]);
    }
}
