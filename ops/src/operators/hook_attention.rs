//! `hook-attention`: which target tokens a reference found (FocusDPO, Eq. 3 to 5).
//!
//! Shape letters: `B` batch, `R` references, `T = h w` tokens of the focus grid.

use dfdx::shapes::HasShape;

use super::tensors::{mask, same};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{List, ListShape, Mask, Scores},
    row_major::RowMajor,
    settings::Nothing,
    words::count,
};

/// M' of every subject: the `K_r` target tokens most similar to its reference, `K_r` being the number of cells that
/// the subject occupies in the prior.
pub struct HookAttention;

/// Ones at the `count` largest scores; of equal scores the lower index wins.
fn top(scores: &[f32], count: usize) -> Vec<f32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let mut out = vec![0.0; scores.len()];
    order[..count].iter().for_each(|i| out[*i] = 1.0);
    out
}

impl Operator for HookAttention {
    const NAME: &'static str = "hook-attention";
    const DOC: &'static str = "Mark, for every subject, as many target tokens as it occupies in the prior: those \
                               most similar to its reference (FocusDPO, Eq. 3 to 5).";
    const IN: [&'static str; 2] = ["scores", "priors"];
    const OUT: [&'static str; 1] = ["matched"];
    type Settings = Nothing;
    type In = (List<Scores>, List<Mask>);
    type Out = (List<Mask>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(&self, (scores, priors): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        if scores.0.is_empty() && !priors.0.is_empty() {
            return Err(OpError::new(format!(
                "{} came without scores: set `hooks: all` on the node that gives the scores",
                count(priors.0.len(), "prior")
            )));
        }
        same("the number of scored references", scores.0.len(), "the number of priors", priors.0.len())?;
        for (r, (scores, prior)) in scores.0.iter().zip(&priors.0).enumerate() {
            let tokens = (prior.0, prior.2 * prior.3);
            same(&format!("batch and tokens of the scores of reference {r}"), *scores, "its prior", tokens)?;
        }
        Ok((ListShape(priors.0),))
    }

    fn forward(&self, ctx: &Ctx<'_>, (scores, priors): Self::In) -> Result<(Self::Out, ()), OpError> {
        let one = |(r, (scores, prior)): (usize, (&Scores, &Mask))| {
            let &(batch, _, height, width) = HasShape::shape(prior);
            let tokens = height * width;
            let (scores, prior) = (scores.row_major(), prior.row_major());
            let mut matched = Vec::with_capacity(batch * tokens);
            for (b, (scores, prior)) in
                scores.chunks_exact(tokens).zip(prior.chunks_exact(tokens)).enumerate()
            {
                if let Some(at) = scores.iter().position(|s| !s.is_finite()) {
                    let score = scores[at];
                    let what = format!("sample {b}: the score of reference {r} at token {at} is {score}");
                    return Err(OpError::not_finite(ctx.step, what));
                }
                matched.extend(top(scores, prior.iter().filter(|p| **p > 0.5).count()));
            }
            mask(ctx, (batch, height, width), matched)
        };
        let all = scores.0.iter().zip(&priors.0).enumerate().map(one);
        Ok(((List(all.collect::<Result<_, _>>()?),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::{
        tensors::tensor,
        testing::{Bench, mask_of},
    };

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top(&[0.5, 0.9, 0.5, 0.5, -0.0, 0.0], 2), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(top(&[0.1; 4], 3), [1.0, 1.0, 1.0, 0.0]);
        assert_eq!(top(&[0.1; 4], 0), [0.0; 4]);
    }

    #[test]
    fn a_subject_gets_as_many_tokens_as_it_has_cells() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let scores = tensor(&ctx, (2, 4), vec![0.1, 0.4, 0.3, 0.2, 0.9, 0.1, 0.1, 0.1]).unwrap();
        let prior = mask_of(&ctx, (2, 2, 2), &[1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let ((found,), ()) = HookAttention.forward(&ctx, (List(vec![scores]), List(vec![prior]))).unwrap();
        assert_eq!(found.0[0].as_vec(), [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn scores_that_were_switched_off_say_so() {
        let prior = (1, dfdx::shapes::Const::<1>, 2, 2);
        let error = HookAttention.shapes((ListShape(vec![]), ListShape(vec![prior])), 0).unwrap_err();
        assert!(error.to_string().contains("hooks: all"), "{error}");
    }
}
