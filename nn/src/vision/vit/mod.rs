//! Vision transformers (Dosovitskiy et al. 2020): CLIP's and OpenCLIP's image encoders (Radford et al. 2021), DINO (Caron et al.
//! 2021) and DINOv2 (Oquab et al. 2023). A picture is cut into patches; each becomes a token behind that of the class.
//!
//! ```text
//! B  pictures    N  patches of each    E  width    P  width of the projection    S  side of a patch in pixels
//! ```
//!
//! Architectures and names are those of transformers' `CLIPVisionModelWithProjection`, `CLIPModel`, `ViTModel` and `Dinov2Model`.

mod config;
mod family;
mod patches;
mod positions;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use self::config::PROJECTION;
pub use self::{config::VitConfig, family::VitFamily};
use crate::{
    autoencoders::Batch,
    cost::PassCost,
    cpu::{Cpu, map::check_lengths},
    device::{Device, Kind, NormKind, Queue, Scores, View, ViewMut},
    encoders::{
        block::{self, Block},
        check_finite, measure, must_be_model,
        weights::{LOADING, PrefixedFiles},
    },
    error::{Error, Result},
    files::TensorFiles,
    layers::{Linear, Norm},
    once::get_or_try_init,
    tensor::Tensor,
};

/// Name in messages.
const WHO: &str = "vision encoder";

/// A vision transformer on the processor.
pub type Vit = VitEncoder<Cpu>;

/// Tokens of pictures, `[B, 1 + N, E]`: that of the class, then those of the patches, row by row.
pub type PictureTokens = Tensor<(usize, usize, usize)>;

/// A vision transformer whose matrices stay in their file. Norms, biases and embeddings are read by the first pass, for its
/// device; later passes are to run on the same one.
#[derive(Debug)]
pub struct VitEncoder<D: Device> {
    config: VitConfig,
    source: PrefixedFiles,
    weights: OnceLock<Weights<D>>,
}

#[derive(Debug)]
struct Weights<D: Device> {
    /// `[E]`.
    class: Vec<f32>,
    /// `[1 + N, E]`, for pictures of the size of training.
    positions: Vec<f32>,
    /// `[3 S S, E]`.
    patches: Linear<D>,
    first_norm: Option<Norm<D>>,
    blocks: Vec<Block<D>>,
    last_norm: Norm<D>,
    projection: Option<Linear<D>>,
}

/// The stream of a pass, and the queue that it is on.
struct Stream<D: Device> {
    queue: D::Queue,
    /// `[B, 1 + N, E]`.
    x: D::Buffer,
    pictures: usize,
    tokens: usize,
}

impl<D: Device> VitEncoder<D> {
    /// Open a folder with `config.json` and `model.safetensors` or the index of its shards, or one file: of that the sizes come
    /// from a `config.json` of a vision transformer beside it, or from its tensors, if it is OpenCLIP ViT-H or ViT-bigG. Only
    /// headers are read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing, surplus, of other
    /// shapes or in fp8.
    pub fn open(path: &Path) -> Result<Self> {
        must_be_model(path, "the vision encoder", "image_encoder")?;
        let (config, source, files) = if path.is_dir() {
            let source = path.join("config.json");
            let config = VitConfig::read(&source)?;
            (config, source, TensorFiles::open_in(path, "model")?)
        } else {
            let files = TensorFiles::open(path)?;
            match VitConfig::beside(path)? {
                Some((config, source)) => (config, source, files),
                None => (VitConfig::measured(&files)?, path.to_owned(), files),
            }
        };
        let prefix = config.family.prefix();
        measure::no_fp8(&files, prefix, "as it is published")?;
        config.bound(&source, &files)?;
        let expected = config.tensors();
        files.expect_exactly_under(&format!("{prefix}{}", config.family.blocks()), &expected)?;
        let source = PrefixedFiles::new(Arc::new(files), prefix, &expected);
        Ok(Self { config, source, weights: OnceLock::new() })
    }

    /// The sizes.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Number of frozen values.
    pub fn parameters(&self) -> usize {
        self.source.parameters
    }

    /// Bytes of the mapped file that they are read from.
    pub fn weight_bytes(&self) -> usize {
        self.source.weight_bytes
    }

    /// What `pictures` pictures of the size of training take.
    pub fn cost(&self, pictures: usize) -> PassCost {
        let patches = self.config.grid().pow(2);
        let embedding = 6.0 * (self.config.patch.pow(2) * self.config.width) as f64;
        let blocks = block::cost(self.config.block(), self.config.layers, pictures, 1 + patches);
        PassCost { forward_flops: blocks.forward_flops + (pictures * patches) as f64 * embedding, ..blocks }
    }

    /// Tokens before the last block, without a norm: what IP-Adapter-Plus was trained with. Pictures `[B, 3, H, W]` are
    /// tensors of `host`, their values as a [`Preprocess`](super::Preprocess) makes them.
    ///
    /// # Errors
    /// If the size of the pictures is none that the model takes, weights cannot be read, or the device fails.
    pub fn penultimate(&self, device: &D, host: &Cpu, pictures: &Batch) -> Result<PictureTokens> {
        let Stream { queue, x, pictures, tokens } =
            self.stream(device, pictures, self.config.layers.saturating_sub(1))?;
        self.download(host, &queue, &x, (pictures, tokens))
    }

