//! Numbers that bf16 holds exactly, so that all devices begin with the same.

use half::bf16;
use prefgraph_nn::device::{Device, Kind, Queue};

/// Numbers in [-1, 1), by their place and a seed.
pub fn numbers(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let mut z =
                (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd134_2543_de82_ef95);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bf16::from_f32((z >> 40) as f32 / (1 << 23) as f32 - 1.0).to_f32()
        })
        .collect()
}

/// Activations with such numbers.
pub fn activations<D: Device>(queue: &D::Queue, len: usize, seed: u64) -> D::Buffer {
    queue.upload(&numbers(len, seed), Kind::Activation)
}

/// f32 values with such numbers.
pub fn exact<D: Device>(queue: &D::Queue, len: usize, seed: u64) -> D::Buffer {
    queue.upload(&numbers(len, seed), Kind::Exact)
}
