//! Writes a FLUX transformer with random bf16 weights, to benchmark a machine at full size without the published weights.
//!
//! ```text
//! cargo run --release --example random_backbone -- FOLDER [CONFIG.json]
//! ```
//!
//! Without a configuration it is FLUX.1-dev's shape: 19 and 38 blocks of width 3072, 11.9 billion parameters, 24 GB. The
//! same bytes every time; the folder is in diffusers' layout, in shards.

#[path = "../benches/step/random.rs"]
mod random;

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    files::{Dtype, NamedTensor, write_atomically, write_safetensors},
    models::FluxConfig,
    published::FLUX,
};
use random::{fill, spread};

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
        None => FLUX.to_owned(),
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

/// One shard.
fn write(path: &Path, seed: u64, tensors: &[(String, Vec<usize>)]) -> Result<(), Box<dyn Error>> {
    let values = |i: usize, (name, shape): &(String, Vec<usize>)| {
        let seed = (seed << 32) ^ ((i as u64) << 8);
        let len: usize = shape.iter().product();
        let spread = spread(name, shape);
        let mut bytes = vec![0; 2 * len];
        let half = len.div_ceil(2) * 2;
        let (one, two) = bytes.split_at_mut(half.min(2 * len));
        std::thread::scope(|scope| {
            scope.spawn(|| fill(one, seed, spread));
            fill(two, seed ^ 0xA5, spread);
        });
        NamedTensor { name: name.clone(), dtype: Dtype::BF16, shape: shape.clone(), bytes: bytes.into() }
    };
    let tensors: Vec<NamedTensor<'_>> = tensors.iter().enumerate().map(|(i, t)| values(i, t)).collect();
    write_safetensors(path, &tensors, &[("format", "pt")])?;
    Ok(())
}
