//! `decode`: from latents to pictures.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid.

use prefgraph_nn::autoencoders::Half;

use super::{
    autoencoder::{self, AutoencoderKind, Coder, on_host},
    tensors::latents_to_nn,
};
use crate::{
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    part::Part,
    ports::{ImageShape, Images, Latents},
    settings,
    settings::DataPath,
};

settings! {
    /// Settings of [`Decode`].
    pub struct DecodeSettings {
        /// Kind of autoencoder: that of the latents.
        pub kind: AutoencoderKind = AutoencoderKind::Dct,
        /// Of kinds `kl` and `tiny`: the folder with `config.json` and the weights, the folder above its `vae`, or one
        /// safetensors file.
        pub weights: DataPath = DataPath::default(),
        /// Is kind `dct` meant, even for latents of a network of FLUX.1's shapes?
        pub allow_toy: bool = false,
    }
}

/// Pictures of a batch of latents.
pub struct Decode {
    coder: Coder,
    settings: DecodeSettings,
}

impl Decode {
    fn cost_of(&self, images: &ImageShape) -> Cost {
        let about = self.coder.about();
        let one = about.decode_cost(images.height, images.width);
        let pixels = images.batch * images.height * images.width;
        Cost {
            forward_flops: images.batch as f64 * one.forward_flops,
            moved_bytes: 20.0 * pixels as f64 + images.batch as f64 * about.weight_bytes() as f64,
            scratch_bytes: one.scratch_bytes,
            // The pictures as planes; the network makes them one after the other.
            host_bytes: 12 * pixels,
            resident_bytes: about.resident_bytes(Half::Decoder),
            ..Cost::default()
        }
    }
}

