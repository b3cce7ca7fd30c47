//! Attention by mma, against f64.

use super::{
    CudaFunction, DriverError, Gpu, LaunchConfig, PushKernelArg, bf16, difference, noise, sys, wide,
};
use std::hash::{DefaultHasher, Hash, Hasher};

// Threads of a block, rows of a tile, and tiles of queries, keys and values in shared memory.
const THREADS: u32 = 128;
const ROWS: u32 = 64;
const TILES: u32 = 5;

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub heads: usize,
    pub tokens: usize,
    pub width: usize,
}

/// Whole tiles, and tiles that end early.
pub const CASES: [Case; 3] = [
    Case { name: "attention_64", heads: 2, tokens: 64, width: 64 },
    Case { name: "attention_64", heads: 1, tokens: 150, width: 64 },
    Case { name: "attention_128", heads: 2, tokens: 75, width: 128 },
];

/// Largest differences from the reference, and something that all bits of the results decide.
#[derive(Clone, Copy, Debug)]
pub struct Apart {
    out: f64,
    lse: f64,
    pub bits: u64,
}

pub fn apart(gpu: &Gpu, case: Case, kernel: &CudaFunction) -> Result<Apart, DriverError> {
    let Case { heads, tokens, width, .. } = case;
    let stream = gpu.stream();
    let count = heads * tokens * width;
    let inputs = [8, 9, 10].map(|seed| noise(count, seed));
    let [q, k, v] = [0, 1, 2].map(|which: usize| stream.clone_htod(&inputs[which]).expect("memory"));
    let mut out = stream.alloc_zeros::<bf16>(count)?;
    let mut lse = stream.alloc_zeros::<f32>(heads * tokens)?;
    let shared = TILES * ROWS * width as u32 * 2;
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, shared as i32)?;
    let scale = 2.0 / (width as f32).sqrt();
    let shape = LaunchConfig {
        grid_dim: ((tokens as u32).div_ceil(ROWS), heads as u32, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: shared,
    };
    let length = tokens as i32;
    let mut builder = stream.launch_builder(kernel);
    builder.arg(&q).arg(&k).arg(&v).arg(&mut out).arg(&mut lse).arg(&length).arg(&scale);
    // SAFETY: the parameters are the kernel's.
    unsafe { builder.launch(shape) }?;
    let (out, lse) = (stream.clone_dtoh(&out)?, stream.clone_dtoh(&lse)?);
    stream.synchronize()?;
    let (wanted, wanted_lse) = reference(inputs.each_ref().map(|values| &values[..]), case, f64::from(scale));
    let mut bits = DefaultHasher::new();
    out.iter().for_each(|value| value.to_bits().hash(&mut bits));
    lse.iter().for_each(|value| value.to_bits().hash(&mut bits));
    Ok(Apart {
        out: difference(wide(&out), &wanted),
        lse: difference(lse.into_iter().map(f64::from), &wanted_lse),
        bits: bits.finish(),
    })
}

/// bf16 weights and results, f32 sums.
pub fn right(apart: Apart) -> bool {
    apart.out < 1e-2 && apart.lse < 1e-3
}

#[allow(clippy::disallowed_methods, reason = "a reference with a tolerance, not bits")]
fn reference(inputs: [&[bf16]; 3], case: Case, scale: f64) -> (Vec<f64>, Vec<f64>) {
    let Case { heads, tokens, width, .. } = case;
    let [q, k, v] = inputs.map(wide);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; heads * tokens]);
    for head in 0..heads {
        let at = |token: usize| (head * tokens + token) * width;
        for query in 0..tokens {
            let score =
                |key: usize| (0..width).map(|c| q[at(query) + c] * k[at(key) + c]).sum::<f64>() * scale;
            let scores: Vec<f64> = (0..tokens).map(score).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            lse[head * tokens + query] = largest + sum.ln();
            for (key, score) in scores.iter().enumerate() {
                let weight = (score - largest).exp() / sum;
                (0..width).for_each(|c| out[at(query) + c] += weight * v[at(key) + c]);
            }
        }
    }
    (out, lse)
}
