//! A U-Net of few channels with an IP-Adapter, of numbers without pattern.

#![allow(dead_code, reason = "each test takes its part")]

mod numbers;

use std::path::{Path, PathBuf};

use prefgraph_nn::{
    Adapter, Backbone, Cpu, Inputs, Probe, Tensor,
    backbone::Latents,
    files::{NamedTensor, write_safetensors},
    models::{
        SdxlUNet, UNetConfig, UNetOptions,
        unet::{ImagePrompt, ResamplerUse},
    },
    vision::ResamplerSizes,
};
use serde_json::{Value, json};

pub use numbers::numbers;

/// Two levels, with transformers on the lower one and in the middle.
pub fn config() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
        "block_out_channels": [8, 16], "transformer_layers_per_block": [1, 2], "attention_head_dim": [1, 2],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 12, "norm_num_groups": 4, "use_linear_projection": true,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 30,
    })
}

/// Write a U-Net's folder.
pub fn write_unet(folder: &Path, config: &Value) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let config: UNetConfig = serde_json::from_value(config.clone()).unwrap();
    write_tensors(&folder.join("diffusion_pytorch_model.safetensors"), config.tensors());
}

/// Write tensors of these names and shapes.
pub fn write_tensors(path: &Path, tensors: Vec<(String, Vec<usize>)>) {
    let values: Vec<Vec<f32>> = (0..)
        .zip(&tensors)
        .map(|(salt, (name, shape))| {
            let values = numbers(shape.iter().product(), salt);
            let inputs = shape.iter().skip(1).product::<usize>().max(1) as f32;
            // Biases are small, so that pixels and tokens differ, and attention prefers some to others.
            let (base, scale) = match name {
                name if name.contains("norm") && name.ends_with(".weight") => (1.0, 0.3),
                name if name.ends_with(".bias") => (0.0, 0.1),
                // A resampler's queries go through a norm first: where they are small it amplifies every rounding behind them.
                name if name.ends_with(".latents") => (0.0, 3.0),
                _ => (0.0, 1.5 / inputs.sqrt()),
            };
            values.into_iter().map(|v| base + scale * v).collect()
        })
        .collect();
    let named: Vec<_> =
        tensors.iter().zip(&values).map(|((n, s), v)| NamedTensor::f32(n, s.clone(), v)).collect();
    write_safetensors(path, &named, &[]).unwrap();
}

/// The tensors of keys and values of an IP-Adapter for a U-Net whose cross-attentions, as its files number them, are so wide.
pub fn image_prompt_tensors(widths: &[usize], inputs: usize) -> Vec<(String, Vec<usize>)> {
    let modules = widths.iter().enumerate().flat_map(|(i, width)| ["k", "v"].map(|which| (i, width, which)));
    modules
        .map(|(i, width, which)| {
            (format!("ip_adapter.{}.to_{which}_ip.weight", 2 * i + 1), vec![*width, inputs])
        })
        .chain(resampler(inputs).tensors())
        .collect()
}

/// The sizes of a resampler, whose image tokens are so wide.
fn resampler(output: usize) -> ResamplerSizes {
    ResamplerSizes { input: 10, queries: 2, width: 8, inner: 64, mlp: 20, depth: 2, output }
}

/// Tokens that an image encoder makes of a picture.
pub const PICTURE_TOKENS: usize = 5;

/// Number of cross-attentions of [`config`], all of 16 channels.
pub const CROSSINGS: usize = 8;

/// A folder with a U-Net and its IP-Adapter.
pub struct Small {
    folder: tempfile::TempDir,
}

impl Small {
    pub fn new(config: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_unet(folder.path(), config);
        write_tensors(&folder.path().join("ip.safetensors"), image_prompt_tensors(&[16; CROSSINGS], 12));
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn image_prompt(&self) -> PathBuf {
        self.path().join("ip.safetensors")
    }

    /// With the IP-Adapter.
    pub fn options(&self) -> UNetOptions {
        self.options_with(ResamplerUse::Outside)
    }

    /// With the IP-Adapter's resampler there.
    pub fn options_with(&self, resampler: ResamplerUse) -> UNetOptions {
        let image_prompt = Some(ImagePrompt { path: self.image_prompt(), scale: 0.7, resampler });
        UNetOptions { image_prompt, ..UNetOptions::default() }
    }

    pub fn model(&self, options: UNetOptions) -> SdxlUNet {
        SdxlUNet::open_with(Cpu::new(2).unwrap(), self.path(), options).unwrap()
    }
}

/// Two samples of 4 x 6 latent cells, with two references of two image tokens each.
pub fn inputs() -> Inputs {
    let cpu = Cpu::new(1).unwrap();
    let n = 2;
    let tensor = |count: usize, width, salt| {
        Tensor::new(&cpu, (n, count, width), numbers(n * count * width, salt)).unwrap()
    };
    Inputs {
        x_t: Tensor::new(&cpu, (n, 4, 4, 6), numbers(n * 4 * 24, 101)).unwrap(),
        t: vec![17.0, 803.0],
        text: tensor(3, 12, 102),
        pooled: Tensor::new(&cpu, (n, 6), numbers(n * 6, 103)).unwrap(),
        references: Vec::new(),
        guidance: None,
        sizes: vec![[32.0, 48.0, 0.0, 0.0, 32.0, 48.0], [64.0, 48.0, 8.0, 0.0, 32.0, 48.0]],
        image_tokens: Some(tensor(4, 12, 104)),
        image_scale: None,
    }
}

/// The same with two references as the image encoder sees them.
pub fn inputs_of_pictures() -> Inputs {
    let (cpu, count) = (Cpu::new(1).unwrap(), 2 * PICTURE_TOKENS);
    let tokens = Tensor::new(&cpu, (2, count, 10), numbers(2 * count * 10, 106)).unwrap();
    Inputs { image_tokens: Some(tokens), ..inputs() }
}

/// A cotangent for the prediction of [`inputs`].
pub fn cotangent() -> Latents {
    let mut cotangent = inputs().x_t;
    let count = cotangent.values().len();
    cotangent.values_mut().copy_from_slice(&numbers(count, 105));
    cotangent
}

/// The derivative by the adapter.
pub fn gradient(model: &dyn Backbone, inputs: &Inputs, adapter: &Adapter) -> Vec<f32> {
    let (_, saved) = model.predict_saving(inputs, adapter, &Probe::NOTHING).unwrap();
    model.backward(saved, adapter, &cotangent()).unwrap().values.host().unwrap().to_vec()
}
