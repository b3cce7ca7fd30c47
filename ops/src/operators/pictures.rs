//! `pictures`: every picture of a batch as a file of its own.
//!
//! Shape letters: `B` batch.

use std::sync::Arc;

use super::{canvas::file_part, tensors::same};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Effect, Effects, EffectsShape, Images, Picture, Texts},
    settings,
    shape::PortShape,
};

settings! {
    /// Settings of [`Pictures`].
    pub struct PicturesSettings {
        /// Steps between two batches that are written; the first step's always is.
        pub every: u64 = 1,
        /// What the names of the files begin with.
        pub name: String = "picture".to_owned(),
    }
}

/// Files `NAME-step-STEP-ROW-ID` in the preview folder: the row tells samples with the same id apart.
pub struct Pictures(PicturesSettings);

impl Operator for Pictures {
    const NAME: &'static str = "pictures";
    const DOC: &'static str =
        "Write every picture of a batch to a file of its own, named by step, row and id.";
    const IN: [&'static str; 2] = ["images", "ids"];
    const OUT: [&'static str; 1] = ["files"];
    type Settings = PicturesSettings;
    type In = (Images, Option<Texts>);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PicturesSettings) -> Result<Self, OpError> {
        if settings.every == 0 {
            return Err(OpError::new("every: at least 1 is needed"));
        }
        if settings.name.is_empty() || file_part(&settings.name) != settings.name {
            return Err(OpError::new(format!(
                "name {:?}: up to 40 letters, digits, `-` and `_` are needed",
                settings.name
            )));
        }
        Ok(Self(settings))
    }

    fn due(&self, step: u64) -> bool {
        step.is_multiple_of(self.0.every)
    }

    fn shapes(&self, (images, ids): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        if let Some(ids) = ids {
            same("the batch of `ids`", ids.batch, "that of `images`", images.batch)?;
        }
        Ok((EffectsShape { bytes: images.bytes() },))
    }

    fn forward(&self, ctx: &Ctx<'_>, (images, ids): Self::In) -> Result<(Self::Out, ()), OpError> {
        if !self.due(ctx.step) {
            return Ok(((Effects::default(),), ()));
        }
        let file = |row: usize| {
            let id = ids.as_ref().map(|ids| format!("-{}", file_part(&ids.0[row]))).unwrap_or_default();
            let name = format!("{}-step-{:06}-{row}{id}", self.0.name, ctx.step);
            let rgb = Arc::new(images.picture(row).to_vec());
            Effect::Preview(name, Picture { height: images.height, width: images.width, rgb })
        };
        Ok(((Effects((0..images.batch).map(file).collect()),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;

    #[test]
    fn every_picture_has_a_file_of_its_own_though_its_id_may_occur_twice() {
        let bench = Bench::new();
        let rgb: Vec<u8> = (0..2 * 2 * 3 * 3).collect();
        let images = Images { batch: 2, height: 2, width: 3, rgb: rgb.clone().into() };
        let ids = Texts(vec!["../a".to_owned(); 2].into());
        let op = Pictures::new(PicturesSettings { every: 2, name: "policy".into() }).unwrap();
        assert!(op.forward(&bench.at(3), (images.clone(), None)).unwrap().0.0.0.is_empty());
        let ((effects,), ()) = op.forward(&bench.at(4), (images, Some(ids))).unwrap();
        let [Effect::Preview(first, _), Effect::Preview(second, picture)] = &effects.0[..] else {
            panic!("two pictures")
        };
        assert_eq!(
            (first.as_str(), second.as_str()),
            ("policy-step-000004-0-___a", "policy-step-000004-1-___a")
        );
        assert_eq!((picture.height, picture.width, &picture.rgb[..]), (2, 3, &rgb[18..]));
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for name in ["", "../x", "a b"] {
            let error = Pictures::new(PicturesSettings { every: 1, name: name.into() }).err().unwrap();
            assert!(error.to_string().contains("letters, digits"), "{error}");
        }
    }
}
