//! The U-Net of Stable Diffusion XL (Podell et al. 2023), with the attention over image tokens of an IP-Adapter (Ye et al. 2023).
//!
//! ```text
//! config    sizes as a file states them    layout     what follows from them: tensors, linears
//! stages    the network as a list of steps linears    the names of its linears in both layouts
//! files     where the tensors stand        original   their names in the layout of a single file
//! weights   the frozen weights, packed     image_prompt   keys and values of an IP-Adapter file
//! resnet    residual blocks                attention  over pixels, text and image tokens
//! block     of attentions and MLP          transformer    blocks between two projections
//! context   what every function of a pass needs to know
//! pass      a whole pass, forward and backward     probe    what is asked of its cross-attentions
//! cost      what a pass costs, and the weights on a device
//! ```
//!
//! The model is that of diffusers' `UNet2DConditionModel`. It takes whole DDPM steps as its time and predicts eps or v.

mod attention;
mod block;
mod config;
mod context;
mod cost;
mod files;
mod image_prompt;
mod layout;
mod linears;
mod original;
mod pass;
mod probe;
mod resnet;
mod stages;
#[cfg(test)]
mod tests;
mod transformer;
mod weights;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use config::{PerBlock, UNetConfig};
pub use cost::IMAGE_TOKENS;
pub use files::UNetFiles;
use image_prompt::ImagePromptFiles;
pub use linears::NAMES;
use weights::Weights;

use crate::{
    backbone::{
        Backbone, BackboneLayout, DeviceKind, Inputs, Latents, PassCost, Pictures, Prediction, Probe, Saved,
    },
    cpu::Cpu,
    device::Device,
    error::{Error, Result},
    layers::{FactorGroups, Loading},
    linears::IpAdapterPlaces,
    lora::{Adapter, AdapterGrad, AdapterLayout},
    models::{Checkpointing, adapter::placed},
    once::MadeOnce,
    tensor::Tensor,
    vision::ImageResampler,
};

/// An IP-Adapter beside a U-Net.
#[derive(Clone, Debug, PartialEq)]
pub struct ImagePrompt {
    /// The file in its published layout.
    pub path: PathBuf,
    /// What its attention is multiplied by; 1 in training.
    pub scale: f32,
    /// Where its resampler runs.
    pub resampler: ResamplerUse,
}

/// Where the resampler of an IP-Adapter-Plus runs, which makes image tokens of those of an image encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResamplerUse {
    /// Outside the U-Net, which takes ready image tokens: they can be kept, and the resampler stays as it is.
    #[default]
    Outside,
    /// Inside the U-Net, which takes the tokens of the image encoder: an adapter may have factors for its linears.
    Inside {
        /// Tokens that the image encoder makes of a picture.
        tokens: usize,
    },
}

/// How a U-Net is run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UNetOptions {
    /// Precision of products, and where packed weights live.
    pub loading: Loading,
    /// What a pass keeps for its backward.
    pub checkpointing: Checkpointing,
    /// The IP-Adapter through which it sees references.
    pub image_prompt: Option<ImagePrompt>,
}

/// A U-Net on the processor.
pub type SdxlUNet = UNet<Cpu>;

/// A U-Net read from a folder or a file.
#[derive(Debug)]
pub struct UNet<D: Device> {
    device: D,
    /// Where tensors of the caller live.
    host: Cpu,
    options: UNetOptions,
    config: UNetConfig,
    layout: BackboneLayout,
    files: UNetFiles,
    image_prompt: Option<ImagePromptFiles>,
    resampler: Option<ImageResampler<D>>,
    weights: MadeOnce<Weights<D>>,
    factors: Arc<FactorGroups>,
}

impl SdxlUNet {
    /// Read the headers of a checkpoint as [`UNetFiles::open`] finds it, and compare them with its sizes. Weights are read by the first
    /// pass.
    ///
    /// # Errors
    /// If a file is missing or torn; if the sizes are none that can be run; if tensors are missing, surplus or of another
    /// shape.
    pub fn open(device: Cpu, path: &Path) -> Result<Self> {
        Self::open_with(device, path, UNetOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`open`](Self::open); if the IP-Adapter is for another network, or its scale is no number.
    pub fn open_with(device: Cpu, path: &Path, options: UNetOptions) -> Result<Self> {
        Self::open_on(device.clone(), device, path, options)
    }

    /// Bytes of working memory that are lent now, what passes keep for their backwards included, and the most that ever were.
    pub fn working_memory(&self) -> (usize, usize) {
        let buffers = self.device.buffers();
        (buffers.lent() * size_of::<f32>(), buffers.most_lent() * size_of::<f32>())
    }
}

impl<D: Device> UNet<D> {
    /// A checkpoint on a device; tensors of the caller live on `host`. See [`SdxlUNet::open_with`].
    ///
    /// # Errors
    /// As there.
    pub fn open_on(device: D, host: Cpu, path: &Path, options: UNetOptions) -> Result<Self> {
        let (config, files) = UNetFiles::open(path)?;
        let image_prompt = match &options.image_prompt {
            Some(ImagePrompt { scale, .. }) if !scale.is_finite() => {
                return Err(Error::Setting(format!("the IP-Adapter's scale is {scale}: expected a number")));
            }
            Some(ImagePrompt { path, .. }) => Some(ImagePromptFiles::open(path, &config)?),
            None => None,
        };
        let mut layout = config.layout(image_prompt.is_some());
        layout.queries = image_prompt.as_ref().and_then(ImagePromptFiles::queries);
        let mut places: BTreeMap<_, _> = image_prompt.iter().flat_map(ImagePromptFiles::places).collect();
        let resampler = match &options.image_prompt {
            Some(ImagePrompt { path, resampler: ResamplerUse::Inside { tokens }, .. }) => {
                let resampler = ImageResampler::open(path)?;
                with_resampler(&mut layout, &resampler, *tokens)?;
                places.extend(resampler.sizes().places());
                Some(resampler)
            }
            _ => None,
        };
        if let Some(ImagePrompt { path, .. }) = &options.image_prompt {
            layout.linears.ip_adapter = Some(Arc::new(IpAdapterPlaces { path: path.clone(), places }));
        }
        Ok(Self {
            layout,
            device,
            host,
            options,
            config,
            files,
            image_prompt,
            resampler,
            weights: MadeOnce::new(),
            factors: Arc::default(),
        })
    }

