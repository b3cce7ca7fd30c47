//! Random values of weights, to measure a machine without published ones.

/// How the values of a tensor are spread, uniformly: the centre, and the largest distance from it. Matrices keep a product as
/// large as its input, norms are near one, biases small.
pub fn spread(name: &str, shape: &[usize]) -> (f32, f32) {
    match shape {
        [_, inputs @ ..] if !inputs.is_empty() => {
            (0.0, (3.0 / inputs.iter().product::<usize>() as f32).sqrt())
        }
        _ if name.contains("norm") && name.ends_with("weight") => (1.0, 0.1),
        _ => (0.0, 0.02),
    }
}

/// Uniform values in bf16, from a counter (SplitMix64).
pub fn fill(bytes: &mut [u8], seed: u64, (center, spread): (f32, f32)) {
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
