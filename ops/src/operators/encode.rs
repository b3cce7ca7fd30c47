//! `encode` and `encode-references`: from pictures to latents.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid.

use prefgraph_nn::{
    self as nn,
    autoencoders::dct::{BLOCK, CHANNELS, Dct},
};

use super::tensors::tensor;
use crate::{
    choices,
    identity::Identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{ImageShape, Images, Latents, List, ListShape},
    settings,
};

choices! {
    /// Kinds of autoencoder.
    pub enum EncoderKind {
        /// Fixed cosine transform: nothing trained, 16 channels, one cell for 8x8 pixels.
        Dct = "dct",
    }
}

settings! {
    /// Settings of [`Encode`] and [`EncodeReferences`].
    pub struct EncodeSettings {
        /// Kind of autoencoder: that of the backbone.
        pub kind: EncoderKind = EncoderKind::Dct,
    }
}

/// The autoencoder of both operators.
struct Encoder(Dct);

impl Encoder {
    fn shape(&self, images: &ImageShape) -> Result<(usize, usize, usize, usize), OpError> {
        let whole = |side: usize| side > 0 && side.is_multiple_of(BLOCK);
        if !whole(images.height) || !whole(images.width) {
            return Err(OpError::new(format!(
                "pictures of {}x{} pixels: a latent cell covers {BLOCK}x{BLOCK}",
                images.height, images.width
            )));
        }
        Ok((images.batch, CHANNELS, images.height / BLOCK, images.width / BLOCK))
    }

    /// What latents depend on besides the pictures.
    fn identity(&self) -> Option<Identity> {
        Some(Identity::new().setting("kind", EncoderKind::Dct))
    }

    fn cost<'a>(images: impl Iterator<Item = &'a ImageShape>) -> Cost {
        let pixels = images.map(|i| i.batch * i.height * i.width).sum::<usize>();
        // Every kept coefficient weighs every pixel of its block; colours before that.
        let flops = pixels as f64 * (2.0 * CHANNELS as f64 + 18.0);
        Cost {
            forward_flops: flops,
            moved_bytes: 20.0 * pixels as f64,
            scratch_bytes: 12 * pixels,
            ..Cost::default()
        }
    }

    fn encode(&self, ctx: &Ctx<'_>, images: &Images) -> Result<Latents, OpError> {
        let Images { batch, height, width, .. } = *images;
        let mut planes = Vec::with_capacity(batch * 3 * height * width);
        for picture in (0..batch).map(|b| images.picture(b)) {
            for channel in 0..3 {
                planes.extend(picture.as_chunks::<3>().0.iter().map(|p| Images::signed(p[channel])));
            }
        }
        let pictures = nn::Tensor::new(ctx.cpu, (batch, 3, height, width), planes)?;
        let latents = self.0.encode(ctx.cpu, &pictures)?;
        tensor(ctx, latents.shape(), latents.into_values())
    }
}

/// Latents of a batch of pictures.
pub struct Encode(Encoder);

impl Operator for Encode {
    const NAME: &'static str = "encode";
    const DOC: &'static str = "Encode pictures as clean latents.";
    const IN: [&'static str; 1] = ["images"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = EncodeSettings;
    type In = (Images,);
    type Out = (Latents,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: EncodeSettings) -> Result<Self, OpError> {
        Ok(Self(Encoder(Dct::new())))
    }

    fn shapes(&self, (images,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((self.0.shape(&images)?,))
    }

    fn cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Encoder::cost(std::iter::once(images))
    }

    fn cacheable(&self) -> Option<Identity> {
        self.0.identity()
    }

    fn forward(&self, ctx: &Ctx<'_>, (images,): Self::In) -> Result<(Self::Out, ()), OpError> {
        Ok(((self.0.encode(ctx, &images)?,), ()))
    }
}

/// Latents of every reference.
pub struct EncodeReferences(Encoder);

impl Operator for EncodeReferences {
    const NAME: &'static str = "encode-references";
    const DOC: &'static str = "Encode the pictures of every reference as clean latents.";
    const IN: [&'static str; 1] = ["images"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = EncodeSettings;
    type In = (List<Images>,);
    type Out = (List<Latents>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: EncodeSettings) -> Result<Self, OpError> {
        Ok(Self(Encoder(Dct::new())))
    }

    fn shapes(&self, (images,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((ListShape(images.0.iter().map(|i| self.0.shape(i)).collect::<Result<_, _>>()?),))
    }

    fn cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Encoder::cost(images.0.iter())
    }

    fn cacheable(&self) -> Option<Identity> {
        self.0.identity()
    }

    fn forward(&self, ctx: &Ctx<'_>, (images,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let latents = images.0.iter().map(|i| self.0.encode(ctx, i));
        Ok(((List(latents.collect::<Result<_, _>>()?),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;

    #[test]
    fn a_list_of_pictures_is_encoded_as_each_alone_and_channels_come_first() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        // The left half white, the right half black.
        let rgb: Vec<u8> = (0..8 * 16).flat_map(|i| [if i % 16 < 8 { 255 } else { 0 }; 3]).collect();
        let images = Images { batch: 1, height: 8, width: 16, rgb: rgb.into() };
        let ((alone,), ()) =
            Encode::new(Default::default()).unwrap().forward(&ctx, (images.clone(),)).unwrap();
        let op = EncodeReferences::new(Default::default()).unwrap();
        let ((list,), ()) = op.forward(&ctx, (List(vec![images.clone(), images]),)).unwrap();
        assert_eq!(list.0.len(), 2);
        assert_eq!(list.0[1].as_vec(), alone.as_vec());
        // The first channel is brightness: it alone tells the two cells apart.
        let values = alone.as_vec();
        assert!(values[0] > 0.5 && values[1] < -0.5, "{values:?}");
        assert!(values[2..].iter().all(|v| v.abs() < 1e-4), "{values:?}");
    }

    #[test]
    fn a_side_that_is_no_multiple_of_a_cell_is_refused() {
        let op = Encode::new(Default::default()).unwrap();
        let error = op.shapes((ImageShape { batch: 1, height: 12, width: 16 },), 0).unwrap_err();
        assert!(error.to_string().contains("12x16"), "{error}");
    }
}
