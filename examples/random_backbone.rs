//! Writes a FLUX transformer with random bf16 weights, to benchmark a machine at full size without the published weights.
//!
//! ```text
//! cargo run --release --example random_backbone -- FOLDER [CONFIG.json]
//! ```
//!
//! Without a configuration it is FLUX.1-dev's shape: 19 and 38 blocks of width 3072, 11.9 billion parameters, 24 GB. The
//! same bytes every time; the folder is in diffusers' layout, in shards.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    files::{Dtype, NamedTensor, write_atomically, write_safetensors},
    models::FluxConfig,
};

/// The shape of FLUX.1-dev.
const PUBLISHED: &str = r#"{
  "_class_name": "FluxTransformer2DModel",
  "attention_head_dim": 128,
  "guidance_embeds": true,
  "in_channels": 64,
  "joint_attention_dim": 4096,
  "num_attention_heads": 24,
  "num_layers": 19,
  "num_single_layers": 38,
  "patch_size": 1,
  "pooled_projection_dim": 768
}
"#;

/// Values of one shard: 2 GB.
const SHARD: usize = 1_000_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().filter(|a| !a.starts_with('-'));
    let folder = PathBuf::from(folder.ok_or("expected the folder to write, and perhaps a configuration")?);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("config.json");
    let text = match args.next() {
        Some(path) => std::fs::read_to_string(path)?,
        None => PUBLISHED.to_owned(),
    };
    write_atomically(&path, text.as_bytes())?;
    let mut shards: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let mut held = 0;
    for (name, shape) in FluxConfig::read(&path)?.tensors() {
        let len: usize = shape.iter().product();
        if held > 0 && held + len > SHARD {
            shards.push(Vec::new());
            held = 0;
        }
        held += len;
        shards.last_mut().expect("one was pushed").push((name, shape));
    }
    let mut index = BTreeMap::new();
    for (number, tensors) in shards.iter().enumerate() {
        let name = format!("diffusion_pytorch_model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        index.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
        write(&folder.join(&name), number as u64, tensors)?;
        eprintln!("{name}: {} tensors", tensors.len());
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    write_atomically(
        &folder.join("diffusion_pytorch_model.safetensors.index.json"),
        serde_json::to_string_pretty(&index)?.as_bytes(),
    )?;
    Ok(())
}

/// One shard: matrices uniform with the deviation that keeps a product as large as its input, norms one, biases small.
fn write(path: &Path, seed: u64, tensors: &[(String, Vec<usize>)]) -> Result<(), Box<dyn Error>> {
    let values = |i: usize, (name, shape): &(String, Vec<usize>)| {
        let seed = (seed << 32) ^ ((i as u64) << 8);
        let len: usize = shape.iter().product();
        let (center, spread) = match shape.len() {
            2 => (0.0, (3.0 / shape[1] as f32).sqrt()),
            _ if name.contains("norm") && name.ends_with("weight") => (1.0, 0.1),
            _ => (0.0, 0.02),
        };
        let mut bytes = vec![0; 2 * len];
        let half = len.div_ceil(2) * 2;
        let (one, two) = bytes.split_at_mut(half.min(2 * len));
        std::thread::scope(|scope| {
            scope.spawn(|| fill(one, seed, center, spread));
            fill(two, seed ^ 0xA5, center, spread);
        });
        NamedTensor { name: name.clone(), dtype: Dtype::BF16, shape: shape.clone(), bytes: bytes.into() }
    };
    let tensors: Vec<NamedTensor<'_>> = tensors.iter().enumerate().map(|(i, t)| values(i, t)).collect();
    write_safetensors(path, &tensors, &[("format", "pt")])?;
    Ok(())
}

/// Uniform values in bf16, from a counter (SplitMix64).
fn fill(bytes: &mut [u8], seed: u64, center: f32, spread: f32) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        for (i, value) in chunk.chunks_mut(2).enumerate() {
            let uniform = f32::from((z >> (16 * i)) as u16) / 32768.0 - 1.0;
            let bits = (center + spread * uniform).to_bits();
            value.copy_from_slice(&((bits >> 16) as u16).to_le_bytes()[..value.len()]);
        }
    }
}
