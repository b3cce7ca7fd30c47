//! The image encoder and the resampler of an IP-Adapter-Plus, on the device of the run.
//!
//! ```text
//! B  pictures    Q  tokens that stand for one    E  their width
//! ```

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use prefgraph_nn::{
    self as nn, Cpu, Device, PassCost,
    autoencoders::Batch,
    cuda::Cuda,
    once::get_or_try_init,
    vision::{ImageResampler, Preprocess, VitEncoder, vit::VitFamily},
};

use crate::{
    operator::{Ctx, OpError},
    operators::{
        backbone::ResamplerPlace,
        weights::{below, configuration},
    },
    settings::DataPath,
};

/// Tokens of pictures, `[B, Q, E]`.
pub(super) type Tokens = nn::Tensor<(usize, usize, usize)>;

/// Both with their files.
#[derive(Debug)]
pub(super) struct ImageEncoders {
    cpu: Encoders<Cpu>,
    /// Where the run has a GPU, from the first use on.
    gpu: OnceLock<Encoders<Cuda>>,
    vit: PathBuf,
    adapter: PathBuf,
    /// Tokens of a picture of zeros, once they were asked for.
    empty: OnceLock<Vec<f32>>,
}

/// Both on one device: weights are read for it when they first run.
#[derive(Debug)]
struct Encoders<D: Device> {
    vit: VitEncoder<D>,
    resampler: ImageResampler<D>,
}

impl<D: Device> Encoders<D> {
    fn open(vit: &Path, adapter: &Path) -> Result<Self, OpError> {
        let of = |setting: &'static str| move |e: nn::Error| OpError::new(format!("{setting}: {e}"));
        let vit = VitEncoder::open(vit).map_err(of("image_encoder"))?;
        let resampler = ImageResampler::open(adapter).map_err(of("ip_adapter"))?;
        if vit.config().family != VitFamily::Clip {
            return Err(OpError::new(
                "image_encoder: it is not CLIP's: expected the one that the IP-Adapter was trained with",
            ));
        }
        resampler.check_input(vit.config().width).map_err(of("ip_adapter"))?;
        Ok(Self { vit, resampler })
    }

    fn encode(
        &self,
        device: &D,
        host: &Cpu,
        resampler: ResamplerPlace,
        pictures: &Batch,
    ) -> Result<Tokens, OpError> {
        let seen = self.vit.penultimate(device, host, pictures)?;
        match resampler {
            ResamplerPlace::Outside => Ok(self.resampler.encode(device, host, &seen)?),
            ResamplerPlace::Inside => Ok(seen),
        }
    }
}

impl ImageEncoders {
    /// Open the files; only headers are read.
    pub fn open(vit: &DataPath, adapter: &DataPath) -> Result<Self, OpError> {
        if vit.is_empty() {
            return Err(OpError::new(
                "image_encoder: the encoder is needed: its folder, the folder above its `image_encoder`, or its single file",
            ));
        }
        if adapter.is_empty() {
            return Err(OpError::new(
                "ip_adapter: the file of an IP-Adapter-Plus is needed, e.g. `ip-adapter-plus_sdxl_vit-h.safetensors`",
            ));
        }
        let (vit, adapter) = (below(vit, "image_encoder"), adapter.0.clone());
        let cpu = Encoders::open(&vit, &adapter)?;
        Ok(Self { cpu, gpu: OnceLock::new(), vit, adapter, empty: OnceLock::new() })
    }

    /// Tokens of a picture and their width: Q and E, or those of the image encoder where the resampler is elsewhere.
    pub fn shape(&self, resampler: ResamplerPlace) -> (usize, usize) {
        let sizes = self.cpu.resampler.sizes();
        match resampler {
            ResamplerPlace::Outside => (sizes.queries, sizes.output),
            ResamplerPlace::Inside => (self.encoder_tokens(), sizes.input),
        }
    }

    fn encoder_tokens(&self) -> usize {
        1 + self.cpu.vit.config().grid().pow(2)
    }

    /// What the encoder sees of a picture.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess::clip(self.cpu.vit.config().picture)
    }

    /// The files that tokens depend on, by name.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let beside = configuration(&self.vit).map(|path| ("image_encoder_config", path));
        let all = [("image_encoder", self.vit.clone()), ("ip_adapter", self.adapter.clone())];
        beside.into_iter().chain(all)
    }

    /// What so many pictures take: the encoder and the resampler run one after the other.
    pub fn cost(&self, place: ResamplerPlace, pictures: usize) -> PassCost {
        let Encoders { vit, resampler } = &self.cpu;
        let first = vit.cost(pictures);
        if place == ResamplerPlace::Inside {
            return PassCost { weight_bytes: vit.weight_bytes() as f64, ..first };
        }
        let second = resampler.cost(pictures, self.encoder_tokens());
        PassCost {
            forward_flops: first.forward_flops + second.forward_flops,
            scratch_bytes: first.scratch_bytes.max(second.scratch_bytes),
            weight_bytes: (vit.weight_bytes() + resampler.weight_bytes()) as f64,
            ..first
        }
    }

    /// A line for people.
    pub fn note(&self, place: ResamplerPlace) -> String {
        let Encoders { vit, resampler } = &self.cpu;
        let [encoder, prompts] = [vit.parameters(), resampler.parameters()].map(|n| n as f64 / 1e6);
        let (queries, width) = self.shape(place);
        if place == ResamplerPlace::Inside {
            return format!(
                "image encoder with {encoder:.2}M frozen parameters, {queries} tokens {width} wide for each reference; the \
                 resampler is part of the backbone"
            );
        }
        format!(
            "image encoder with {encoder:.2}M and resampler with {prompts:.2}M frozen parameters, {queries} tokens {width} wide for \
             each reference"
        )
    }

    /// The tokens of pictures `[B, 3, S, S]` as the encoder sees them.
    pub fn encode(
        &self,
        ctx: &Ctx<'_>,
        resampler: ResamplerPlace,
        pictures: &Batch,
    ) -> Result<Tokens, OpError> {
        match ctx.gpu {
            None => self.cpu.encode(ctx.cpu, ctx.cpu, resampler, pictures),
            Some(gpu) => {
                let encoders = get_or_try_init(&self.gpu, || Encoders::open(&self.vit, &self.adapter))?;
                encoders.encode(gpu, ctx.cpu, resampler, pictures)
            }
        }
    }

    /// The tokens `[Q, E]` of a picture whose values are all zero after they were normalised: what the adapter was trained with
    /// where a picture was left out.
    pub fn empty(&self, ctx: &Ctx<'_>, resampler: ResamplerPlace) -> Result<&[f32], OpError> {
        let make = || {
            let side = self.preprocess().side;
            Ok(self.encode(ctx, resampler, &nn::Tensor::zeros(ctx.cpu, (1, 3, side, side)))?.into_values())
        };
        get_or_try_init(&self.empty, make).map(Vec::as_slice)
    }
}
