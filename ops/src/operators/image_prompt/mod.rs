//! `image-prompt`: from the pictures of references to tokens that stand beside those of the text.
//!
//! Shape letters: `B` batch, `R` references, `Q` tokens of each, `E` text width.

mod encoders;

use prefgraph_nn as nn;

use self::encoders::{ImageEncoders, Tokens};
use super::{
    autoencoder::{on_gpu, on_host},
    backbone::ResamplerPlace,
    tensors::{same, tensor},
};
use crate::{
    choices,
    identity::Identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{BackboneHandle, ImagePrompt, ImageShape, Images, List},
    settings,
    settings::DataPath,
};

choices! {
    /// How the tokens of several references become one prompt.
    pub enum Together {
        /// One after the other: as many tokens as there are references.
        Concatenated = "concatenated",
        /// Their mean: as many tokens as one reference has.
        Averaged = "averaged",
    }
}

settings! {
    /// Settings of [`ImagePrompts`].
    pub struct ImagePromptSettings {
        /// The image encoder that the IP-Adapter was trained with: its folder with `config.json` and weights, the folder above its `image_encoder`, or one safetensors file.
        pub image_encoder: DataPath = DataPath::default(),
        /// The file of an IP-Adapter-Plus, e.g. `ip-adapter-plus_sdxl_vit-h.safetensors`.
        pub ip_adapter: DataPath = DataPath::default(),
        /// How the tokens of several references become one prompt.
        pub together: Together = Together::Concatenated,
        /// Whether to give the tokens of pictures that were left out, in the same shape: the other side of classifier-free guidance.
        pub negative: bool = false,
        /// Where the IP-Adapter's resampler runs: with `inside` the tokens are those of the image encoder, for a backbone that has it.
        pub resampler: ResamplerPlace = ResamplerPlace::Outside,
    }
}

/// The image prompt of an IP-Adapter-Plus: CLIP's image encoder and the adapter's resampler.
pub struct ImagePrompts {
    settings: ImagePromptSettings,
    encoders: ImageEncoders,
}

impl ImagePrompts {
    /// The references of the list, which must be of one batch.
    fn references(&self, images: &[ImageShape]) -> Result<(usize, usize), OpError> {
        let first = images.first().ok_or_else(|| {
            OpError::new("there are samples without references: leave them out with `reference_counts` on the node that reads them")
        })?;
        match images.iter().find(|image| image.batch != first.batch) {
            Some(other) => Err(OpError::internal(format!(
                "references of {} and of {} samples in one batch",
                first.batch, other.batch
            ))),
            None => Ok((first.batch, images.len())),
        }
    }

    /// Tokens of a sample's whole prompt.
    fn tokens(&self, references: usize) -> usize {
        let (each, _) = self.encoders.shape(self.settings.resampler);
        match self.settings.together {
            Together::Concatenated => references.saturating_mul(each),
            Together::Averaged => each,
        }
    }

    fn cost_of(&self, images: &[ImageShape]) -> Cost {
        let batch = images.first().map_or(0, |image| image.batch);
        let (passes, pictures) = if self.settings.negative { (1, 1) } else { (images.len(), batch) };
        let pass = self.encoders.cost(self.settings.resampler, pictures);
        let square = 12 * self.encoders.preprocess().side.pow(2);
        Cost {
            forward_flops: passes as f64 * pass.forward_flops,
            moved_bytes: passes as f64 * pass.weight_bytes,
            scratch_bytes: pass.scratch_bytes,
            // The squares as they are made.
            host_bytes: pictures.saturating_mul(square),
            ..Cost::default()
        }
    }

    /// The tokens of one reference of every sample.
    fn encode(&self, ctx: &Ctx<'_>, images: &Images) -> Result<Tokens, OpError> {
        let preprocess = self.encoders.preprocess();
        let (size, side) = ((images.height, images.width), preprocess.side);
        let planes: Vec<f32> =
            (0..images.batch).flat_map(|b| preprocess.planes(images.picture(b), size)).collect();
        let pictures = nn::Tensor::new(ctx.cpu, (images.batch, 3, side, side), planes)?;
        self.encoders.encode(ctx, self.settings.resampler, &pictures)
    }

