//! `picture-features`: what a vision encoder sees in each patch of a picture (PatchDPO).
//!
//! Shape letters: `B` pictures, `h` `w` patches, `F` width of the encoder, `S` side of what it takes, in pixels.

use std::{path::PathBuf, sync::OnceLock};

use prefgraph_nn::{
    self as nn, Cpu,
    cuda::Cuda,
    once::get_or_try_init,
    vision::{Preprocess, Vit, VitEncoder, vit::VitFamily},
};

use super::{
    autoencoder::{on_gpu, on_host},
    pick::reference,
    tensors::tensor,
    weights::{below, configuration},
};
use crate::{
    identity::Identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{self, ImageShape, Images, List, ListShape},
    settings,
    settings::DataPath,
};

settings! {
    /// Settings of [`PictureFeatures`].
    pub struct PictureFeaturesSettings {
        /// A vision transformer of CLIP, DINO or DINOv2: its folder with `config.json` and weights, or one safetensors file.
        pub encoder: DataPath = DataPath::default(),
        /// Side of what it sees of a picture, in pixels, a multiple of its patch; what it was trained with where it is not given. Only DINO and DINOv2
        /// take another one: their positions are interpolated as their authors do.
        pub side: Option<usize> = None,
        /// Which of `references`, from zero.
        pub index: usize = 0,
    }
}

/// Patch tokens of a vision encoder, after its last norm.
pub struct PictureFeatures {
    settings: PictureFeaturesSettings,
    path: PathBuf,
    cpu: Vit,
    /// Where the run has a GPU, from the first use on.
    gpu: OnceLock<VitEncoder<Cuda>>,
}

impl PictureFeatures {
    /// S.
    fn side(&self) -> usize {
        self.settings.side.unwrap_or(self.cpu.config().picture)
    }

    /// Patches along a side.
    fn grid(&self) -> usize {
        self.side() / self.cpu.config().patch
    }

    /// What the encoder sees of a square picture.
    fn preprocess(&self) -> Preprocess {
        let side = self.side();
        match self.cpu.config().family {
            VitFamily::Clip => Preprocess::clip(side),
            VitFamily::Dino | VitFamily::Dinov2 => Preprocess::imagenet(side, side),
        }
    }

    /// Those that features are wanted of.
    fn pictures<'a>(
        &self,
        (images, references): &'a (Option<ImageShape>, Option<ListShape<ImageShape>>),
    ) -> Result<&'a ImageShape, OpError> {
        match (images, references) {
            (Some(images), None) => Ok(images),
            (None, Some(all)) => reference(&all.0, self.settings.index),
            _ => Err(OpError::new("connect `images`, or `references` to take one of them")),
        }
    }

    fn cost_of(&self, images: &ImageShape) -> Cost {
        let pass = self.cpu.cost(images.batch);
        let scale = (self.grid() as f64 / self.cpu.config().grid() as f64).powi(2);
        Cost {
            forward_flops: scale * pass.forward_flops,
            moved_bytes: self.cpu.weight_bytes() as f64,
            scratch_bytes: (scale * pass.scratch_bytes as f64) as usize,
            // The squares as they are made.
            host_bytes: images.batch.saturating_mul(12 * self.side().pow(2)),
            ..Cost::default()
        }
    }
}

impl Operator for PictureFeatures {
    const NAME: &'static str = "picture-features";
    const DOC: &'static str = "Features of square pictures, one a patch: the tokens of a vision encoder (CLIP, DINO, DINOv2) after its \
                               last norm, without that of the class.";
    const IN: [&'static str; 2] = ["images", "references"];
    const OUT: [&'static str; 1] = ["features"];
    type Settings = PictureFeaturesSettings;
    /// Pictures, or one picture out of several for each sample.
    type In = (Option<Images>, Option<List<Images>>);
    type Out = (ports::Features,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PictureFeaturesSettings) -> Result<Self, OpError> {
        if settings.encoder.is_empty() {
            return Err(OpError::new("encoder: a vision encoder is needed: its folder, or its single file"));
        }
        let path = below(&settings.encoder, "image_encoder");
        let cpu = Vit::open(&path).map_err(|e| OpError::new(format!("encoder: {e}")))?;
        let op = Self { settings, path, cpu, gpu: OnceLock::new() };
        let patch = op.cpu.config().patch;
        if op.side() == 0 || !op.side().is_multiple_of(patch) {
            return Err(OpError::new(format!(
                "side {}: a positive multiple of {patch}, its patch, is needed",
                op.side()
            )));
        }
        let trained = op.cpu.config().picture;
        if op.cpu.config().family == VitFamily::Clip && op.side() != trained {
            return Err(OpError::new(format!(
                "side {}: CLIP sees {trained} x {trained} pixels; DINO and DINOv2 take other sizes",
                op.side()
            )));
        }
        Ok(op)
    }

    fn shapes(&self, inputs: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let images = self.pictures(&inputs)?;
        if images.height != images.width {
            return Err(OpError::new(format!(
                "pictures of {} x {} pixels (width x height): a vision encoder sees a square, so that a part would have no features",
                images.width, images.height
            )));
        }
        Ok(((images.batch, self.grid(), self.grid(), self.cpu.config().width),))
    }

    fn cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        self.pictures(inputs).map_or_else(|_| Cost::default(), |images| on_host(self.cost_of(images)))
    }

    fn gpu_cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(on_gpu(self.cost_of(self.pictures(inputs).ok()?)))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        let millions = self.cpu.parameters() as f64 / 1e6;
        vec![format!("vision encoder with {millions:.2}M frozen parameters, {0} x {0} patches", self.grid())]
    }

