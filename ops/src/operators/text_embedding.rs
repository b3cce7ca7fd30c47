//! `text-embedding`: what a prompt is to CLIP, as one vector beside those of pictures.
//!
//! Shape letters: `B` prompts, `L` token ids of each, `P` width of an embedding.

use std::{path::PathBuf, sync::OnceLock};

use prefgraph_nn::{
    Cpu,
    cuda::Cuda,
    once::get_or_try_init,
    text::{Clip, ClipEncoder, ClipModel, ClipTokenizer},
};

use super::{
    autoencoder::{on_gpu, on_host},
    tensors::tensor,
    weights::configuration,
};
use crate::{
    identity::Identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Embeddings, Texts},
    settings,
    settings::DataPath,
};

settings! {
    /// Settings of [`TextEmbedding`].
    pub struct TextEmbeddingSettings {
        /// A CLIP model with both halves: its folder with `config.json` and weights, or one safetensors file.
        pub encoder: DataPath = DataPath::default(),
        /// Folder of its tokeniser; the encoder's own where it is not given.
        pub tokenizer: DataPath = DataPath::default(),
    }
}

/// Projected embeddings of prompts; what does not fit is cut off.
pub struct TextEmbedding {
    path: PathBuf,
    words: PathBuf,
    tokenizer: ClipTokenizer,
    cpu: Clip,
    /// Where the run has a GPU, from the first use on.
    gpu: OnceLock<ClipEncoder<Cuda>>,
}

impl TextEmbedding {
    fn cost_of(&self, prompts: usize) -> Cost {
        let pass = self.cpu.cost(prompts, self.tokenizer.length());
        Cost {
            forward_flops: pass.forward_flops,
            moved_bytes: self.cpu.weight_bytes() as f64,
            scratch_bytes: pass.scratch_bytes,
            ..Cost::default()
        }
    }
}

impl Operator for TextEmbedding {
    const NAME: &'static str = "text-embedding";
    const DOC: &'static str =
        "Embed prompts as one vector each, beside the embeddings of pictures of the same CLIP model.";
    const IN: [&'static str; 1] = ["prompts"];
    const OUT: [&'static str; 1] = ["embeddings"];
    type Settings = TextEmbeddingSettings;
    type In = (Texts,);
    type Out = (Embeddings,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: TextEmbeddingSettings) -> Result<Self, OpError> {
        if settings.encoder.is_empty() {
            return Err(OpError::new("encoder: a CLIP model is needed: its folder, or its single file"));
        }
        let path = settings.encoder.0.clone();
        let cpu = Clip::open(&path, ClipModel::Pair).map_err(|e| OpError::new(format!("encoder: {e}")))?;
        let words = match (settings.tokenizer.is_empty(), path.is_dir()) {
            (false, _) => settings.tokenizer.0.clone(),
            (true, true) => path.clone(),
            (true, false) => {
                return Err(OpError::new(format!(
                    "tokenizer: the encoder is a single file, `{}`, which has no tokeniser: name the folder of one",
                    path.display()
                )));
            }
        };
        let length = cpu.config().max_position_embeddings;
        let tokenizer = ClipTokenizer::open(&words, length, ClipModel::Pair)
            .map_err(|e| OpError::new(format!("tokenizer: {e}")))?;
        let (largest, vocabulary) = (tokenizer.largest_id(), cpu.config().vocab_size);
        if largest as usize >= vocabulary {
            return Err(OpError::new(format!(
                "tokenizer: it has ids up to {largest}, but the encoder knows {vocabulary} tokens: they are not of one model"
            )));
        }
        Ok(Self { path, words, tokenizer, cpu, gpu: OnceLock::new() })
    }

    // An embedding that nobody reads is not wanted.
    fn due(&self, _: u64) -> bool {
        false
    }

    fn shapes(&self, (prompts,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((prompts.batch, self.cpu.pooled_width()),))
    }

    fn cost(&self, (prompts,): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        on_host(self.cost_of(prompts.batch))
    }

    fn gpu_cost(&self, (prompts,): &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(on_gpu(self.cost_of(prompts.batch)))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        let (millions, length) = (self.cpu.parameters() as f64 / 1e6, self.tokenizer.length());
        vec![format!("text encoder with {millions:.2}M frozen parameters, prompts of {length} tokens")]
    }

    fn cacheable(&self) -> Option<Identity> {
        let identity = Identity::new().on_device().file("encoder", &self.path).file("tokenizer", &self.words);
        Some(match configuration(&self.path) {
            Some(config) => identity.file("encoder_config", &config),
            None => identity,
        })
    }

    fn forward(&self, ctx: &Ctx<'_>, (prompts,): Self::In) -> Result<(Self::Out, ()), OpError> {
        // Prompts of a batch are often equal: photographs have none.
        let mut different: Vec<&String> = prompts.0.iter().collect();
        different.sort_unstable();
        different.dedup();
        let ids =
            different.iter().map(|prompt| self.tokenizer.encode(prompt)).collect::<Result<Vec<_>, _>>()?;
        let (count, ids, host): (_, _, &Cpu) = (different.len(), ids.concat(), ctx.cpu);
        let found = match ctx.gpu {
            None => self.cpu.encode(host, host, count, &ids)?,
            Some(gpu) => {
                let open = || ClipEncoder::open(&self.path, ClipModel::Pair);
                get_or_try_init(&self.gpu, open)?.encode(gpu, host, count, &ids)?
            }
        };
        let width = self.cpu.pooled_width();
        let mut values = Vec::with_capacity(prompts.0.len() * width);
        for prompt in prompts.0.iter() {
            let row = different.binary_search(&prompt).map_err(|_| OpError::internal("a prompt was lost"))?;
            values.extend_from_slice(&found.pooled.values()[row * width..][..width]);
        }
        Ok(((tensor(ctx, (prompts.0.len(), width), values)?.into(),), ()))
    }
}
