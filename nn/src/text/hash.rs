//! Prompts by feature hashing: no vocabulary, no training, the same vectors everywhere.
//!
//! Shape letters: `B` prompts, `L` tokens of each, `E` width of a token, `P` width of the pooled vector.
//!
//! A prompt is cut into lower-cased words of letters and digits. A word's hash (FNV-1a of its UTF-8 bytes, 64 bits)
//! seeds a SplitMix64 sequence, which picks a few signed buckets. A token is [word | position]: the first
//! `E - 2 * (E / 8)` columns hold the word's buckets, the others sines and cosines of the word's place, since the
//! backbone itself gives every text token the same position.

use std::f64::consts::TAU;

use crate::{
    cpu::Cpu,
    error::{Error, Result},
    fnv::fnv1a,
    tensor::Tensor,
};

/// Buckets that one word or one pair of words falls into.
const BUCKETS: usize = 6;
/// Shortest and longest period of the position part, in words.
const PERIODS: (f64, f64) = (4.0, 64.0);
/// Length of the position part: beside a word of length 1 it should not lead.
const POSITION_LENGTH: f64 = 0.5;

/// What [`Hash::encode`] gives.
#[derive(Clone, Debug)]
pub struct HashedPrompts {
    /// Text tokens, `[B, L, E]`; zero after the last word.
    pub tokens: Tensor<(usize, usize, usize)>,
    /// Pooled vectors of unit length, `[B, P]`; zero for a prompt without words.
    pub pooled: Tensor<(usize, usize)>,
}

/// Feature hashing of prompts into tokens and a pooled vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    length: usize,
    width: usize,
    pooled: usize,
}

impl Hash {
    /// `length` tokens (`L`) of `width` (`E`), and a pooled vector of width `pooled` (`P`).
    ///
    /// # Errors
    /// If `length` is zero, or a width is too small for a word's buckets.
    pub fn new(length: usize, width: usize, pooled: usize) -> Result<Self> {
        if length == 0 || width < 2 * BUCKETS || pooled < 2 * BUCKETS {
            return Err(Error::Setting(format!(
                "hashed prompts of {length} tokens of width {width}, pooled {pooled}: at least one token and widths \
                 of at least {} are needed",
                2 * BUCKETS
            )));
        }
        Ok(Self { length, width, pooled })
    }

    /// `L`, `E` and `P`.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.length, self.width, self.pooled)
    }

    /// Tokens and pooled vectors. Words after the `L`-th are cut off the tokens but still count in the pooled vector,
    /// which is the normalised sum over words and over pairs of neighbouring words.
    ///
    /// # Errors
    /// If there is no prompt.
    pub fn encode<S: AsRef<str>>(&self, device: &Cpu, prompts: &[S]) -> Result<HashedPrompts> {
        if prompts.is_empty() {
            return Err(Error::Setting("hashed prompts: at least one prompt is needed, got none".into()));
        }
        let mut tokens = vec![0.0; prompts.len() * self.length * self.width];
        let mut pooled = vec![0.0; prompts.len() * self.pooled];
        let samples =
            tokens.chunks_exact_mut(self.length * self.width).zip(pooled.chunks_exact_mut(self.pooled));
        for (prompt, (tokens, pooled)) in prompts.iter().zip(samples) {
            let words = words(prompt.as_ref());
            for (place, (word, token)) in words.iter().zip(tokens.chunks_exact_mut(self.width)).enumerate() {
                self.write_token(word, place, token);
            }
            for word in &words {
                add_buckets(fnv1a(word.as_bytes()), 1.0, pooled);
            }
            for pair in words.windows(2) {
                add_buckets(fnv1a(pair.join(" ").as_bytes()), 1.0, pooled);
            }
            normalise(pooled);
        }
        Ok(HashedPrompts {
            tokens: Tensor::new(device, (prompts.len(), self.length, self.width), tokens)?,
            pooled: Tensor::new(device, (prompts.len(), self.pooled), pooled)?,
        })
    }

    fn write_token(&self, word: &str, place: usize, token: &mut [f32]) {
        let waves = self.width / 8;
        let (buckets, position) = token.split_at_mut(self.width - 2 * waves);
        add_buckets(fnv1a(word.as_bytes()), 1.0, buckets);
        normalise(buckets);
        // The squares of one sine and one cosine sum to 1, so the whole part has length POSITION_LENGTH.
        let scale = POSITION_LENGTH / (waves.max(1) as f64).sqrt();
        for (wave, pair) in position.chunks_exact_mut(2).enumerate() {
            let share = wave as f64 / (waves.max(2) - 1) as f64;
            let period = PERIODS.0 * libm::pow(PERIODS.1 / PERIODS.0, share);
            let angle = TAU * place as f64 / period;
            pair[0] = (scale * libm::sin(angle)) as f32;
            pair[1] = (scale * libm::cos(angle)) as f32;
        }
    }
}