    fn cacheable(&self) -> Option<Identity> {
        let identity = Identity::of(&self.settings).ok()?.on_device().file("encoder", &self.path);
        Some(match configuration(&self.path) {
            Some(config) => identity.file("encoder_config", &config),
            None => identity,
        })
    }

    fn forward(&self, ctx: &Ctx<'_>, (images, references): Self::In) -> Result<(Self::Out, ()), OpError> {
        let images = images.or_else(|| references.and_then(|all| all.0.get(self.settings.index).cloned()));
        let images = images.ok_or_else(|| OpError::internal("fewer references than the plan knew"))?;
        let (side, grid, width) = (self.side(), self.grid(), self.cpu.config().width);
        let (preprocess, size) = (self.preprocess(), (images.height, images.width));
        let planes: Vec<f32> =
            (0..images.batch).flat_map(|b| preprocess.planes(images.picture(b), size)).collect();
        let pictures = nn::Tensor::new(ctx.cpu, (images.batch, 3, side, side), planes)?;
        let host: &Cpu = ctx.cpu;
        let tokens = match ctx.gpu {
            None => self.cpu.tokens(host, host, &pictures)?,
            Some(gpu) => {
                get_or_try_init(&self.gpu, || VitEncoder::open(&self.path))?.tokens(gpu, host, &pictures)?
            }
        };
        // The class token stands first.
        let each = (1 + grid * grid) * width;
        let values =
            tokens.values().chunks_exact(each).flat_map(|tokens| &tokens[width..]).copied().collect();
        Ok(((tensor(ctx, (images.batch, grid, grid, width), values)?.into(),), ()))
    }
}

#[cfg(test)]
mod tests {
    use dfdx::shapes::HasShape;

    use super::*;
    use crate::operators::testing::{Bench, case};

    fn op(encoder: &str, side: Option<usize>) -> Result<PictureFeatures, OpError> {
        let encoder = DataPath(case("encoders").join(encoder));
        PictureFeatures::new(PictureFeaturesSettings { encoder, side, index: 0 })
    }

    fn pictures(side: usize) -> Images {
        let rgb: Vec<u8> = (0..2 * side * side * 3).map(|i| (i * i * 31 + i) as u8).collect();
        Images { batch: 2, height: side, width: side, rgb: rgb.into() }
    }

    #[test]
    fn features_are_the_patch_tokens_of_the_encoder_in_its_own_values_and_at_any_side() {
        for encoder in ["clip_vision", "dino_vit", "dinov2"] {
            let probe = op(encoder, None).unwrap();
            let (trained, patch) = (probe.cpu.config().picture, probe.cpu.config().patch);
            let other = (probe.cpu.config().family != VitFamily::Clip).then_some(trained + patch);
            for side in [None].into_iter().chain(other.map(Some)) {
                let (bench, op) = (Bench::new(), op(encoder, side).unwrap());
                let images = pictures(op.side());
                let ((found,), ()) = op.forward(&bench.ctx(), (Some(images.clone()), None)).unwrap();
                let grid = op.side() / patch;
                assert_eq!(*HasShape::shape(&*found), (2, grid, grid, op.cpu.config().width), "{encoder}");
                // A picture of the encoder's size is only normalised.
                let cpu = Cpu::new(1).unwrap();
                let p = op.preprocess();
                let value = |b: usize, c: usize, i: usize| {
                    let byte = images.picture(b)[3 * i + c];
                    ((f64::from(byte) / 255.0) as f32 - p.mean[c]) / p.deviation[c]
                };
                let pixels = op.side() * op.side();
                let planes: Vec<f32> = (0..2)
                    .flat_map(|b| (0..3).flat_map(move |c| (0..pixels).map(move |i| (b, c, i))))
                    .map(|(b, c, i)| value(b, c, i))
                    .collect();
                let planes = nn::Tensor::new(&cpu, (2, 3, op.side(), op.side()), planes).unwrap();
                let tokens = op.cpu.tokens(&cpu, &cpu, &planes).unwrap();
                let width = op.cpu.config().width;
                let each = (1 + grid * grid) * width;
                let second = &tokens.values()[each + width..];
                assert_eq!(&found.as_vec()[grid * grid * width..], second, "{encoder}");
            }
        }
    }

    #[test]
    fn what_an_encoder_cannot_see_is_refused() {
        let error = op("dinov2", Some(1)).err().unwrap().to_string();
        assert!(error.contains("multiple of"), "{error}");
        let error = op("clip_vision", Some(40)).err().unwrap().to_string();
        assert!(error.contains("CLIP sees 32 x 32"), "{error}");
        let op = op("dinov2", None).unwrap();
        let wide = ImageShape { batch: 1, height: 16, width: 32 };
        assert!(op.shapes((Some(wide), None), 0).unwrap_err().to_string().contains("square"));
        let none = op.shapes((None, Some(ListShape(Vec::new()))), 0).unwrap_err().to_string();
        assert!(none.contains("reference_counts"), "{none}");
        let error = PictureFeatures::new(Default::default()).err().unwrap().to_string();
        assert!(error.contains("encoder"), "{error}");
    }
}