impl Operator for Decode {
    const NAME: &'static str = "decode";
    const DOC: &'static str = "Decode clean latents as pictures, clamped and rounded to bytes.";
    const IN: [&'static str; 1] = ["latents"];
    const OUT: [&'static str; 1] = ["images"];
    type Settings = DecodeSettings;
    type In = (Latents,);
    type Out = (Images,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: DecodeSettings) -> Result<Self, OpError> {
        let coder = Coder::open(settings.kind, &settings.weights)?;
        Ok(Self { coder, settings })
    }

    fn shapes(&self, (latents,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let (batch, channels, height, width) = latents;
        let (expected, cell) = (self.coder.about().channels(), self.coder.about().cell());
        if channels != expected {
            return Err(OpError::new(format!(
                "latents have {channels} channels, but the autoencoder `{}` decodes {expected}",
                self.coder.about().kind()
            )));
        }
        Ok((ImageShape { batch, height: height * cell, width: width * cell },))
    }

    fn cost(&self, _: &InShapes<Self>, (images,): &OutShapes<Self>) -> Cost {
        on_host(self.cost_of(images))
    }

    fn gpu_cost(&self, _: &InShapes<Self>, (images,): &OutShapes<Self>) -> Option<Cost> {
        self.coder.on_gpu_costs(self.cost_of(images))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        autoencoder::note(self.coder.about(), &self.settings.weights)
    }

    fn part(&self) -> Part {
        autoencoder::part(self.settings.kind, self.settings.allow_toy)
    }

    fn forward(&self, ctx: &Ctx<'_>, (latents,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let latents = latents_to_nn(ctx, &latents)?;
        if let Some(value) = latents.values().iter().find(|value| !value.is_finite()) {
            return Err(OpError::new(format!(
                "latents hold {value}: the network or an adapter has values far out of range, and there is no picture to show"
            )));
        }
        let pictures = self.coder.decode(ctx, &latents)?;
        let (batch, channels, height, width) = pictures.shape();
        let size = height * width;
        let mut rgb = vec![0; batch * size * channels];
        for (picture, planes) in
            rgb.chunks_exact_mut(size * channels).zip(pictures.values().chunks_exact(size * channels))
        {
            for (channel, plane) in planes.chunks_exact(size).enumerate() {
                for (to, value) in picture[channel..].iter_mut().step_by(channels).zip(plane) {
                    *to = byte(*value);
                }
            }
        }
        Ok(((Images { batch, height, width, rgb: rgb.into() },), ()))
    }
}

/// The byte that [`Images::signed`] shows to networks as the nearest value.
fn byte(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use prefgraph_nn::files::TensorFiles;

    use super::*;
    use crate::operators::{
        encode::{Encode, EncodeSettings},
        testing::{Bench, case, latents, worst},
    };

    #[test]
    fn every_byte_survives_the_way_to_a_network_and_back() {
        assert!((0..=255).all(|b| byte(Images::signed(b)) == b));
        assert_eq!([-7.0, -1.0, 0.0, 1.0, 7.0].map(byte), [0, 0, 128, 255, 255]);
    }

    #[test]
    fn a_flat_picture_comes_back_from_its_latents() {
        let (bench, settings) = (Bench::new(), DecodeSettings::default());
        let ctx = bench.ctx();
        let rgb: Vec<u8> =
            (0..8 * 16).flat_map(|i| if i % 16 < 8 { [250, 30, 90] } else { [0, 255, 7] }).collect();
        let images = Images { batch: 1, height: 8, width: 16, rgb: rgb.into() };
        let ((z,), ()) =
            Encode::new(EncodeSettings::default()).unwrap().forward(&ctx, (images.clone(),)).unwrap();
        let ((back,), ()) = Decode::new(settings).unwrap().forward(&ctx, (z.1,)).unwrap();
        assert_eq!(back, images);
    }

    #[test]
    fn a_checkpoint_in_half_precision_gives_the_latents_and_the_pictures_of_the_reference() {
        let folder =
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/encoders/tiny_checkpoint"));
        let io = TensorFiles::open(&folder.join("io.safetensors")).unwrap();
        let (bench, weights) = (Bench::new(), DataPath(folder));
        let (ctx, kind) = (bench.ctx(), AutoencoderKind::Kl);
        let rgb = io.bytes("rgb").unwrap().to_vec();
        let images = Images { batch: 1, height: 16, width: 24, rgb: rgb.into() };
        let encode = EncodeSettings { kind, weights: weights.clone(), ..Default::default() };
        let ((z,), ()) = Encode::new(encode).unwrap().forward(&ctx, (images,)).unwrap();
        assert!(worst(&z.as_vec(), &io.read("latents").unwrap()) < 5e-5);

        let decode = Decode::new(DecodeSettings { kind, weights, ..Default::default() }).unwrap();
        let ((back,), ()) = decode.forward(&ctx, (z.1,)).unwrap();
        let planes = io.read("decoded").unwrap();
        for (pixel, rgb) in back.picture(0).as_chunks::<3>().0.iter().enumerate() {
            for (channel, found) in rgb.iter().enumerate() {
                let expected = (planes[channel * 16 * 24 + pixel].clamp(-1.0, 1.0) + 1.0) * 127.5;
                assert!((f32::from(*found) - expected).abs() <= 0.51, "{found} and {expected}");
            }
        }
    }

    #[test]
    fn a_kl_autoencoder_decodes_to_the_planned_shape_and_refuses_other_channels() {
        let settings = DecodeSettings {
            kind: AutoencoderKind::Kl,
            weights: DataPath(case("encoders/vae_flux")),
            ..Default::default()
        };
        let (bench, op) = (Bench::new(), Decode::new(settings).unwrap());
        let ctx = bench.ctx();
        let shape = (2, 16, 2, 3);
        let planned = op.shapes((shape,), 0).unwrap();
        let ((images,), ()) = op.forward(&ctx, (latents(&ctx, shape, 1),)).unwrap();
        assert_eq!(crate::port::Port::shape(&images), planned.0);
        assert!(op.cost(&(shape,), &planned).forward_flops > 1e6);
        let error = op.shapes(((1, 4, 2, 3),), 0).unwrap_err().to_string();
        assert!(error.contains("4 channels") && error.contains("`kl` decodes 16"), "{error}");
    }
}
