//! `picture-embedding`: what a picture is to a vision encoder, as one vector.
//!
//! Shape letters: `B` pictures, `F` width of an embedding, `S` side of what the encoder takes, in pixels.

use std::{path::PathBuf, sync::OnceLock};

use prefgraph_nn::{
    self as nn, Cpu, Device,
    cuda::Cuda,
    once::get_or_try_init,
    vision::{Preprocess, Vit, VitEncoder, vit::VitFamily},
};

use super::{
    autoencoder::{on_gpu, on_host},
    tensors::tensor,
    weights::{below, configuration},
};
use crate::{
    choices,
    identity::Identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{self, ImageShape, Images},
    settings,
    settings::DataPath,
};

choices! {
    /// Which square is the middle one where an odd number of rows or columns is cut off.
    pub enum Middle {
        /// As torchvision cuts: the one before which an even number is cut off.
        Even = "even",
        /// As transformers cuts: the one nearer to the top and the left.
        Floor = "floor",
    }
}

settings! {
    /// Settings of [`PictureEmbedding`].
    pub struct PictureEmbeddingSettings {
        /// A vision transformer of CLIP, DINO or DINOv2: its folder with `config.json` and weights, or one safetensors file.
        pub encoder: DataPath = DataPath::default(),
        /// Side of what it sees of a picture, in pixels, a multiple of its patch; what it was trained with where it is not given. Only DINO and DINOv2 take another one.
        pub side: Option<usize> = None,
        /// Pixels of the shortest side of what the middle square is cut out of; the side of the square where it is not given.
        pub shortest: Option<usize> = None,
        /// Which square is the middle one.
        pub middle: Middle = Middle::Even,
    }
}

/// Embeddings of pictures of any size: the middle square, scaled as Pillow does.
pub struct PictureEmbedding {
    settings: PictureEmbeddingSettings,
    path: PathBuf,
    cpu: Vit,
    /// Where the run has a GPU, from the first use on.
    gpu: OnceLock<VitEncoder<Cuda>>,
}

impl PictureEmbedding {
    /// S.
    fn side(&self) -> usize {
        self.settings.side.unwrap_or(self.cpu.config().picture)
    }

    fn preprocess(&self) -> Preprocess {
        let side = self.side();
        let by_family = match self.cpu.config().family {
            VitFamily::Clip => Preprocess::clip(side),
            VitFamily::Dino | VitFamily::Dinov2 => Preprocess::imagenet(side, side),
        };
        let middle = match self.settings.middle {
            Middle::Even => nn::vision::Middle::Even,
            Middle::Floor => nn::vision::Middle::Floor,
        };
        Preprocess { shortest: self.settings.shortest.unwrap_or(side), middle, ..by_family }
    }

    /// F.
    fn width(&self) -> usize {
        self.cpu.config().projection.unwrap_or(self.cpu.config().width)
    }

    fn cost_of(&self, images: &ImageShape) -> Cost {
        let pass = self.cpu.cost(images.batch);
        let config = self.cpu.config();
        let scale = (self.side() as f64 / (config.patch * config.grid()) as f64).powi(2);
        // The shortest side may be far shorter than the other one.
        let long = images.height.max(images.width) as f64 / images.height.min(images.width).max(1) as f64;
        let resized = 6.0 * (self.preprocess().shortest as f64).powi(2) * long;
        Cost {
            forward_flops: scale * pass.forward_flops,
            moved_bytes: self.cpu.weight_bytes() as f64,
            scratch_bytes: (scale * pass.scratch_bytes as f64) as usize,
            // The squares as they are made.
            host_bytes: images.batch.saturating_mul(12 * self.side().pow(2)).saturating_add(resized as usize),
            ..Cost::default()
        }
    }

    /// `[B, F]`: the projected class token of CLIP, else the class token after the last norm.
    fn embed<D: Device>(
        &self,
        vit: &VitEncoder<D>,
        (device, host): (&D, &Cpu),
        pictures: &nn::autoencoders::Batch,
    ) -> Result<Vec<f32>, OpError> {
        if self.cpu.config().projection.is_some() {
            return Ok(vit.embed(device, host, pictures)?.into_values());
        }
        let tokens = vit.tokens(device, host, pictures)?;
        let (_, each, width) = tokens.shape();
        // The class token stands first.
        let of_picture = |tokens: &[f32]| tokens[..width].to_vec();
        Ok(tokens.values().chunks_exact(each * width).flat_map(of_picture).collect())
    }
}