    /// The prompts of all samples from the tokens of each reference, `[B, Q, E]`.
    fn together(&self, references: &[Tokens]) -> Vec<f32> {
        let (queries, width) = self.encoders.shape(self.settings.resampler);
        let batch = references.first().map_or(0, |tokens| tokens.shape().0);
        let of = |sample: usize| {
            references.iter().map(move |t| &t.values()[sample * queries * width..][..queries * width])
        };
        match self.settings.together {
            Together::Concatenated => (0..batch).flat_map(|sample| of(sample).flatten().copied()).collect(),
            Together::Averaged => (0..batch).flat_map(|sample| mean(of(sample), queries * width)).collect(),
        }
    }
}

/// The mean of rows, summed in their order.
fn mean<'a>(rows: impl Iterator<Item = &'a [f32]>, width: usize) -> Vec<f32> {
    let (mut sums, mut count) = (vec![0.0f64; width], 0u32);
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
        count += 1;
    }
    sums.into_iter().map(|sum| (sum / f64::from(count.max(1))) as f32).collect()
}

impl Operator for ImagePrompts {
    const NAME: &'static str = "image-prompt";
    const DOC: &'static str = "Encode the pictures of references as an IP-Adapter-Plus takes them: tokens beside those of the text.";
    const IN: [&'static str; 2] = ["references", "backbone"];
    const OUT: [&'static str; 1] = ["tokens"];
    type Settings = ImagePromptSettings;
    type In = (List<Images>, Option<BackboneHandle>);
    type Out = (ImagePrompt,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: ImagePromptSettings) -> Result<Self, OpError> {
        let encoders = ImageEncoders::open(&settings.image_encoder, &settings.ip_adapter)?;
        if settings.resampler == ResamplerPlace::Inside && settings.together == Together::Averaged {
            return Err(OpError::new(
                "together: image tokens are averaged behind the resampler, and with `resampler: inside` that is in the backbone; \
                 set `together: concatenated`",
            ));
        }
        Ok(Self { settings, encoders })
    }

    fn shapes(&self, (images, backbone): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let (batch, references) = self.references(&images.0)?;
        let (_, width) = self.encoders.shape(ResamplerPlace::Outside);
        if let Some(taken) = backbone.as_ref().map(|b| b.layout().text_width).filter(|taken| *taken != width)
        {
            let other = if width == 768 { ", as those of SD 1.5 are" } else { "" };
            return Err(OpError::new(format!(
                "image tokens of `ip_adapter` are {width} wide{other}, but the backbone takes {taken}: an IP-Adapter of the \
                 backbone's kind is needed"
            )));
        }
        let place = self.settings.resampler;
        if let Some(pictures) = backbone.as_ref().and_then(|b| b.layout().pictures) {
            let (tokens, _) = self.encoders.shape(ResamplerPlace::Inside);
            if place == ResamplerPlace::Outside {
                return Err(OpError::new(
                    "the backbone has the resampler inside, and this node runs it, too: set `resampler: inside` here, most simply \
                     `resampler: \"@backbone.resampler\"`",
                ));
            }
            same(
                "the number of tokens of `image_encoder`",
                tokens,
                "`picture_tokens` of the backbone",
                pictures.count,
            )?;
        } else if place == ResamplerPlace::Inside && backbone.is_some() {
            return Err(OpError::new(
                "resampler: the backbone has none inside; set `resampler: inside` on its node, too",
            ));
        }
        let (_, width) = self.encoders.shape(place);
        Ok(((batch, self.tokens(references), width),))
    }

    fn cost(&self, (images, _): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        on_host(self.cost_of(&images.0))
    }

    fn gpu_cost(&self, (images, _): &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(on_gpu(self.cost_of(&images.0)))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        vec![self.encoders.note(self.settings.resampler)]
    }

    fn cacheable(&self) -> Option<Identity> {
        let identity = Identity::of(&self.settings).ok()?.shape_only("backbone").on_device();
        Some(self.encoders.files().fold(identity, |identity, (name, path)| identity.file(name, &path)))
    }

    fn forward(&self, ctx: &Ctx<'_>, (images, _): Self::In) -> Result<(Self::Out, ()), OpError> {
        let batch = images.0.first().map_or(0, |images| images.batch);
        let place = self.settings.resampler;
        let (tokens, (queries, width)) = (self.tokens(images.0.len()), self.encoders.shape(place));
        let values = if self.settings.negative {
            self.encoders.empty(ctx, place)?.repeat(batch * tokens / queries)
        } else {
            let each = images.0.iter().map(|images| self.encode(ctx, images));
            self.together(&each.collect::<Result<Vec<_>, _>>()?)
        };
        Ok(((tensor(ctx, (batch, tokens, width), values)?.into(),), ()))
    }
}

#[cfg(test)]
mod tests;
