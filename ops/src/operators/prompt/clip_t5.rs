//! The text encoders of FLUX: T5 for the tokens, CLIP for the pooled vector.
//!
//! Shape letters: `B` batch, `L` text tokens, `E` text width, `P` pooled width.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use prefgraph_nn::{
    self as nn, Cpu, Device,
    cuda::Cuda,
    once::get_or_try_init,
    text::{ClipEncoder, ClipModel, ClipTokenizer, T5Encoder, T5Tokenizer},
};

use super::PromptSettings;
use crate::{
    operator::{Cost, Ctx, OpError},
    settings::DataPath,
};

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
        let of = |setting: &str, e: nn::Error| OpError::new(format!("{setting}: {e}"));
        Ok(Self {
            clip: ClipEncoder::open(clip, ClipModel::L).map_err(|e| of("clip", e))?,
            t5: T5Encoder::open(t5).map_err(|e| of("t5", e))?,
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

/// Text tokens `[B, L, E]` and pooled vectors `[B, P]`.
pub(super) type Encoded = (nn::Tensor<(usize, usize, usize)>, nn::Tensor<(usize, usize)>);

impl ClipT5 {
    /// Open the files; only headers and vocabularies are read.
    pub(super) fn open(settings: &PromptSettings) -> Result<Self, OpError> {
        let of = |setting: &str, e: nn::Error| OpError::new(format!("{setting}: {e}"));
        let clip_path = encoder("clip", &settings.clip, "text_encoder")?;
        let t5_path = encoder("t5", &settings.t5, "text_encoder_2")?;
        let cpu = Encoders::open(&clip_path, &t5_path)?;
        let Encoders { clip, t5 } = &cpu;

        let clip_words = tokenizer("clip_tokenizer", &settings.clip_tokenizer, &clip_path, "tokenizer")?;
        let clip_tokenizer = ClipTokenizer::open(&clip_words, clip.config().max_position_embeddings)
            .map_err(|e| of("clip_tokenizer", e))?;
        let t5_words = tokenizer("t5_tokenizer", &settings.t5_tokenizer, &t5_path, "tokenizer_2")?;
        let t5_tokenizer = T5Tokenizer::open(&t5_words, settings.length.unwrap_or(LENGTH))
            .map_err(|e| of("t5_tokenizer", e))?;
        for (setting, largest, vocabulary) in [
            ("clip", clip_tokenizer.largest_id(), clip.config().vocab_size),
            ("t5", t5_tokenizer.largest_id(), t5.config().vocab_size),
        ] {
            if largest as usize >= vocabulary {
                return Err(OpError::new(format!(
                    "{setting}_tokenizer: it has ids up to {largest}, but the encoder of `{setting}` knows {vocabulary} \
                     tokens: they are not of one model"
                )));
            }
        }
        // Beside a single file there may be its configuration, of which the result depends, too.
        let beside =
            |path: &Path| Some(path.with_file_name("config.json")).filter(|c| path.is_file() && c.is_file());
        let configurations =
            [("clip_config", beside(&clip_path)), ("t5_config", beside(&t5_path))].into_iter();
        let mut paths: Vec<(&'static str, PathBuf)> =
            configurations.filter_map(|(name, path)| Some((name, path?))).collect();
        paths.extend([
            ("clip", clip_path),
            ("t5", t5_path),
            ("clip_tokenizer", clip_words),
            ("t5_tokenizer", t5_words),
        ]);
        Ok(Self { cpu, gpu: OnceLock::new(), clip_tokenizer, t5_tokenizer, paths })
    }

    /// Where encoders and tokenisers are read from, by setting.
    pub(super) fn paths(&self) -> &[(&'static str, PathBuf)] {
        &self.paths
    }

    /// `L`, `E` and `P`.
    pub(super) fn shape(&self) -> (usize, usize, usize) {
        (self.t5_tokenizer.length(), self.cpu.t5.config().d_model, self.cpu.clip.config().hidden_size)
    }

    /// The encoders run one after the other. Of prompts that are equal one is encoded, but that is known at run time only.
    pub(super) fn cost(&self, batch: usize) -> Cost {
        let clip = self.cpu.clip.cost(batch, self.clip_tokenizer.length());
        let t5 = self.cpu.t5.cost(batch, self.t5_tokenizer.length());
        Cost {
            forward_flops: clip.forward_flops + t5.forward_flops,
            moved_bytes: (self.cpu.clip.weight_bytes() + self.cpu.t5.weight_bytes()) as f64,
            scratch_bytes: clip.scratch_bytes.max(t5.scratch_bytes),
            ..Cost::default()
        }
    }

    pub(super) fn note(&self) -> String {
        let million = |parameters: usize| parameters as f64 / 1e6;
        format!(
            "T5 with {:.2}M frozen parameters for {} tokens, CLIP with {:.2}M for the pooled vector",
            million(self.cpu.t5.parameters()),
            self.t5_tokenizer.length(),
            million(self.cpu.clip.parameters()),
        )
    }

    fn on_gpu(&self) -> Result<&Encoders<Cuda>, OpError> {
        let path =
            |setting| self.paths.iter().find(|(name, _)| *name == setting).map(|(_, path)| path.as_path());
        let (Some(clip), Some(t5)) = (path("clip"), path("t5")) else {
            return Err(OpError::internal("encoders without paths"));
        };
        get_or_try_init(&self.gpu, || Encoders::open(clip, t5))
    }

    /// Encode prompts; equal ones once.
    pub(super) fn encode(&self, ctx: &Ctx<'_>, prompts: &[String]) -> Result<Encoded, OpError> {
        let mut different: Vec<&String> = Vec::new();
        let place = |prompt| {
            different.iter().position(|p| *p == prompt).unwrap_or_else(|| {
                different.push(prompt);
                different.len() - 1
            })
        };
        let places: Vec<usize> = prompts.iter().map(place).collect();
        let ids = |encode: &dyn Fn(&str) -> nn::error::Result<Vec<u32>>| {
            different.iter().map(|p| encode(p)).collect::<Result<Vec<_>, _>>().map(|all| all.concat())
        };
        let clip = ids(&|prompt| self.clip_tokenizer.encode(prompt))?;
        let t5 = ids(&|prompt| self.t5_tokenizer.encode(prompt))?;
        let count = different.len();
        let (tokens, pooled) = match ctx.gpu {
            None => self.cpu.encode(ctx.cpu, ctx.cpu, count, &clip, &t5)?,
            Some(gpu) => self.on_gpu()?.encode(gpu, ctx.cpu, count, &clip, &t5)?,
        };
        let (length, width, pooled_width) = self.shape();
        Ok((
            nn::Tensor::new(
                ctx.cpu,
                (prompts.len(), length, width),
                chosen(tokens.values(), length * width, &places),
            )?,
            nn::Tensor::new(
                ctx.cpu,
                (prompts.len(), pooled_width),
                chosen(pooled.values(), pooled_width, &places),
            )?,
        ))
    }
}

/// The rows at these places.
fn chosen(values: &[f32], size: usize, places: &[usize]) -> Vec<f32> {
    places.iter().flat_map(|p| &values[p * size..(p + 1) * size]).copied().collect()
}

/// The folder of an encoder, which may be given as the folder above, or its file.
fn encoder(setting: &str, path: &DataPath, name: &str) -> Result<PathBuf, OpError> {
    if path.is_empty() {
        return Err(OpError::new(format!(
            "{setting}: the encoder is needed: its folder, that of a checkpoint with `{name}`, or its single file"
        )));
    }
    let folder = path.as_path();
    let inside = folder.join(name);
    Ok(if !folder.join("config.json").exists() && inside.is_dir() { inside } else { folder.to_owned() })
}

/// The folder of a tokeniser: as stated, else the encoder's neighbour of this name, else the encoder's own.
fn tokenizer(setting: &str, path: &DataPath, encoder: &Path, name: &str) -> Result<PathBuf, OpError> {
    if !path.is_empty() {
        return Ok(path.0.clone());
    }
    let beside = encoder.parent().map(|above| above.join(name));
    match beside.filter(|folder| folder.is_dir()) {
        Some(beside) => Ok(beside),
        None if encoder.is_dir() => Ok(encoder.to_owned()),
        None => Err(OpError::new(format!(
            "{setting}: the encoder is a single file, `{}`, which has no tokeniser: name the folder of one",
            encoder.display()
        ))),
    }
}

#[cfg(test)]
mod tests;
