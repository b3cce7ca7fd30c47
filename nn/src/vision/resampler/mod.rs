//! The resampler of IP-Adapter-Plus (Ye et al. 2023), after that of Flamingo (Alayrac et al. 2022): learned queries look at the
//! tokens of a picture and become the picture's prompt.
//!
//! ```text
//! B  pictures    T  tokens of each    I  their width    Q  queries    E  width inside    M  width of the MLPs
//! W  width of a prompt's token
//! ```
//!
//! Architecture and names (`image_proj.*`) are those of the published files.

mod sizes;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use self::sizes::PREFIX;
pub use self::sizes::ResamplerSizes;
use crate::{
    cost::PassCost,
    cpu::{Cpu, map::check_lengths},
    device::{Activation, CopyTokens, Device, Kind, NormKind, Queue, Scores, TokenRows, View, ViewMut},
    encoders::{
        check_finite, measure,
        weights::{LOADING, PrefixedFiles, linear},
    },
    error::{Error, Result},
    files::{TensorFiles, no_model},
    layers::{Attention, Linear, Norm},
    once::get_or_try_init,
    size,
    tensor::Tensor,
    vision::vit::PictureTokens,
};

/// What a path must lead to.
const EXPECTED: &str = "the file of an IP-Adapter-Plus, e.g. `ip-adapter-plus_sdxl_vit-h.safetensors`";
/// Added to the variance in norms.
const EPS: f64 = 1e-5;

/// A resampler on the processor.
pub type Resampler = ImageResampler<Cpu>;

/// A resampler whose matrices stay in their file. Norms, biases and queries are read by the first pass, for its device; later
/// passes are to run on the same one.
#[derive(Debug)]
pub struct ImageResampler<D: Device> {
    sizes: ResamplerSizes,
    source: PrefixedFiles,
    weights: OnceLock<Weights<D>>,
}

#[derive(Debug)]
struct Weights<D: Device> {
    /// `[Q, E]`.
    queries: Vec<f32>,
    first: Linear<D>,
    layers: Vec<Layer<D>>,
    last: Linear<D>,
    norm: Norm<D>,
}

#[derive(Debug)]
struct Layer<D: Device> {
    picture_norm: Norm<D>,
    query_norm: Norm<D>,
    attention: Attention<D>,
    mlp_norm: Norm<D>,
    up: Linear<D>,
    down: Linear<D>,
}

