//! SDXL's U-Net with an IP-Adapter, each in a file of its published layout.

use std::{error::Error, fs, path::Path, sync::Arc};

use prefgraph_nn::{
    BackboneLayout, Cpu, Device, LinearLayout,
    cuda::Cuda,
    files::{NamedTensor, TensorFiles, write_safetensors},
    layers::Loading,
    models::{
        Checkpointing,
        unet::{ImagePrompt, ResamplerUse, UNet, UNetConfig, UNetOptions},
    },
};
use serde_json::Value;
use tempfile::TempDir;

use super::{Benched, Opened, random_tensor};

/// The IP-Adapter's file in the folder of the U-Net.
const IP_ADAPTER: &str = "ip_adapter.safetensors";
/// The linears of an IP-Adapter in a block, by the ends of their names and by those in the adapter's file.
const OF_IMAGE_TOKENS: [&str; 2] = ["to_k_ip", "to_v_ip"];
/// Bytes of a shard of random weights: what is held at once is not more.
const SHARD: usize = 1 << 30;

impl<D: Device> Benched for UNet<D> {
    fn keep(&mut self, checkpointing: Checkpointing) {
        self.set_checkpointing(checkpointing);
    }

    fn frozen(&self) -> prefgraph_nn::Result<Vec<NamedTensor<'static>>> {
        let tensors = self.config().tensors().into_iter();
        tensors
            .map(|(name, shape)| {
                let values = self.files().view(&name)?.read();
                Ok(NamedTensor::f32(name, shape, &values))
            })
            .collect()
    }
}

/// Keys and values of image tokens, by the names of their linears, of the file that [`open`] has found.
pub(super) fn frozen_adapter(
    file: &Path,
    layout: &BackboneLayout,
) -> prefgraph_nn::Result<Vec<NamedTensor<'static>>> {
    let files = TensorFiles::open(file)?;
    let linears = of_image_tokens(layout).into_iter();
    linears
        .map(|(linear, name, shape)| {
            Ok(NamedTensor::f32(format!("{linear}.weight"), shape, &files.read(&name)?))
        })
        .collect()
}

/// The network. `weights` is a folder as [`write()`] makes it.
pub(super) fn open(
    config: &Value,
    weights: Option<&Path>,
    host: &Cpu,
    gpu: Option<&Cuda>,
    loading: Loading,
) -> Result<Opened, Box<dyn Error>> {
    let made = if weights.is_some() { None } else { Some(tempfile::tempdir()?) };
    if let Some(made) = &made {
        write(config, made.path())?;
    }
    let folder =
        weights.or(made.as_ref().map(TempDir::path)).unwrap_or_else(|| unreachable!("given or made"));
    let ip_adapter = folder.join(IP_ADAPTER);
    let image_prompt =
        Some(ImagePrompt { path: ip_adapter.clone(), scale: 1.0, resampler: ResamplerUse::Outside });
    let options = UNetOptions { loading, image_prompt, ..Default::default() };
    let expected: UNetConfig = serde_json::from_value(config.clone())?;
    let network = match gpu {
        None => on(host.clone(), host, folder, &expected, options)?,
        Some(gpu) => on(gpu.clone(), host, folder, &expected, options)?,
    };
    Ok(Opened { network, ip_adapter: Some(ip_adapter), _folder: made })
}

fn on<D: Device>(
    device: D,
    host: &Cpu,
    folder: &Path,
    expected: &UNetConfig,
    options: UNetOptions,
) -> Result<Arc<dyn Benched>, Box<dyn Error>> {
    let unet = UNet::open_on(device, host.clone(), folder, options)?;
    if unet.config().tensors() != expected.tensors() {
        return Err("--weights are of a network of another shape".into());
    }
    Ok(Arc::new(unet))
}

/// A folder with random weights in bf16: `config.json`, shards, and the IP-Adapter.
pub fn write(config: &Value, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let sizes: UNetConfig = serde_json::from_value(config.clone())?;
    fs::write(folder.join("config.json"), serde_json::to_vec_pretty(config)?)?;
    let mut shards: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let mut held = 0;
    for (name, shape) in sizes.tensors() {
        let bytes = 2 * shape.iter().product::<usize>();
        if held > 0 && held + bytes > SHARD {
            shards.push(Vec::new());
            held = 0;
        }
        held += bytes;
        shards.last_mut().unwrap_or_else(|| unreachable!("one was pushed")).push((name, shape));
    }
    let mut index = serde_json::Map::new();
    for (number, tensors) in shards.iter().enumerate() {
        let file = format!("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        index.extend(tensors.iter().map(|(name, _)| (name.clone(), Value::from(file.clone()))));
        write_random(&folder.join(&file), number, tensors)?;
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    fs::write(
        folder.join("diffusion_pytorch_model.safetensors.index.json"),
        serde_json::to_vec_pretty(&index)?,
    )?;
    let adapter: Vec<_> =
        of_image_tokens(&sizes.layout(true)).into_iter().map(|(_, name, shape)| (name, shape)).collect();
    write_random(&folder.join(IP_ADAPTER), shards.len(), &adapter)
}

fn write_random(path: &Path, number: usize, tensors: &[(String, Vec<usize>)]) -> Result<(), Box<dyn Error>> {
    let values = |(i, (name, shape)): (usize, &(String, Vec<usize>))| {
        random_tensor(name.clone(), shape.clone(), (number << 16 | i) as u64)
    };
    let tensors: Vec<NamedTensor<'_>> = tensors.iter().enumerate().map(values).collect();
    Ok(write_safetensors(path, &tensors, &[])?)
}

/// Of each linear of image tokens its name, that of its weight in the adapter's file, and its shape. The file counts attentions on the
/// way down, on the way up, and then in the middle; of the two of a block the second one looks at image tokens.
fn of_image_tokens(layout: &BackboneLayout) -> Vec<(String, String, Vec<usize>)> {
    let mut linears: Vec<_> = layout
        .linears
        .all
        .iter()
        .filter(|l| OF_IMAGE_TOKENS.iter().any(|end| l.name.ends_with(end)))
        .collect();
    let order =
        |name: &str| ["down_blocks", "up_blocks", "mid_block"].iter().position(|part| name.starts_with(part));
    linears.sort_by_key(|l| order(&l.name));
    let named = |(i, pair): (usize, &[&LinearLayout])| {
        let of = |(linear, what): (&&LinearLayout, &str)| {
            let name = format!("ip_adapter.{}.{what}.weight", 2 * i + 1);
            (linear.name.clone(), name, vec![linear.outputs, linear.inputs])
        };
        pair.iter().zip(OF_IMAGE_TOKENS).map(of).collect::<Vec<_>>()
    };
    linears.chunks(OF_IMAGE_TOKENS.len()).enumerate().flat_map(named).collect()
}
