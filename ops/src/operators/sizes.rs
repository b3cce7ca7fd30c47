//! `sizes`: what SDXL is told of a picture besides its prompt.
//!
//! Shape letters: `B` batch.

use dfdx::shapes::{Const, HasShape};

use super::tensors::{same, tensor};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Crops, Images, Latents, Sizes},
    row_major::RowMajor,
    settings,
};

settings! {
    /// Settings of [`PictureSizes`].
    pub struct SizesSettings {
        /// Height and width that pictures are said to have had before they were scaled. Their own where neither this is given nor `crops` is connected.
        pub original: Option<[usize; 2]> = None,
        /// Rows and columns that are said to have been cut off above and left; none where neither this is given nor `crops` is connected.
        pub crop: Option<[usize; 2]> = None,
        /// Height and width that are said to be wanted; the pictures' own where it is not given.
        pub target: Option<[usize; 2]> = None,
    }
}

/// Pixels along each side of a latent cell.
pub const PIXELS_OF_A_CELL: usize = 8;

/// Sizes and crops, which SDXL was trained with beside pooled text (`time_ids`).
pub struct PictureSizes(SizesSettings);

impl Operator for PictureSizes {
    const NAME: &'static str = "sizes";
    const DOC: &'static str = "State the sizes and crops of pictures as SDXL takes them (`time_ids`): original height and width, \
                               rows and columns cut off, wanted height and width.";
    const IN: [&'static str; 3] = ["images", "crops", "like"];
    const OUT: [&'static str; 1] = ["sizes"];
    type Settings = SizesSettings;
    type In = (Option<Images>, Option<Crops>, Option<Latents>);
    type Out = (Sizes,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: SizesSettings) -> Result<Self, OpError> {
        let stated = [("original", settings.original), ("target", settings.target)];
        match stated.into_iter().find(|(_, size)| size.is_some_and(|size| size.contains(&0))) {
            Some((name, _)) => Err(OpError::new(format!("{name}: a picture has at least one pixel"))),
            None => Ok(Self(settings)),
        }
    }

    fn shapes(&self, (images, crops, like): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let batch = match (images, like) {
            (Some(images), None) => images.batch,
            (None, Some(like)) => like.0,
            _ => {
                return Err(OpError::new(
                    "connect `images`, or, where there are none yet, `like`: latents of their size",
                ));
            }
        };
        if let Some((crops, _)) = crops {
            same("the batch of `crops`", crops, "that of the pictures", batch)?;
        }
        Ok(((batch, Const),))
    }

    fn forward(&self, ctx: &Ctx<'_>, (images, crops, like): Self::In) -> Result<(Self::Out, ()), OpError> {
        let (batch, own) = match (&images, &like) {
            (Some(images), _) => (images.batch, [images.height, images.width]),
            (None, Some(like)) => {
                let &(batch, _, height, width) = HasShape::shape(like);
                (batch, [height, width].map(|cells| cells * PIXELS_OF_A_CELL))
            }
            (None, None) => return Err(OpError::internal("sizes of no pictures")),
        };
        let crops = crops.map(|crops| crops.row_major());
        let number = |pixels: usize| pixels as f32;
        let of_sample = |sample: usize| {
            let found = crops.as_ref().map(|all| &all[sample * 4..][..4]);
            let part = |stated: Option<[usize; 2]>, first: usize, otherwise: [usize; 2]| match (stated, found)
            {
                (None, Some(found)) => [found[first], found[first + 1]],
                (stated, _) => stated.unwrap_or(otherwise).map(number),
            };
            let target = self.0.target.unwrap_or(own).map(number);
            [part(self.0.original, 0, own), part(self.0.crop, 2, [0, 0]), target].concat()
        };
        let values = (0..batch).flat_map(of_sample).collect();
        Ok(((tensor(ctx, (batch, Const), values)?,), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;

    fn sizes(settings: SizesSettings, crops: Option<Vec<f32>>) -> Vec<f32> {
        let (bench, op) = (Bench::new(), PictureSizes::new(settings).unwrap());
        let images = Images { batch: 2, height: 3, width: 5, rgb: vec![0; 2 * 3 * 5 * 3].into() };
        let crops = crops.map(|values| tensor(&bench.ctx(), (2, Const), values).unwrap());
        op.forward(&bench.ctx(), (Some(images), crops, None)).unwrap().0.0.as_vec()
    }

    #[test]
    fn pictures_that_are_to_be_drawn_have_the_size_of_their_latents() {
        let (bench, op) = (Bench::new(), PictureSizes::new(SizesSettings::default()).unwrap());
        let like = crate::operators::testing::latents(&bench.ctx(), (1, 4, 3, 2), 1);
        let found = op.forward(&bench.ctx(), (None, None, Some(like))).unwrap().0.0.as_vec();
        assert_eq!(found, [24.0, 16.0, 0.0, 0.0, 24.0, 16.0]);
        let error = op.shapes((None, None, None), 0).unwrap_err().to_string();
        assert!(error.contains("connect `images`"), "{error}");
    }

    #[test]
    fn a_picture_of_which_nothing_is_known_is_whole_and_of_its_own_size() {
        assert_eq!(sizes(SizesSettings::default(), None), [3.0, 5.0, 0.0, 0.0, 3.0, 5.0].repeat(2));
    }

    #[test]
    fn what_is_stated_counts_more_than_crops_and_these_more_than_the_picture() {
        let crops = vec![30.0, 40.0, 1.0, 2.0, 60.0, 70.0, 3.0, 4.0];
        let found = sizes(SizesSettings::default(), Some(crops.clone()));
        assert_eq!(found, [30.0, 40.0, 1.0, 2.0, 3.0, 5.0, 60.0, 70.0, 3.0, 4.0, 3.0, 5.0]);
        let settings = SizesSettings { original: Some([8, 9]), crop: Some([0, 0]), target: Some([10, 11]) };
        assert_eq!(sizes(settings, Some(crops)), [8.0, 9.0, 0.0, 0.0, 10.0, 11.0].repeat(2));
    }

    #[test]
    fn a_size_without_pixels_is_refused() {
        let settings = SizesSettings { target: Some([0, 8]), ..Default::default() };
        assert!(PictureSizes::new(settings).err().unwrap().to_string().contains("target"));
    }
}
