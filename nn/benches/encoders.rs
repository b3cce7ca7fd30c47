//! The networks around a backbone at their published sizes, with random weights: the autoencoder of FLUX.1, CLIP-L, and two
//! blocks of T5-XXL.
//!
//! `cargo bench -p prefgraph-nn --bench encoders [-- THREADS [SIDE]]`: the first run, which reads the weights, and the median
//! of five more; the number behind them is a hash of the result's bits.

use std::{path::Path, time::Instant};

use prefgraph_nn::{
    Cpu, Tensor,
    autoencoders::{Autoencoder, Kl, Posterior, kl::KlConfig},
    files::{Dtype, NamedTensor, write_safetensors},
    text::{Clip, ClipModel, T5, clip::ClipConfig, t5::T5Config},
};

struct Numbers(u64);

impl Numbers {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.uniform() * scale).collect()
    }
}

/// Random weights; those of norms are near one, so that values neither grow nor vanish.
fn write(path: &Path, tensors: Vec<(String, Vec<usize>)>, half: bool, numbers: &mut Numbers) {
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let inputs: usize = shape[1..].iter().product();
            let mut values = numbers.values(count, 1.7 / (inputs as f32).sqrt());
            if shape.len() == 1 {
                let middle = if name.ends_with("weight") { 1.0 } else { 0.0 };
                values.iter_mut().for_each(|v| *v = middle + 0.05 * *v);
            }
            if !half {
                return NamedTensor::f32(name, shape, &values);
            }
            let bytes: Vec<u8> =
                values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
            NamedTensor { name, dtype: Dtype::BF16, shape, bytes: bytes.into() }
        })
        .collect();
    write_safetensors(path, &tensors, &[]).unwrap();
}

fn hash(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01b3)
    })
}

#[expect(clippy::print_stdout, reason = "a bench reports")]
fn timed(what: &str, run: impl Fn() -> Vec<f32>) {
    let mut seconds = Vec::new();
    let mut bits = 0;
    for _ in 0..6 {
        let start = Instant::now();
        bits = hash(&run());
        seconds.push(start.elapsed().as_secs_f64());
    }
    let first = seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    println!("{what:<28} first {first:7.3} s, then {:7.3} s    {bits:016x}", seconds[2]);
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let threads = numbers.first().copied().unwrap_or(2);
    let side = numbers.get(1).copied().unwrap_or(512);
    let cpu = Cpu::new(threads).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut random = Numbers(1);

    let file = dir.path().join("ae.safetensors");
    write(&file, KlConfig::flux().tensors(), false, &mut random);
    let kl = Kl::open(&file).unwrap();
    let pictures = Tensor::new(&cpu, (1, 3, side, side), random.values(3 * side * side, 1.0)).unwrap();
    timed(&format!("KL, encode {side} x {side}"), || {
        kl.encode(&cpu, &cpu, &pictures, Posterior::Mean).unwrap().into_values()
    });
    let grid = side / 8;
    let latents = Tensor::new(&cpu, (1, 16, grid, grid), random.values(16 * grid * grid, 1.5)).unwrap();
    timed(&format!("KL, decode {side} x {side}"), || kl.decode(&cpu, &cpu, &latents).unwrap().into_values());
    std::fs::remove_file(&file).unwrap();

    let ids: Vec<u32> = (0..512).map(|i| if i == 76 { 999 } else { i * 37 % 997 }).collect();
    let config: ClipConfig = serde_json::from_str(
        r#"{"model_type": "clip_text_model", "vocab_size": 1000, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}"#,
    )
    .unwrap();
    let file = dir.path().join("clip_l.safetensors");
    write(&file, config.tensors(), true, &mut random);
    let clip = Clip::open(&file, ClipModel::L).unwrap();
    timed("CLIP-L, 77 tokens", || clip.encode(&cpu, &cpu, 1, &ids[..77]).unwrap().tokens.into_values());

    let config: T5Config = serde_json::from_str(
        r#"{"model_type": "t5", "vocab_size": 1000, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 2,
        "num_heads": 64, "feed_forward_proj": "gated-gelu"}"#,
    )
    .unwrap();
    let file = dir.path().join("t5xxl.safetensors");
    let mut tensors = config.tensors();
    tensors.push(("shared.weight".into(), vec![1000, 4096]));
    write(&file, tensors, true, &mut random);
    let t5 = T5::open(&file).unwrap();
    timed("T5-XXL, 2 of 24 blocks, 512", || t5.encode(&cpu, &cpu, 1, &ids).unwrap().into_values());
}
