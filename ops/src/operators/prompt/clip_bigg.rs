//! The text encoders of SDXL: CLIP-L and OpenCLIP ViT-bigG side by side for the tokens, ViT-bigG for the pooled vector.
//!
//! Shape letters: `B` batch, `L` text tokens, `E` text width: that of both encoders together, `P` pooled width.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use prefgraph_nn::{
    self as nn, Cpu, Device,
    cuda::Cuda,
    once::get_or_try_init,
    text::{ClipEncoder, ClipModel, ClipTokenizer},
};

use super::{
    PromptSettings,
    encoders::{Encoded, TextEncoders, ids, of},
    files::{by_setting, encoder, one_model, tokenizer},
};
use crate::operator::{Cost, Ctx, OpError};

/// Both encoders with their tokenisers.
#[derive(Debug)]
pub(super) struct ClipBigG {
    cpu: Encoders<Cpu>,
    /// Where the run has a GPU, from the first use on.
    gpu: OnceLock<Encoders<Cuda>>,
    clip_tokenizer: ClipTokenizer,
    bigg_tokenizer: ClipTokenizer,
    /// Where the encoders lie.
    clip: PathBuf,
    bigg: PathBuf,
    /// Where encoders and tokenisers lie, by setting.
    paths: Vec<(&'static str, PathBuf)>,
}

/// Both on one device: weights are read for it when they first run.
#[derive(Debug)]
struct Encoders<D: Device> {
    clip: ClipEncoder<D>,
    bigg: ClipEncoder<D>,
}

impl<D: Device> Encoders<D> {
    fn open(clip: &Path, bigg: &Path) -> Result<Self, OpError> {
        Ok(Self {
            clip: ClipEncoder::open(clip, ClipModel::L).map_err(of("clip"))?,
            bigg: ClipEncoder::open(bigg, ClipModel::BigG).map_err(of("bigg"))?,
        })
    }

    /// Text tokens and pooled vectors of so many prompts, from the ids of each encoder.
    fn encode(
        &self,
        device: &D,
        host: &Cpu,
        prompts: usize,
        clip: &[u32],
        bigg: &[u32],
    ) -> Result<Encoded, OpError> {
        let first = self.clip.encode(device, host, prompts, clip)?.penultimate;
        let second = self.bigg.encode(device, host, prompts, bigg)?;
        Ok((side_by_side(host, &first, &second.penultimate)?, second.pooled))
    }
}

impl ClipBigG {
    /// Open the files; only headers and vocabularies are read.
    pub(super) fn open(settings: &PromptSettings) -> Result<Self, OpError> {
        let clip_path = encoder("clip", &settings.clip, "text_encoder")?;
        let bigg_path = encoder("bigg", &settings.bigg, "text_encoder_2")?;
        let cpu = Encoders::open(&clip_path, &bigg_path)?;
        let (first, second) = (cpu.clip.config(), cpu.bigg.config());
        let [length, other] = [first, second].map(|config| config.max_position_embeddings);
        if length != other {
            return Err(OpError::new(format!(
                "clip takes prompts of {length} tokens and bigg of {other}: tokens that stand side by side must be equally many"
            )));
        }
        let clip_words = tokenizer("clip_tokenizer", &settings.clip_tokenizer, &clip_path, "tokenizer")?;
        let clip_tokenizer =
            ClipTokenizer::open(&clip_words, length, ClipModel::L).map_err(of("clip_tokenizer"))?;
        let bigg_words = tokenizer("bigg_tokenizer", &settings.bigg_tokenizer, &bigg_path, "tokenizer_2")?;
        let bigg_tokenizer =
            ClipTokenizer::open(&bigg_words, length, ClipModel::BigG).map_err(of("bigg_tokenizer"))?;
        one_model("clip", clip_tokenizer.largest_id(), first.vocab_size)?;
        one_model("bigg", bigg_tokenizer.largest_id(), second.vocab_size)?;
        let paths = by_setting(
            [("clip", "clip_config", &clip_path), ("bigg", "bigg_config", &bigg_path)],
            [("clip_tokenizer", clip_words), ("bigg_tokenizer", bigg_words)],
        );
        let gpu = OnceLock::new();
        Ok(Self { cpu, gpu, clip_tokenizer, bigg_tokenizer, clip: clip_path, bigg: bigg_path, paths })
    }
}

impl TextEncoders for ClipBigG {
    fn paths(&self) -> &[(&'static str, PathBuf)] {
        &self.paths
    }

    fn shape(&self) -> (usize, usize, usize) {
        let Encoders { clip, bigg } = &self.cpu;
        let width = clip.config().hidden_size + bigg.config().hidden_size;
        (self.clip_tokenizer.length(), width, bigg.pooled_width())
    }

    fn sources(&self) -> [&'static str; 2] {
        ["clip and bigg", "bigg"]
    }

    /// The encoders run one after the other. Of prompts that are equal one is encoded, but that is known at run time only.
    fn cost(&self, batch: usize) -> Cost {
        let Encoders { clip, bigg } = &self.cpu;
        let length = self.clip_tokenizer.length();
        let [first, second] = [clip, bigg].map(|encoder| encoder.cost(batch, length));
        Cost {
            forward_flops: first.forward_flops + second.forward_flops,
            moved_bytes: (clip.weight_bytes() + bigg.weight_bytes()) as f64,
            scratch_bytes: first.scratch_bytes.max(second.scratch_bytes),
            ..Cost::default()
        }
    }

    fn note(&self) -> String {
        let [clip, bigg] = [&self.cpu.clip, &self.cpu.bigg].map(|encoder| encoder.parameters() as f64 / 1e6);
        format!(
            "CLIP-L with {clip:.2}M and OpenCLIP ViT-bigG with {bigg:.2}M frozen parameters for {} tokens",
            self.clip_tokenizer.length()
        )
    }

    fn encode(&self, ctx: &Ctx<'_>, prompts: &[&String]) -> Result<Encoded, OpError> {
        let clip = ids(prompts, |prompt| self.clip_tokenizer.encode(prompt))?;
        let bigg = ids(prompts, |prompt| self.bigg_tokenizer.encode(prompt))?;
        match ctx.gpu {
            None => self.cpu.encode(ctx.cpu, ctx.cpu, prompts.len(), &clip, &bigg),
            Some(gpu) => {
                let encoders = get_or_try_init(&self.gpu, || Encoders::open(&self.clip, &self.bigg))?;
                encoders.encode(gpu, ctx.cpu, prompts.len(), &clip, &bigg)
            }
        }
    }
}

type Tokens = nn::Tensor<(usize, usize, usize)>;

/// Each token of the first followed by that of the second, `[B, L, E]`.
fn side_by_side(host: &Cpu, first: &Tokens, second: &Tokens) -> Result<Tokens, OpError> {
    let ((batch, length, left), (_, _, right)) = (first.shape(), second.shape());
    let pairs = first.values().chunks_exact(left).zip(second.values().chunks_exact(right));
    let values: Vec<f32> = pairs.flat_map(|(first, second)| first.iter().chain(second)).copied().collect();
    Ok(nn::Tensor::new(host, (batch, length, left + right), values)?)
}

#[cfg(test)]
mod tests;
