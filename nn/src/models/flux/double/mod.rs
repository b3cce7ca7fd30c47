//! A block with two streams: text and image have linears of their own and meet in the attention.
//!
//! ```text
//! n = norm(x) (1 + scale) + shift      x += gate out(attention(q n, k n, v n))
//! n = norm(x) (1 + scale) + shift      x += gate down(gelu(up n))
//! ```
//!
//! `N` batch, `S` tokens, `D` width, `F = 4 D`, `M = N S` rows of both streams.

mod backward;
mod forward;

pub(super) use backward::backward;
pub(super) use forward::{DoubleSaved, again, forward};