impl Operator for PictureEmbedding {
    const NAME: &'static str = "picture-embedding";
    const DOC: &'static str = "Embed pictures of any size as one vector each: the projected class token of CLIP, the class token of \
                               DINO and DINOv2 after their last norm.";
    const IN: [&'static str; 1] = ["images"];
    const OUT: [&'static str; 1] = ["embeddings"];
    type Settings = PictureEmbeddingSettings;
    type In = (Images,);
    type Out = (ports::Embeddings,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PictureEmbeddingSettings) -> Result<Self, OpError> {
        if settings.encoder.is_empty() {
            return Err(OpError::new("encoder: a vision encoder is needed: its folder, or its single file"));
        }
        let path = below(&settings.encoder, "image_encoder");
        let cpu = Vit::open(&path).map_err(|e| OpError::new(format!("encoder: {e}")))?;
        let op = Self { settings, path, cpu, gpu: OnceLock::new() };
        let (side, patch) = (op.side(), op.cpu.config().patch);
        if side == 0 || !side.is_multiple_of(patch) {
            return Err(OpError::new(format!(
                "side {side}: a positive multiple of {patch}, its patch, is needed"
            )));
        }
        let trained = op.cpu.config().picture;
        if op.cpu.config().family == VitFamily::Clip && side != trained {
            return Err(OpError::new(format!(
                "side {side}: CLIP sees {trained} x {trained} pixels; DINO and DINOv2 take other sizes"
            )));
        }
        let shortest = op.preprocess().shortest;
        if shortest < side {
            return Err(OpError::new(format!(
                "shortest {shortest}: no square of {side} x {side} pixels is in it"
            )));
        }
        Ok(op)
    }

    // An embedding that nobody reads is not wanted.
    fn due(&self, _: u64) -> bool {
        false
    }

    fn shapes(&self, (images,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((images.batch, self.width()),))
    }

    fn cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        on_host(self.cost_of(images))
    }

    fn gpu_cost(&self, (images,): &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(on_gpu(self.cost_of(images)))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        let millions = self.cpu.parameters() as f64 / 1e6;
        vec![format!(
            "vision encoder with {millions:.2}M frozen parameters, embeddings {} wide",
            self.width()
        )]
    }

    fn cacheable(&self) -> Option<Identity> {
        let identity = Identity::of(&self.settings).ok()?.on_device().file("encoder", &self.path);
        Some(match configuration(&self.path) {
            Some(config) => identity.file("encoder_config", &config),
            None => identity,
        })
    }

    fn forward(&self, ctx: &Ctx<'_>, (images,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let (side, preprocess, size) = (self.side(), self.preprocess(), (images.height, images.width));
        let planes: Vec<f32> =
            (0..images.batch).flat_map(|b| preprocess.planes(images.picture(b), size)).collect();
        let pictures = nn::Tensor::new(ctx.cpu, (images.batch, 3, side, side), planes)?;
        let host: &Cpu = ctx.cpu;
        let values = match ctx.gpu {
            None => self.embed(&self.cpu, (host, host), &pictures)?,
            Some(gpu) => {
                let vit = get_or_try_init(&self.gpu, || VitEncoder::open(&self.path))?;
                self.embed(vit, (gpu, host), &pictures)?
            }
        };
        Ok(((tensor(ctx, (images.batch, self.width()), values)?.into(),), ()))
    }
}

#[cfg(test)]
mod tests {
    use dfdx::shapes::HasShape;

    use super::*;
    use crate::operators::testing::{Bench, case};

    fn op(encoder: &str, shortest: Option<usize>) -> Result<PictureEmbedding, OpError> {
        let encoder = DataPath(case("encoders").join(encoder));
        PictureEmbedding::new(PictureEmbeddingSettings { encoder, shortest, ..Default::default() })
    }

    fn pictures(batch: usize, height: usize, width: usize) -> Images {
        let rgb: Vec<u8> = (0..batch * height * width * 3).map(|i| (i * i * 31 + i) as u8).collect();
        Images { batch, height, width, rgb: rgb.into() }
    }

    #[test]
    fn an_embedding_is_the_class_token_of_the_middle_square_projected_where_the_model_projects() {
        for encoder in ["clip_vision", "dino_vit", "dinov2"] {
            let side = op(encoder, None).unwrap().side();
            let (bench, op) = (Bench::new(), op(encoder, Some(side + 5)).unwrap());
            let images = pictures(2, side + 40, side + 21);
            let ((found,), ()) = op.forward(&bench.ctx(), (images.clone(),)).unwrap();
            let config = op.cpu.config();
            let width = config.projection.unwrap_or(config.width);
            assert_eq!(*HasShape::shape(&*found), (2, width), "{encoder}");

            let cpu = Cpu::new(1).unwrap();
            let planes = op.preprocess().planes(images.picture(1), (images.height, images.width));
            assert_eq!((op.preprocess().shortest, op.preprocess().side), (side + 5, side));
            let square = nn::Tensor::new(&cpu, (1, 3, side, side), planes).unwrap();
            let expected = match config.projection {
                Some(_) => op.cpu.embed(&cpu, &cpu, &square).unwrap().into_values(),
                None => op.cpu.tokens(&cpu, &cpu, &square).unwrap().values()[..width].to_vec(),
            };
            assert_eq!(found.as_vec()[width..], expected, "{encoder}: alone and in a batch");
        }
    }

    #[test]
    fn what_an_encoder_cannot_see_is_refused() {
        let side = op("dino_vit", None).unwrap().side();
        let error = op("dino_vit", Some(side - 1)).err().unwrap().to_string();
        assert!(error.contains("no square of"), "{error}");
        let error = PictureEmbedding::new(Default::default()).err().unwrap().to_string();
        assert!(error.contains("encoder"), "{error}");
    }
}
