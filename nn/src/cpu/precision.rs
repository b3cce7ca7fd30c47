//! What operands of products are rounded to, and words: 32 bits that hold one f32 or two neighbouring bf16.
//!
//! A pair of bf16 lies in one word, the first term in the low half. Their product with another pair is added by two fused
//! multiply-adds in f32, the second term first: so does the processor's own instruction where it has one, and so do the
//! other paths, which gives the same bits (but for results below 1e-38, which the instruction takes for zero).
#![allow(unsafe_code, reason = "words are seen as pairs of halves")]

use crate::device::Precision;

impl Precision {
    /// Words that hold this many neighbouring terms.
    pub(super) fn words(self, terms: usize) -> usize {
        match self {
            Self::F32 => terms,
            Self::Bf16 => terms.div_ceil(2),
        }
    }
}

/// The nearest bf16, in the high half of a word.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let up = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // Rounding up must not turn what is not a number into an infinity.
    if value.is_nan() { bits | 0x0040_0000 } else { up }
}

/// Two terms in a word.
#[inline(always)]
pub(super) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits((rounded(first) >> 16) | (rounded(second) & 0xffff_0000))
}

/// Neighbouring terms as words; what is left of `to` is not touched.
#[inline(always)]
pub(super) fn pack_row(from: &[f32], to: &mut [f32]) {
    assert!(to.len() >= from.len().div_ceil(2), "words for a row");
    // SAFETY: a word is two halves without padding, and halves need no stricter alignment.
    let halves = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u16>(), 2 * to.len()) };
    if cfg!(target_endian = "little") {
        for (half, value) in halves.iter_mut().zip(from) {
            *half = (rounded(*value) >> 16) as u16;
        }
        if from.len() % 2 == 1 {
            halves[from.len()] = 0;
        }
    } else {
        for (to, from) in to.iter_mut().zip(from.chunks(2)) {
            *to = pair(from[0], from.get(1).copied().unwrap_or(0.0));
        }
    }
}

/// Two rows as words of pairs, a term of the first row before that of the second.
#[inline(always)]
pub(super) fn interleave(first: &[f32], second: &[f32], to: &mut [f32]) {
    for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
        *to = pair(*first, *second);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn halves_are_rounded_to_the_nearest_with_ties_to_even_and_stand_in_order() {
        let values = [1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -3.3e38, f32::NAN, f32::INFINITY, 1e-40];
        let mut words = [0.0; 4];
        pack_row(&values, &mut words);
        let halves: Vec<bf16> = words
            .iter()
            .flat_map(|w| [w.to_bits() as u16, (w.to_bits() >> 16) as u16])
            .map(bf16::from_bits)
            .collect();
        for (half, value) in halves.iter().zip(values) {
            let expected = bf16::from_f32(value);
            assert!(half.to_bits() == expected.to_bits() || half.is_nan() && expected.is_nan(), "{value}");
        }
        assert_eq!(halves[7].to_bits(), 0);
        let mut crossed = [0.0; 2];
        interleave(&values[..2], &values[2..4], &mut crossed);
        assert_eq!(crossed[1].to_bits(), pair(values[1], values[3]).to_bits());
    }
}