/// Lower-cased runs of letters and digits of any script; everything else separates.
fn words(prompt: &str) -> Vec<String> {
    prompt
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// The next number of a SplitMix64 sequence.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Add `amount` with a sign to [`BUCKETS`] different places that the hash picks.
fn add_buckets(hash: u64, amount: f32, row: &mut [f32]) {
    let mut state = hash;
    let mut taken = [usize::MAX; BUCKETS];
    let mut count = 0;
    while count < BUCKETS {
        let draw = splitmix64(&mut state);
        // The high half picks the bucket by multiplication, the lowest bit the sign: independent bits.
        let bucket = (((draw >> 32) * row.len() as u64) >> 32) as usize;
        if taken[..count].contains(&bucket) {
            continue;
        }
        taken[count] = bucket;
        count += 1;
        row[bucket] += if draw & 1 == 0 { amount } else { -amount };
    }
}

/// To unit length; zeros stay zeros.
fn normalise(row: &mut [f32]) {
    let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        for x in row {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(prompts: &[&str]) -> HashedPrompts {
        Hash::new(6, 48, 32).unwrap().encode(&Cpu::new(1).unwrap(), prompts).unwrap()
    }

    fn token(hashed: &HashedPrompts, prompt: usize, place: usize) -> &[f32] {
        &hashed.tokens.values()[(prompt * 6 + place) * 48..][..48]
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn the_hashes_are_the_published_ones() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        let mut state = 1234567;
        assert_eq!(splitmix64(&mut state), 6457827717110365317);
        assert_eq!(splitmix64(&mut state), 3203168211198807973);
    }

    #[test]
    fn case_and_punctuation_do_not_matter_and_letters_of_any_script_do() {
        assert_eq!(words("A photo, of THE-mug!"), ["a", "photo", "of", "the", "mug"]);
        assert_eq!(words("Ein großer Ñandú 7"), ["ein", "großer", "ñandú", "7"]);
        let hashed = encode(&["a red mug", "A Red... mug"]);
        let (one, two) = hashed.tokens.values().split_at(6 * 48);
        assert_eq!(one, two);
    }

    #[test]
    fn a_word_is_the_same_vector_everywhere_but_for_its_place() {
        let hashed = encode(&["mug star", "star mug"]);
        assert_eq!(token(&hashed, 0, 0)[..36], token(&hashed, 1, 1)[..36]);
        assert_ne!(token(&hashed, 0, 0)[36..], token(&hashed, 1, 1)[36..]);
        assert_eq!(token(&hashed, 0, 0)[36..], token(&hashed, 1, 0)[36..]);
        for place in 0..2 {
            let token = token(&hashed, 0, place);
            assert!((dot(&token[..36], &token[..36]) - 1.0).abs() < 1e-5);
            assert!((dot(&token[36..], &token[36..]) - 0.25).abs() < 1e-5);
        }
    }

    #[test]
    fn short_prompts_are_padded_with_zeros_and_long_ones_are_cut_but_pooled_whole() {
        let hashed =
            encode(&["a mug", "", "one two three four five six seven", "one two three four five six eight"]);
        assert!(token(&hashed, 0, 2).iter().all(|x| *x == 0.0));
        assert!(token(&hashed, 1, 0).iter().all(|x| *x == 0.0));
        let (seven, eight) = hashed.tokens.values()[2 * 6 * 48..].split_at(6 * 48);
        assert_eq!(seven, eight);
        let pooled: Vec<&[f32]> = hashed.pooled.values().chunks_exact(32).collect();
        assert!(pooled[1].iter().all(|x| *x == 0.0));
        assert_ne!(pooled[2], pooled[3]);
        for row in [pooled[0], pooled[2]] {
            assert!((dot(row, row) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn the_pooled_vector_knows_which_words_are_neighbours() {
        let hashed = encode(&["striped mug dotted star", "dotted mug striped star"]);
        let (one, two) = hashed.pooled.values().split_at(32);
        assert!(dot(one, two) < 0.99);
    }

    #[test]
    fn different_words_are_far_apart() {
        let names = ["mug", "star", "teapot", "fish", "heart", "bottle"];
        let hashed = encode(&[names.join(" ").as_str()]);
        for a in 0..names.len() {
            for b in 0..a {
                let cosine = dot(&token(&hashed, 0, a)[..36], &token(&hashed, 0, b)[..36]);
                assert!(cosine.abs() < 0.7, "{} and {}: {cosine}", names[a], names[b]);
            }
        }
    }

    #[test]
    fn widths_that_cannot_hold_a_word_are_refused() {
        let message = Hash::new(8, 4, 32).unwrap_err().to_string();
        assert!(message.contains('4') && message.contains("12"), "{message}");
        assert!(Hash::new(0, 48, 32).is_err());
        let none: [&str; 0] = [];
        assert!(Hash::new(8, 48, 32).unwrap().encode(&Cpu::new(1).unwrap(), &none).is_err());
    }
}
