//! Attention of tokens over themselves, with its four linears.
//!
//! ```text
//! B  samples    T  tokens    K  width of a token    H  heads    D  width of a head
//! ```

use super::Linear;
use crate::{
    device::{self, AttentionShape, Device, HeadLayout, Kind, Queue, Scores, SplitHeads, View, ViewMut},
    error::Result,
};

/// `out(attention(q(x), k(x), v(x)))`.
#[derive(Debug)]
pub struct Attention<D: Device> {
    /// H.
    pub heads: usize,
    /// `[K, H D]`.
    pub q: Linear<D>,
    /// `[K, H D]`.
    pub k: Linear<D>,
    /// `[K, H D]`.
    pub v: Linear<D>,
    /// `[H D, K]`.
    pub out: Linear<D>,
}

impl<D: Device> Attention<D> {
    /// The result `[B, T, K]` for tokens `x [B, T, K]`, which are no longer needed once they have been projected.
    ///
    /// # Errors
    /// If the device has no room for a weight.
    pub fn run(
        &self,
        queue: &D::Queue,
        (batch, tokens): (usize, usize),
        x: D::Buffer,
        scores: Scores<'_, D>,
    ) -> Result<D::Buffer> {
        let project = |linear| self.project(queue, (batch, tokens), &x, linear);
        let (q, k, v) = (project(&self.q)?, project(&self.k)?, project(&self.v)?);
        drop(x);
        self.attend(queue, (batch, tokens), (q, k, v), scores)
    }

    fn attend(
        &self,
        queue: &D::Queue,
        (batch, tokens): (usize, usize),
        (q, k, v): (D::Buffer, D::Buffer, D::Buffer),
        scores: Scores<'_, D>,
    ) -> Result<D::Buffer> {
        let (rows, inner, heads) = (batch * tokens, self.q.outputs(), self.heads);
        let mut attended = queue.take(rows * inner, Kind::Activation);
        let mut lse = queue.take(rows * heads, Kind::Exact);
        queue.attention(device::Attention {
            shape: AttentionShape { batch, heads, tokens, keys: tokens, dim: inner / heads },
            query_rows: 0..tokens,
            scores,
            q: &q,
            k: &k,
            v: &v,
            out: ViewMut::new(&mut attended, inner),
            lse: &mut lse,
        });
        drop((q, k, v));
        self.out.run(queue, rows, View::new(&attended, inner))
    }

    /// The result of a linear by heads, `[B, H, T, D]`.
    fn project(
        &self,
        queue: &D::Queue,
        (batch, tokens): (usize, usize),
        x: &D::Buffer,
        linear: &Linear<D>,
    ) -> Result<D::Buffer> {
        let (rows, width) = (batch * tokens, linear.outputs());
        let values = linear.run(queue, rows, View::new(x, linear.inputs()))?;
        if self.heads == 1 {
            // The order of its tokens is that of one head.
            return Ok(values);
        }
        let mut by_heads = queue.take(rows * width, Kind::Activation);
        let (heads, dim) = (self.heads, width / self.heads);
        let layout = HeadLayout { batch, heads, dim, stream_tokens: tokens, tokens, offset: 0 };
        let projection = SplitHeads { x: View::new(&values, width), norm: None, out: &mut by_heads };
        queue.split_heads(&[layout], &mut [projection]);
        Ok(by_heads)
    }
}

/// Floating-point operations of an attention over `tokens` tokens of every one of `samples`, its linears included.
pub fn attention_flops((width, inner): (usize, usize), samples: f64, tokens: f64) -> f64 {
    (8.0 * (width * inner) as f64 + 4.0 * inner as f64 * tokens) * samples * tokens
}
