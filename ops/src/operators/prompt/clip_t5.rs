//! The text encoders of FLUX: T5 for the tokens, CLIP for the pooled vector.
//!
//! Shape letters: `B` batch, `L` text tokens, `E` text width, `P` pooled width.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use prefgraph_nn::{
    Cpu, Device,
    cuda::Cuda,
    once::get_or_try_init,
    text::{ClipEncoder, ClipModel, ClipTokenizer, T5Encoder, T5Tokenizer},
};

use super::{
    PromptSettings,
    encoders::{Encoded, TextEncoders, ids, of},
    files::{by_setting, encoder, one_model, tokenizer},
};
use crate::operator::{Cost, Ctx, OpError};

/// T5 tokens of a prompt where nothing else is stated: what FLUX.1-dev was trained with.
const LENGTH: usize = 512;

/// Both encoders with their tokenisers.
#[derive(Debug)]
pub(super) struct ClipT5 {
    cpu: Encoders<Cpu>,
    /// Where the run has a GPU, from the first use on.
    gpu: OnceLock<Encoders<Cuda>>,
    clip_tokenizer: ClipTokenizer,
    t5_tokenizer: T5Tokenizer,
    /// Where the encoders lie.
    clip: PathBuf,
    t5: PathBuf,
    /// Where encoders and tokenisers lie, by setting.
    paths: Vec<(&'static str, PathBuf)>,
}

/// Both on one device: weights are read for it when they first run.
#[derive(Debug)]
struct Encoders<D: Device> {
    clip: ClipEncoder<D>,
    t5: T5Encoder<D>,
}

impl<D: Device> Encoders<D> {
    fn open(clip: &Path, t5: &Path) -> Result<Self, OpError> {
        Ok(Self {
            clip: ClipEncoder::open(clip, ClipModel::L).map_err(of("clip"))?,
            t5: T5Encoder::open(t5).map_err(of("t5"))?,
        })
    }

    /// Text tokens and pooled vectors of so many prompts, from the ids of each encoder.
    fn encode(
        &self,
        device: &D,
        host: &Cpu,
        prompts: usize,
        clip: &[u32],
        t5: &[u32],
    ) -> Result<Encoded, OpError> {
        let pooled = self.clip.encode(device, host, prompts, clip)?.pooled;
        Ok((self.t5.encode(device, host, prompts, t5)?, pooled))
    }
}

impl ClipT5 {
    /// Open the files; only headers and vocabularies are read.
    pub(super) fn open(settings: &PromptSettings) -> Result<Self, OpError> {
        let clip_path = encoder("clip", &settings.clip, "text_encoder")?;
        let t5_path = encoder("t5", &settings.t5, "text_encoder_2")?;
        let cpu = Encoders::open(&clip_path, &t5_path)?;
        let Encoders { clip, t5 } = &cpu;

        let clip_words = tokenizer("clip_tokenizer", &settings.clip_tokenizer, &clip_path, "tokenizer")?;
        let most = clip.config().max_position_embeddings;
        let clip_tokenizer =
            ClipTokenizer::open(&clip_words, most, ClipModel::L).map_err(of("clip_tokenizer"))?;
        let t5_words = tokenizer("t5_tokenizer", &settings.t5_tokenizer, &t5_path, "tokenizer_2")?;
        let t5_tokenizer =
            T5Tokenizer::open(&t5_words, settings.length.unwrap_or(LENGTH)).map_err(of("t5_tokenizer"))?;
        one_model("clip", clip_tokenizer.largest_id(), clip.config().vocab_size)?;
        one_model("t5", t5_tokenizer.largest_id(), t5.config().vocab_size)?;
        let paths = by_setting(
            [("clip", "clip_config", &clip_path), ("t5", "t5_config", &t5_path)],
            [("clip_tokenizer", clip_words), ("t5_tokenizer", t5_words)],
        );
        let gpu = OnceLock::new();
        Ok(Self { cpu, gpu, clip_tokenizer, t5_tokenizer, clip: clip_path, t5: t5_path, paths })
    }
}

impl TextEncoders for ClipT5 {
    fn paths(&self) -> &[(&'static str, PathBuf)] {
        &self.paths
    }

    fn shape(&self) -> (usize, usize, usize) {
        (self.t5_tokenizer.length(), self.cpu.t5.config().d_model, self.cpu.clip.config().hidden_size)
    }

    /// The encoders run one after the other. Of prompts that are equal one is encoded, but that is known at run time only.
    fn cost(&self, batch: usize) -> Cost {
        let clip = self.cpu.clip.cost(batch, self.clip_tokenizer.length());
        let t5 = self.cpu.t5.cost(batch, self.t5_tokenizer.length());
        Cost {
            forward_flops: clip.forward_flops + t5.forward_flops,
            moved_bytes: (self.cpu.clip.weight_bytes() + self.cpu.t5.weight_bytes()) as f64,
            scratch_bytes: clip.scratch_bytes.max(t5.scratch_bytes),
            ..Cost::default()
        }
    }

    fn note(&self) -> String {
        let million = |parameters: usize| parameters as f64 / 1e6;
        format!(
            "T5 with {:.2}M frozen parameters for {} tokens, CLIP with {:.2}M for the pooled vector",
            million(self.cpu.t5.parameters()),
            self.t5_tokenizer.length(),
            million(self.cpu.clip.parameters()),
        )
    }

    fn sources(&self) -> [&'static str; 2] {
        ["t5", "clip"]
    }

    fn encode(&self, ctx: &Ctx<'_>, prompts: &[&String]) -> Result<Encoded, OpError> {
        let clip = ids(prompts, |prompt| self.clip_tokenizer.encode(prompt))?;
        let t5 = ids(prompts, |prompt| self.t5_tokenizer.encode(prompt))?;
        match ctx.gpu {
            None => self.cpu.encode(ctx.cpu, ctx.cpu, prompts.len(), &clip, &t5),
            Some(gpu) => {
                let encoders = get_or_try_init(&self.gpu, || Encoders::open(&self.clip, &self.t5))?;
                encoders.encode(gpu, ctx.cpu, prompts.len(), &clip, &t5)
            }
        }
    }
}

#[cfg(test)]
mod tests;
