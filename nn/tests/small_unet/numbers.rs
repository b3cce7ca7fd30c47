//! Numbers that are the same in every run.

/// Numbers without pattern, in +-1.
pub fn numbers(count: usize, salt: usize) -> Vec<f32> {
    let mixed =
        |i: usize| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ salt.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    (0..count).map(|i| ((mixed(i) >> 40) & 0xFFFF) as f32 / 32768.0 - 1.0).collect()
}
