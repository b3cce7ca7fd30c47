//! The cost of a resampler's pass, from sizes alone.
//!
//! The letters are those of the module above.

use super::ResamplerSizes;

/// What a pass of a resampler takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResamplerCost {
    /// Floating-point operations of its linears.
    pub linears: f64,
    /// Of its attentions.
    pub attention: f64,
    /// The most values that are held while it runs, the largest weight aside.
    pub alive: f64,
    /// Values that are kept for a backward: activations, and what is always f32.
    pub kept: [f64; 2],
}

impl ResamplerSizes {
    /// The cost of so many pictures of `tokens` tokens, with an adapter of this rank on all its linears; 0 is none.
    pub(crate) fn cost(&self, pictures: usize, tokens: usize, rank: usize) -> ResamplerCost {
        let [input, e, inner, m, w] =
            [self.input, self.width, self.inner, self.mlp, self.output].map(|n| n as f64);
        let (pictures, tokens, queries) = (pictures as f64, tokens as f64, self.queries as f64);
        let (depth, heads, rank) = (self.depth as f64, self.heads() as f64, rank as f64);
        let keys = tokens + queries;
        let layer = 2.0 * e * inner * (2.0 * queries + 2.0 * keys) + 4.0 * e * m * queries;
        let ends = 2.0 * (input * e * tokens + e * w * queries);
        // The queries before each sum, and before their projections by heads; the attention's result; the MLP; and the factors'.
        let of_layer = queries * (2.0 * e + 2.0 * inner + m + 4.0 * rank) + keys * (2.0 * inner + 2.0 * rank);
        let of_ends = tokens * (input + e + rank) + queries * (e + w + rank);
        ResamplerCost {
            linears: pictures * (depth * layer + ends),
            attention: pictures * depth * 4.0 * inner * queries * keys,
            // Tokens, their norm, and both with the queries behind them; keys and values; queries and the MLP are small.
            alive: pictures * keys * (3.0 * e + 4.0 * inner),
            kept: [pictures * (depth * of_layer + of_ends), pictures * depth * queries * heads],
        }
    }
}
