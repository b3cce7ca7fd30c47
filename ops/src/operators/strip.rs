//! `strip`: what the networks draw, next to what they were asked for.
//!
//! Shape letters: `B` batch, `R` references.

use prefgraph_nn::size;

use super::{
    canvas::{Canvas, GAP},
    tensors::same,
};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Effects, EffectsShape, ImageShape, Images, List, Texts},
    settings,
};

settings! {
    /// Settings of [`Strip`].
    pub struct StripSettings {
        /// Steps between two strips; the first step always has one. At the others, what only this node reads is not computed.
        pub every: u64 = 50,
        /// Samples of the batch that are shown.
        pub samples: usize = 4,
    }
}

/// A row for every sample, one below the other: its references, the winner, and the samples of the base, of the reference
/// and of the policy, as far as they are connected.
pub struct Strip(StripSettings);

/// Rows and columns of pixels of a column's pictures.
type Size = (usize, usize);

impl Strip {
    fn rows(&self, batch: usize) -> usize {
        batch.min(self.0.samples)
    }

    /// Rows and columns of pixels of the whole.
    fn size(&self, batch: usize, columns: &[Size]) -> Size {
        let tallest = columns.iter().map(|c| c.0).max().unwrap_or(0);
        let width: usize = columns.iter().map(|c| c.1 + GAP).sum();
        (self.rows(batch).saturating_mul(tallest + GAP) - GAP, width - GAP)
    }
}

impl Operator for Strip {
    const NAME: &'static str = "strip";
    const DOC: &'static str = "A picture of samples every so many steps: a row for each, with its references, the winner, \
                               and what base, reference and policy drew, as far as they are connected.";
    const IN: [&'static str; 6] = ["references", "winner", "base", "reference", "policy", "ids"];
    const OUT: [&'static str; 1] = ["picture"];
    type Settings = StripSettings;
    type In =
        (Option<List<Images>>, Option<Images>, Option<Images>, Option<Images>, Option<Images>, Option<Texts>);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: StripSettings) -> Result<Self, OpError> {
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
        (references, winner, base, reference, policy, _): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let references = references.map_or_else(Vec::new, |r| r.0);
        let mut columns: Vec<(String, ImageShape)> =
            references.into_iter().enumerate().map(|(r, shape)| (format!("reference {r}"), shape)).collect();
        for (name, shape) in
            [("winner", winner), ("base", base), ("reference", reference), ("policy", policy)]
        {
            columns.extend(shape.map(|shape| (format!("`{name}`"), shape)));
        }
        let Some((first, batch)) = columns.first().map(|(name, shape)| (name.clone(), shape.batch)) else {
            return Err(OpError::new("there is nothing to show: connect `policy`, or another input"));
        };
        for (name, shape) in &columns[1..] {
            same(&format!("the batch of {name}"), shape.batch, &format!("that of {first}"), batch)?;
        }
        let sizes: Vec<Size> = columns.iter().map(|(_, shape)| (shape.height, shape.width)).collect();
        let (height, width) = self.size(batch, &sizes);
        Ok((EffectsShape { bytes: size::product([3, height, width]) },))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        match self.0.every {
            1 => Vec::new(),
            every => {
                vec![format!("every {every} steps; in other steps its inputs are not computed")]
            }
        }
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (references, winner, base, reference, policy, ids): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        if !self.due(ctx.step) {
            return Ok(((Effects::default(),), ()));
        }
        let columns: Vec<Images> = references
            .map_or_else(Vec::new, |r| r.0)
            .into_iter()
            .chain([winner, base, reference, policy].into_iter().flatten())
            .collect();
        let batch = columns.first().map_or(0, |c| c.batch);
        let sizes: Vec<Size> = columns.iter().map(|c| (c.height, c.width)).collect();
        let (height, width) = self.size(batch, &sizes);
        let mut canvas = Canvas::new(height, width);
        let rows = self.rows(batch);
        for row in 0..rows {
            let top = row * ((height + GAP) / rows);
            let mut left = 0;
            for (column, &size) in columns.iter().zip(&sizes) {
                canvas.paint((top, left), size, column.picture(row), |_, _| 1.0);
                left += size.1 + GAP;
            }
        }
        Ok(((Effects(vec![canvas.preview("samples-", ctx.step, ids.as_ref())]),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;
    use crate::ports::{Effect, ListShape, TextsShape};

    fn plain(batch: usize, (height, width): Size, value: u8) -> Images {
        Images { batch, height, width, rgb: vec![value; batch * height * width * 3].into() }
    }

    fn strip(every: u64) -> Strip {
        Strip::new(StripSettings { every, samples: 2 }).unwrap()
    }

    #[test]
    fn a_row_shows_references_winner_base_reference_and_policy_in_this_order() {
        let bench = Bench::new();
        let of = |value| Some(plain(3, (4, 6), value));
        let references = List(vec![plain(3, (2, 2), 10), plain(3, (2, 2), 20)]);
        let ids = Texts(vec!["a/b".to_owned(), String::new(), String::new()].into());
        let inputs = (Some(references), of(30), of(40), of(50), of(60), Some(ids));
        let ((effects,), ()) = strip(5).forward(&bench.at(5), inputs).unwrap();
        let [Effect::Preview(name, picture)] = &effects.0[..] else { panic!("one preview") };
        assert_eq!(name, "samples-step-000005-a_b");
        // Two rows of the three samples; two references of 2 columns, four pictures of 6, five gaps.
        assert_eq!((picture.height, picture.width), (2 * 4 + GAP, 2 * 2 + 4 * 6 + 5 * GAP));
        let line = |y: usize| -> Vec<u8> {
            (0..picture.width).map(|x| picture.rgb[(y * picture.width + x) * 3]).collect()
        };
        let mut runs: Vec<(u8, usize)> = Vec::new();
        for value in line(4 + GAP) {
            match runs.last_mut() {
                Some((last, count)) if *last == value => *count += 1,
                _ => runs.push((value, 1)),
            }
        }
        let white = (255, GAP);
        let expected =
            [(10, 2), white, (20, 2), white, (30, 6), white, (40, 6), white, (50, 6), white, (60, 6)];
        assert_eq!(runs, expected);
        // Below a small picture, and between two rows, there is nothing.
        assert_eq!((line(3)[0], line(3)[2 * (2 + GAP)]), (255, 30));
        assert!(line(4).iter().all(|v| *v == 255));
    }

    #[test]
    fn it_is_due_at_the_first_step_and_every_so_many_after_it() {
        let bench = Bench::new();
        let op = strip(4);
        assert_eq!((0..9).filter(|s| op.due(*s)).collect::<Vec<_>>(), [0, 4, 8]);
        let inputs = (None, Some(plain(1, (2, 2), 0)), None, None, None, None);
        assert!(op.forward(&bench.at(3), inputs).unwrap().0.0.0.is_empty());
    }

    #[test]
    fn pictures_of_other_batches_and_no_pictures_at_all_are_refused() {
        let shape = |batch| ImageShape { batch, height: 2, width: 2 };
        let references = ListShape(vec![shape(2)]);
        let ids = Some(TextsShape { batch: 2 });
        let error =
            strip(1).shapes((Some(references), None, None, None, Some(shape(3)), ids), 0).unwrap_err();
        assert!(
            error.to_string().contains("`policy`") && error.to_string().contains("reference 0"),
            "{error}"
        );
        let error = strip(1).shapes((None, None, None, None, None, None), 0).unwrap_err();
        assert!(error.to_string().contains("nothing to show"), "{error}");
    }
}
