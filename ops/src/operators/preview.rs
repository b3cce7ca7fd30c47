//! `preview`: the masks drawn over the winner.
//!
//! Shape letters: `B` batch, `h` `w` focus grid.

use dfdx::shapes::HasShape;
use prefgraph_nn::size;

use super::{
    canvas::{Canvas, GAP},
    tensors::same,
};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Effects, EffectsShape, Images, Mask, Texts},
    row_major::RowMajor,
    settings,
};

settings! {
    /// Settings of [`Preview`].
    pub struct PreviewSettings {
        /// Steps between two previews; the first step always has one.
        pub every: u64 = 50,
        /// Samples of the batch that are shown.
        pub samples: usize = 4,
    }
}

/// A strip for every sample, one below the other: the winner, then the winner under each mask.
pub struct Preview(PreviewSettings);

/// What is left of a pixel's light where the mask is zero.
const DIM: f32 = 0.15;

impl Operator for Preview {
    const NAME: &'static str = "preview";
    const DOC: &'static str = "A picture of the batch every so many steps: the winner, and the winner under each \
                               connected mask (prior, M_s, M_d, M).";
    const IN: [&'static str; 6] = ["images", "prior", "structure", "detail", "mask", "ids"];
    const OUT: [&'static str; 1] = ["picture"];
    type Settings = PreviewSettings;
    type In = (Images, Option<Mask>, Option<Mask>, Option<Mask>, Option<Mask>, Option<Texts>);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PreviewSettings) -> Result<Self, OpError> {
        if settings.every == 0 || settings.samples == 0 {
            return Err(OpError::new("every and samples: at least 1 is needed"));
        }
        Ok(Self(settings))
    }

    fn due(&self, step: u64) -> bool {
        step.is_multiple_of(self.0.every)
    }

    fn shapes(
        &self,
        (images, prior, structure, detail, mask, _): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let masks = [("prior", prior), ("structure", structure), ("detail", detail), ("mask", mask)];
        let mut columns = 1;
        for (name, mask) in masks.into_iter().filter_map(|(n, m)| Some((n, m?))) {
            same(&format!("the batch of `{name}`"), mask.0, "that of `images`", images.batch)?;
            columns += 1;
        }
        let (batch, height, width) = (images.batch, images.height + GAP, images.width + GAP);
        let bytes = size::product([3, batch.min(self.0.samples), height, width, columns]);
        Ok((EffectsShape { bytes },))
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (images, prior, structure, detail, mask, ids): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        if !self.due(ctx.step) {
            return Ok(((Effects::default(),), ()));
        }
        let masks: Vec<Mask> = [prior, structure, detail, mask].into_iter().flatten().collect();
        let (height, width) = (images.height, images.width);
        let rows = images.batch.min(self.0.samples);
        let mut canvas = Canvas::new(rows * (height + GAP) - GAP, (masks.len() + 1) * (width + GAP) - GAP);
        for b in 0..rows {
            let top = b * (height + GAP);
            canvas.paint((top, 0), (height, width), images.picture(b), |_, _| 1.0);
            for (column, mask) in masks.iter().enumerate() {
                let &(_, _, h, w) = HasShape::shape(mask);
                let values = mask.row_major();
                let cells = &values[b * h * w..(b + 1) * h * w];
                let light = |y: usize, x: usize| {
                    DIM + (1.0 - DIM) * cells[(y * h / height) * w + x * w / width].clamp(0.0, 1.0)
                };
                let left = (column + 1) * (width + GAP);
                canvas.paint((top, left), (height, width), images.picture(b), light);
            }
        }
        Ok(((Effects(vec![canvas.preview("", ctx.step, ids.as_ref())]),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operators::testing::{Bench, mask_of},
        ports::Effect,
    };

    #[test]
    fn a_mask_dims_the_winner_where_it_is_zero() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let images = Images { batch: 2, height: 4, width: 4, rgb: vec![200; 96].into() };
        let mask = mask_of(&ctx, (2, 1, 2), &[1.0, 0.0, 0.0, 1.0]);
        let op = Preview::new(PreviewSettings { every: 2, samples: 8 }).unwrap();
        let ids = Texts(vec!["a/b 1".to_owned(), String::new()].into());
        let inputs = (images, None, None, None, Some(mask), Some(ids));
        assert!(op.forward(&bench.at(1), inputs.clone()).unwrap().0.0.0.is_empty());
        let ((effects,), ()) = op.forward(&ctx, inputs).unwrap();
        let [Effect::Preview(name, picture)] = &effects.0[..] else { panic!("one preview") };
        assert_eq!((name.as_str(), picture.height, picture.width), ("step-000000-a_b_1", 12, 12));
        let pixel = |y: usize, x: usize| picture.rgb[(y * 12 + x) * 3];
        assert_eq!([pixel(0, 0), pixel(0, 5), pixel(0, 8), pixel(0, 11)], [200, 255, 200, 30]);
        assert_eq!([pixel(5, 0), pixel(8, 8), pixel(8, 11)], [255, 30, 200]);
    }
}