impl<D: Device> ImageResampler<D> {
    /// Open the file of an IP-Adapter-Plus, e.g. `ip-adapter-plus_sdxl_vit-h.safetensors`. Sizes come from its tensors; only its
    /// header is read.
    ///
    /// # Errors
    /// If the file is missing, cut off or of another kind, or if tensors of the resampler are missing, surplus or of shapes that do
    /// not go together.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(no_model(path, EXPECTED));
        }
        let files = TensorFiles::open(path)?;
        measure::no_fp8(&files, PREFIX, "as it is published")?;
        let sizes = ResamplerSizes::measured(&files)?;
        let expected = sizes.tensors();
        files.expect_exactly_under(PREFIX, &expected)?;
        let source = PrefixedFiles::new(Arc::new(files), PREFIX, &expected);
        Ok(Self { sizes, source, weights: OnceLock::new() })
    }

    /// The sizes.
    pub fn sizes(&self) -> &ResamplerSizes {
        &self.sizes
    }

    /// Number of frozen values.
    pub fn parameters(&self) -> usize {
        self.source.parameters
    }

    /// Bytes of the mapped file that they are read from.
    pub fn weight_bytes(&self) -> usize {
        self.source.weight_bytes
    }

    /// Refuse tokens of another image encoder than the adapter was trained with.
    ///
    /// # Errors
    /// If `width` is not I.
    pub fn check_input(&self, width: usize) -> Result<()> {
        let expected = self.sizes.input;
        if width == expected {
            return Ok(());
        }
        Err(Error::Setting(format!(
            "the IP-Adapter was made for another image encoder: it takes image tokens {expected} wide{}, and those of the \
             encoder are {width} wide{}",
            encoder_of(expected),
            encoder_of(width)
        )))
    }

    /// What so many pictures of `tokens` tokens take.
    pub fn cost(&self, pictures: usize, tokens: usize) -> PassCost {
        let s = &self.sizes;
        let [input, e, inner, m, w] = [s.input, s.width, s.inner, s.mlp, s.output].map(|n| n as f64);
        let (pictures, tokens, queries) = (pictures as f64, tokens as f64, s.queries as f64);
        let keys = tokens + queries;
        let layer = 2.0 * e * inner * (2.0 * queries + 2.0 * keys)
            + 4.0 * inner * queries * keys
            + 4.0 * e * m * queries;
        let ends = 2.0 * (input * e * tokens + e * w * queries);
        // Tokens, their norm, and both with the queries behind them; keys and values; queries and the MLP are small.
        let alive = pictures * keys * (3.0 * e + 4.0 * inner) + 2.0 * e * m.max(inner);
        PassCost {
            forward_flops: pictures * (s.depth as f64 * layer + ends),
            scratch_bytes: size::bytes(4.0 * alive),
            precision: LOADING.precision,
            ..PassCost::default()
        }
    }

    /// The picture's prompt `[B, Q, W]` from tokens `[B, T, I]` before the last block of its encoder; both are tensors of
    /// `host`.
    ///
    /// # Errors
    /// If tokens have another width, weights cannot be read, or the device fails.
    pub fn encode(&self, device: &D, host: &Cpu, tokens: &PictureTokens) -> Result<PictureTokens> {
        let (pictures, count, width) = tokens.shape();
        self.check_input(width)?;
        let (weights, s) = (self.weights(device)?, &self.sizes);
        let queue = device.queue(LOADING.precision)?;
        let x = queue.upload(tokens.values(), Kind::Activation);
        let x = weights.first.run(&queue, pictures * count, View::new(&x, width))?;
        let rows = pictures * s.queries;
        let mut queries = queue.fill(rows * s.width, Kind::Activation, |all| {
            all.chunks_exact_mut(s.queries * s.width).for_each(|of| of.copy_from_slice(&weights.queries));
        });
        for layer in &weights.layers {
            check_lengths()?;
            layer.run(&queue, (pictures, count, s.queries), &x, &mut queries)?;
        }
        let last = weights.last.run(&queue, rows, View::new(&queries, s.width))?;
        let normed = weights.norm.run(&queue, rows, View::new(&last, s.output));
        let values = queue.download(&normed, 0, rows * s.output)?;
        check_finite(&values, "resampler")?;
        Tensor::new(host, (pictures, s.queries, s.output), values)
    }

    fn weights(&self, device: &D) -> Result<&Weights<D>> {
        get_or_try_init(&self.weights, || self.read(device))
    }

    fn read(&self, device: &D) -> Result<Weights<D>> {
        let (s, source) = (&self.sizes, &self.source);
        let norm = |name: &str, width| source.norm(device, NormKind::Layer, name, width, EPS);
        let layer = |number: usize| {
            let at = |part: &str| format!("layers.{number}.{part}");
            let plain = |name: &str, io| source.linear(device, &at(name), false, io);
            // Keys stand above values in one matrix.
            let both = source.view(&at("0.to_kv.weight"))?;
            let half = |rows| linear(device, (both.rows(rows)?, None), (s.width, s.inner));
            Ok(Layer {
                picture_norm: norm(&at("0.norm1"), s.width)?,
                query_norm: norm(&at("0.norm2"), s.width)?,
                attention: Attention {
                    heads: s.heads(),
                    q: plain("0.to_q", (s.width, s.inner))?,
                    k: half(0..s.inner)?,
                    v: half(s.inner..2 * s.inner)?,
                    out: plain("0.to_out", (s.inner, s.width))?,
                },
                mlp_norm: norm(&at("1.0"), s.width)?,
                up: plain("1.1", (s.width, s.mlp))?,
                down: plain("1.3", (s.mlp, s.width))?,
            })
        };
        Ok(Weights {
            queries: source.values("latents", &[1, s.queries, s.width])?,
            first: source.linear(device, "proj_in", true, (s.input, s.width))?,
            layers: (0..s.depth).map(layer).collect::<Result<_>>()?,
            last: source.linear(device, "proj_out", true, (s.width, s.output))?,
            norm: norm("norm_out", s.output)?,
        })
    }
}

impl<D: Device> Layer<D> {
    /// Add attention and MLP to the queries `[B, Q, E]`, which look at the tokens `x [B, T, E]` and at themselves; the sizes are B, T
    /// and Q.
    fn run(
        &self,
        queue: &D::Queue,
        (pictures, tokens, count): (usize, usize, usize),
        x: &D::Buffer,
        queries: &mut D::Buffer,
    ) -> Result<()> {
        let (e, m, rows, keys) = (self.down.outputs(), self.up.outputs(), pictures * count, tokens + count);
        let normed = self.query_norm.run(queue, rows, View::new(queries, e));
        let mut seen = queue.take(pictures * keys * e, Kind::Activation);
        let mut place = |from: &D::Buffer, tokens: usize, first: usize| {
            queue.copy_tokens(CopyTokens {
                rows: TokenRows { batch: pictures, tokens, width: e },
                from: (View::new(from, e), tokens),
                to: (ViewMut::new(&mut seen, e).skip(first * e), keys),
            });
        };
        place(&self.picture_norm.run(queue, pictures * tokens, View::new(x, e)), tokens, 0);
        place(&normed, count, tokens);
        // Published code scales queries and keys by the fourth root each, which keeps f16 in range and is the same in f32.
        let out = self.attention.run_over(queue, (pictures, count, keys), &normed, &seen, Scores::PLAIN)?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(queries, e), rows * e);
        drop((normed, seen, out));

        let normed = self.mlp_norm.run(queue, rows, View::new(queries, e));
        let inner = self.up.run(queue, rows, View::new(&normed, e))?;
        let mut active = queue.take(rows * m, Kind::Activation);
        let (from, to) = (View::new(&inner, m), ViewMut::new(&mut active, m));
        queue.activate(Activation::GeluErf, (rows, m), from, to);
        let out = self.down.run(queue, rows, View::new(&active, m))?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(queries, e), rows * e);
        Ok(())
    }
}

/// Whose tokens have this width, where it is known.
fn encoder_of(width: usize) -> &'static str {
    match width {
        1024 => " (CLIP ViT-L)",
        1280 => " (OpenCLIP ViT-H)",
        1664 => " (OpenCLIP ViT-bigG)",
        _ => "",
    }
}
