//! Random numbers as a pure function of (seed, node, step, purpose, element).
//!
//! There is no random state to save and none to restore: a resumed run, another number of lanes or a node that runs
//! ahead draw the same numbers. ChaCha with 8 rounds is the function: its key is made of the seed, the node's
//! name and the purpose, its stream is the step, its block counter the element.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Numbers of one (seed, node, step, purpose), from element zero.
pub struct Random(ChaCha8Rng);

impl Random {
    /// The numbers of `node` at `step` for `purpose`.
    pub fn new(seed: u64, node: &str, step: u64, purpose: &str) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 random numbers of a node");
        hash.update(&seed.to_le_bytes());
        hash.update(&(node.len() as u64).to_le_bytes());
        hash.update(node.as_bytes());
        hash.update(purpose.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*hash.finalize().as_bytes());
        rng.set_stream(step);
        Self(rng)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform among `0..n`, without bias.
    ///
    /// # Panics
    /// If `n` is zero.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "there is no number below zero");
        // The largest multiple of `n`: bits above it would favour small numbers.
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let bits = self.bits();
            if bits < limit {
                return bits % n;
            }
        }
    }

    /// Two independent standard normal numbers (Box and Muller).
    pub fn normal_pair(&mut self) -> (f64, f64) {
        prefgraph_nn::lora::normal_pair(|| self.uniform())
    }

    /// `n` standard normal numbers.
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(n + 1);
        while out.len() < n {
            let (a, b) = self.normal_pair();
            out.extend([a as f32, b as f32]);
        }
        out.truncate(n);
        out
    }

    /// A random order of `0..n` (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_matters_and_nothing_else() {
        let first = |seed, node, step, purpose| Random::new(seed, node, step, purpose).bits();
        let base = first(1, "noise", 2, "eps");
        assert_eq!(base, first(1, "noise", 2, "eps"));
        for other in [first(2, "noise", 2, "eps"), first(1, "nois", 2, "eeps"), first(1, "noise", 3, "eps")] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let x = Random::new(0, "n", 0, "").normals(100_001);
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut p = Random::new(3, "pairs", 0, "epoch").permutation(57);
        assert_ne!(p, (0..57).collect::<Vec<_>>());
        p.sort_unstable();
        assert_eq!(p, (0..57).collect::<Vec<_>>());
    }
}