    /// Tokens after the last norm.
    ///
    /// # Errors
    /// As [`penultimate`](Self::penultimate).
    pub fn tokens(&self, device: &D, host: &Cpu, pictures: &Batch) -> Result<PictureTokens> {
        let Stream { queue, x, pictures, tokens } = self.stream(device, pictures, self.config.layers)?;
        let norm = &self.weights(device)?.last_norm;
        let normed = norm.run(&queue, pictures * tokens, View::new(&x, self.config.width));
        self.download(host, &queue, &normed, (pictures, tokens))
    }

    /// The class token after the last norm and the projection, `[B, P]`: CLIP's image embedding, not normalised.
    ///
    /// # Errors
    /// As [`penultimate`](Self::penultimate), and if the model has no projection.
    pub fn embed(&self, device: &D, host: &Cpu, pictures: &Batch) -> Result<Tensor<(usize, usize)>> {
        let Some(projection) = &self.weights(device)?.projection else {
            return Err(Error::Setting("this vision encoder has no projection: expected CLIP's".into()));
        };
        let e = self.config.width;
        let Stream { queue, x, pictures, tokens } = self.stream(device, pictures, self.config.layers)?;
        let mut classes = queue.take(pictures * e, Kind::Activation);
        for picture in 0..pictures {
            let to = ViewMut::new(&mut classes, e).skip(picture * e);
            queue.copy_to(View::new(&x, e).skip(picture * tokens * e), e, to);
        }
        let normed = self.weights(device)?.last_norm.run(&queue, pictures, View::new(&classes, e));
        let projected = projection.run(&queue, pictures, View::new(&normed, e))?;
        let values = queue.download(&projected, 0, pictures * projection.outputs())?;
        check_finite(&values, WHO)?;
        Tensor::new(host, (pictures, projection.outputs()), values)
    }

    /// The stream after so many blocks.
    fn stream(&self, device: &D, pictures: &Batch, blocks: usize) -> Result<Stream<D>> {
        let (config, weights) = (&self.config, self.weights(device)?);
        let grid = patches::grid_of(config, pictures)?;
        let (count, patches, e) = (pictures.shape().0, grid.0 * grid.1, config.width);
        let queue = device.queue(LOADING.precision)?;
        let rows = patches::rows(pictures, config.patch);
        let rows = queue.upload(&rows, Kind::Activation);
        let embedded =
            weights.patches.run(&queue, count * patches, View::new(&rows, weights.patches.inputs()))?;
        drop(rows);

        let tokens = 1 + patches;
        let mut start = positions::for_grid(&weights.positions, (config.grid(), e), grid);
        start[..e].iter_mut().zip(&weights.class).for_each(|(position, class)| *position += class);
        let mut x = queue.fill(count * tokens * e, Kind::Activation, |x| {
            x.chunks_exact_mut(tokens * e).for_each(|picture| picture.copy_from_slice(&start));
        });
        for picture in 0..count {
            let from = View::new(&embedded, e).skip(picture * patches * e);
            let to = ViewMut::new(&mut x, e).skip((picture * tokens + 1) * e);
            queue.add_scaled(1.0, from, to, patches * e);
        }
        drop(embedded);
        if let Some(norm) = &weights.first_norm {
            x = norm.run(&queue, count * tokens, View::new(&x, e));
        }
        for block in &weights.blocks[..blocks] {
            check_lengths()?;
            block.run(&queue, (count, tokens), Scores::PLAIN, &mut x)?;
        }
        Ok(Stream { queue, x, pictures: count, tokens })
    }

    fn download(
        &self,
        host: &Cpu,
        queue: &D::Queue,
        x: &D::Buffer,
        (pictures, tokens): (usize, usize),
    ) -> Result<PictureTokens> {
        let e = self.config.width;
        let values = queue.download(x, 0, pictures * tokens * e)?;
        check_finite(&values, WHO)?;
        Tensor::new(host, (pictures, tokens, e), values)
    }

    fn weights(&self, device: &D) -> Result<&Weights<D>> {
        get_or_try_init(&self.weights, || self.read(device))
    }

    fn read(&self, device: &D) -> Result<Weights<D>> {
        let VitConfig { family, width: e, patch, eps, .. } = self.config;
        let source = &self.source;
        let norm = |name: &str| source.norm(device, NormKind::Layer, name, e, eps);
        let [class, positions] = self.config.embeddings();
        let inputs = 3 * patch * patch;
        let block = |number| Block::read(device, source, &family.block(number), self.config.block());
        let projection = |p| source.unprefixed().linear(device, PROJECTION, false, (e, p));
        Ok(Weights {
            class: source.values(family.class(), &class)?,
            positions: source.values(family.positions(), &positions)?,
            patches: source.linear(device, family.patches(), family.patches_have_bias(), (inputs, e))?,
            first_norm: family.first_norm().map(norm).transpose()?,
            blocks: (0..self.config.layers).map(block).collect::<Result<_>>()?,
            last_norm: norm(family.last_norm())?,
            projection: self.config.projection.map(projection).transpose()?,
        })
    }
}