    /// The files it is read from.
    pub fn files(&self) -> &UNetFiles {
        &self.files
    }

    /// The sizes of the model.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// From now on passes keep this for their backwards: the weights stay where they are.
    pub fn set_checkpointing(&mut self, checkpointing: Checkpointing) {
        self.options.checkpointing = checkpointing;
    }

    fn image_scale(&self) -> f32 {
        self.options.image_prompt.as_ref().map_or(0.0, |image| image.scale)
    }

    fn queue(&self) -> Result<D::Queue> {
        self.device.queue(self.options.loading.precision)
    }

    fn weights(&self) -> Result<&Weights<D>> {
        self.weights.get_or_try_init(|| {
            let images = (self.image_prompt.as_ref(), self.resampler.as_ref());
            Weights::read(&self.device, &self.files, images, &self.config, self.options.loading)
        })
    }

    /// Run where the device wants it. Weights are read before, on the caller's thread: see [`MadeOnce`].
    fn on_device<T: Send>(&self, run: impl FnOnce(&Weights<D>) -> Result<T> + Send) -> Result<T> {
        let weights = self.weights()?;
        self.device.run(|| run(weights))
    }

    fn costs(&self, on: DeviceKind) -> cost::Costs<'_> {
        let image_prompt = self.image_prompt.is_some();
        let resampler = self.resampler.as_ref().map(ImageResampler::sizes).zip(self.layout.pictures);
        cost::Costs { on, config: &self.config, options: &self.options, image_prompt, resampler }
    }
}

/// The layout of a U-Net that has the resampler inside, to which the image encoder gives so many tokens of a picture.
fn with_resampler<D: Device>(
    layout: &mut BackboneLayout,
    resampler: &ImageResampler<D>,
    tokens: usize,
) -> Result<()> {
    let sizes = resampler.sizes();
    if sizes.output != layout.text_width {
        return Err(Error::shape("width of the resampler's image tokens", layout.text_width, sizes.output));
    }
    if tokens == 0 {
        return Err(Error::Setting(
            "an image encoder with 0 tokens of a picture: expected at least 1".into(),
        ));
    }
    layout.pictures = Some(Pictures { count: tokens, width: sizes.input, queries: sizes.queries });
    layout.linears.all.extend(sizes.linears());
    layout.parameters += resampler.parameters();
    Ok(())
}

impl<D: Device> Backbone for UNet<D> {
    fn layout(&self) -> &BackboneLayout {
        &self.layout
    }

    fn load(&self) -> Result<()> {
        self.weights().map(drop)
    }

    fn place(&self, adapter: Adapter) -> Result<Adapter> {
        placed::<D>(&self.queue()?, adapter)
    }

    fn predict(&self, inputs: &Inputs, adapter: Option<&Adapter>, probe: &Probe<'_>) -> Result<Prediction> {
        let pass = self.on_device(|weights| self.forward(weights, inputs, adapter, probe, false));
        pass.map(|(prediction, _)| prediction)
    }

    fn predict_saving(
        &self,
        inputs: &Inputs,
        adapter: &Adapter,
        probe: &Probe<'_>,
    ) -> Result<(Prediction, Saved)> {
        let (prediction, saved) =
            self.on_device(|weights| self.forward(weights, inputs, Some(adapter), probe, true))?;
        let saved = saved.ok_or_else(|| Error::Internal("a pass kept nothing for its backward".into()))?;
        Ok((prediction, Saved::new(saved)))
    }

    fn backward(&self, saved: Saved, adapter: &Adapter, cotangent: &Latents) -> Result<AdapterGrad> {
        let saved = saved.take()?;
        self.on_device(|weights| self.backward_pass(weights, saved, adapter, cotangent))
    }

    /// A U-Net has none: its tokens stand on several grids.
    fn features(&self, _: &Inputs) -> Result<Tensor<(usize, usize, usize)>> {
        Err(Error::Setting(
            "a U-Net gives no features of pictures: take those of a vision encoder, such as DINO".into(),
        ))
    }

    fn resident_bytes(&self, on: DeviceKind, adapter: Option<&AdapterLayout>) -> usize {
        self.costs(on).resident(adapter)
    }

    fn cost(
        &self,
        on: DeviceKind,
        batch: usize,
        grid: (usize, usize),
        references: &[(usize, usize)],
        text: usize,
        adapter: Option<&AdapterLayout>,
    ) -> PassCost {
        let sizes = cost::Sizes { batch, grid, references: references.len(), text };
        self.costs(on).of_a_pass(sizes, adapter)
    }
}
