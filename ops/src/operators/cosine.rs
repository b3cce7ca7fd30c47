//! `cosine`: how much each of two lists of embeddings resembles the other, row by row.
//!
//! Shape letters: `B` rows, `F` width.

use dfdx::shapes::HasShape;

use super::tensors::{same, tensor};
use crate::{
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Embeddings, PerSample},
    row_major::RowMajor,
    settings::Nothing,
};

/// The cosine of two vectors, summed in f64; `None` where one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    (lengths > 0.0).then(|| dot(a, b) / lengths)
}

/// One cosine a row.
pub struct Cosine;

impl Operator for Cosine {
    const NAME: &'static str = "cosine";
    const DOC: &'static str =
        "The cosine of the embeddings in each row, e.g. of a picture and its prompt (CLIP-T).";
    const IN: [&'static str; 2] = ["a", "b"];
    const OUT: [&'static str; 1] = ["cosines"];
    type Settings = Nothing;
    /// `[B, F]` each.
    type In = (Embeddings, Embeddings);
    type Out = (PerSample,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    // Embeddings are compared by whoever asks for them; nobody is not somebody.
    fn due(&self, _: u64) -> bool {
        false
    }

    fn shapes(&self, (a, b): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        same("batch and width of `b`", b, "those of `a`", a)?;
        Ok(((a.0,),))
    }

    fn cost(&self, (a, _): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost { forward_flops: 6.0 * a.0 as f64 * a.1 as f64, ..Cost::default() }
    }

    fn forward(&self, ctx: &Ctx<'_>, (a, b): Self::In) -> Result<(Self::Out, ()), OpError> {
        let &(rows, width) = HasShape::shape(&*a);
        let (a, b) = (a.row_major(), b.row_major());
        let pairs = a.chunks_exact(width).zip(b.chunks_exact(width));
        let found = pairs.enumerate().map(|(row, (a, b))| {
            let cosine = cosine(a, b).filter(|c| c.is_finite());
            let cosine =
                cosine.ok_or_else(|| OpError::new(format!("row {row}: an embedding without a direction")))?;
            Ok(cosine as f32)
        });
        Ok(((tensor(ctx, (rows,), found.collect::<Result<_, OpError>>()?)?,), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;

    #[test]
    fn cosines_are_of_rows_and_have_no_length() {
        let bench = Bench::new();
        let rows =
            |values: &[f32]| -> Embeddings { tensor(&bench.ctx(), (3, 2), values.to_vec()).unwrap().into() };
        let (a, b) = (rows(&[3.0, 4.0, 1.0, 0.0, 1.0, 1.0]), rows(&[6.0, 8.0, 0.0, 5.0, -2.0, -2.0]));
        let ((found,), ()) = Cosine.forward(&bench.ctx(), (a.clone(), b)).unwrap();
        assert_eq!(found.as_vec(), [1.0, 0.0, -1.0]);
        let error = Cosine.forward(&bench.ctx(), (a, rows(&[0.0; 6]))).err().unwrap().to_string();
        assert!(error.contains("row 0"), "{error}");
        let error = Cosine.shapes(((3, 2), (3, 4)), 0).unwrap_err().to_string();
        assert!(error.contains("must be equal"), "{error}");
    }
}
