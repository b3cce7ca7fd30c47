//! The resampler of IP-Adapter-Plus (Ye et al. 2023), after that of Flamingo (Alayrac et al. 2022): learned queries look at the
//! tokens of a picture and become the picture's prompt.
//!
//! ```text
//! B  pictures    T  tokens of each    I  their width    Q  queries    E  width inside    M  width of the MLPs
//! W  width of a prompt's token
//! ```
//!
//! Architecture and names (`image_proj.*`) are those of the published files.
//!
//! ```text
//! sizes    as the tensors of a file show them    network  its weights, and the names of its linears
//! pass     forward, and backward into an adapter    cost     what a pass takes
//! ```

mod cost;
mod network;
mod pass;
mod sizes;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

pub use self::sizes::ResamplerSizes;
use self::{cost::ResamplerCost, sizes::PREFIX};
pub(crate) use self::{network::ResamplerNetwork, pass::ResamplerSaved};
use crate::{
    cost::PassCost,
    cpu::Cpu,
    device::{Device, Kind, Queue},
    encoders::{
        check_finite, measure,
        weights::{LOADING, PrefixedFiles},
    },
    error::{Error, Result},
    files::{TensorFiles, no_model},
    layers::{Context, Loading},
    once::get_or_try_init,
    size,
    tensor::Tensor,
    vision::vit::PictureTokens,
};

/// What a path must lead to.
const EXPECTED: &str = "the file of an IP-Adapter-Plus, e.g. `ip-adapter-plus_sdxl_vit-h.safetensors`";

/// A resampler on the processor.
pub type Resampler = ImageResampler<Cpu>;

/// A resampler whose matrices stay in their file. Norms, biases and queries are read by the first pass, for its device; later
/// passes are to run on the same one.
#[derive(Debug)]
pub struct ImageResampler<D: Device> {
    sizes: ResamplerSizes,
    source: PrefixedFiles,
    weights: OnceLock<ResamplerNetwork<D>>,
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
        let ResamplerCost { linears, attention, alive, .. } = s.cost(pictures, tokens, 0);
        let packed = (2 * s.width * s.mlp.max(s.inner)) as f64;
        PassCost {
            forward_flops: linears + attention,
            scratch_bytes: size::bytes(4.0 * (alive + packed)),
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
        let (network, s) = (self.network(device)?, &self.sizes);
        let queue = device.queue(LOADING.precision)?;
        let x = queue.upload(tokens.values(), Kind::Activation);
        let ctx = Context { queue: &queue, branches: None };
        let (y, _) = network.forward(ctx, (pictures, count), x, false)?;
        let values = queue.download(&y, 0, pictures * s.queries * s.output)?;
        check_finite(&values, "resampler")?;
        Tensor::new(host, (pictures, s.queries, s.output), values)
    }

    fn network(&self, device: &D) -> Result<&ResamplerNetwork<D>> {
        get_or_try_init(&self.weights, || {
            ResamplerNetwork::read(device, &self.sizes, &self.source, LOADING, None)
        })
    }

    /// Its weights as a part of another network, in which its linears have the numbers from `numbered` on among those that an adapter may
    /// have factors for.
    ///
    /// # Errors
    /// If a tensor cannot be read or holds a value that is not finite; if the device has no room.
    pub(crate) fn part_of(
        &self,
        device: &D,
        loading: Loading,
        numbered: usize,
    ) -> Result<ResamplerNetwork<D>> {
        let network = ResamplerNetwork::read(device, &self.sizes, &self.source, loading, Some(numbered))?;
        network.check()?;
        Ok(network)
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
