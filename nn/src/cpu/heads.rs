//! From token-major projections to head-major attention operands: RMS norm, rotary embedding, transposition.
//!
//! ```text
//! B  samples    H  heads    S  tokens of one stream    T  tokens of the attention    D  width of a head
//! ```

use super::Cpu;

const EPS: f32 = 1e-6;

/// One stream's place in the attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Samples B.
    pub batch: usize,
    /// Heads H.
    pub heads: usize,
    /// Width D of a head.
    pub dim: usize,
    /// Tokens S of this stream.
    pub stream_tokens: usize,
    /// Tokens T of the attention.
    pub tokens: usize,
    /// Where the stream's first token stands in the attention.
    pub offset: usize,
    /// Stride of the token-major rows, at least H * D; a sample is S rows.
    pub stride: usize,
}

/// What is done to queries and keys on the way; values go without.
#[derive(Clone, Copy, Debug)]
pub struct NormRotary<'a> {
    /// Weight of the RMS norm `[D]` (eps 1e-6).
    pub weight: &'a [f32],
    /// Cosines `[T, D / 2]`, by the token's place in the attention.
    pub cos: &'a [f32],
    /// Sines `[T, D / 2]`.
    pub sin: &'a [f32],
}

fn rms(x: &[f32]) -> f32 {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    1.0 / (mean + EPS).sqrt()
}

/// Reads one stream `[B, S, H * D]` and writes it into its rows of `[B, H, T, D]`; rows of other streams are left alone.
///
/// The rotary embedding turns the pairs (2i, 2i + 1).
///
/// # Panics
/// If a slice is too short for its shape.
pub fn split_heads(
    _cpu: &Cpu,
    layout: HeadLayout,
    x: &[f32],
    norm_rotary: Option<NormRotary<'_>>,
    out: &mut [f32],
) {
    let HeadLayout { batch, heads, dim, stream_tokens, tokens, offset, stride } = layout;
    for b in 0..batch {
        for h in 0..heads {
            for s in 0..stream_tokens {
                let x = &x[(b * stream_tokens + s) * stride + h * dim..][..dim];
                let out = &mut out[((b * heads + h) * tokens + offset + s) * dim..][..dim];
                let Some(n) = norm_rotary else {
                    out.copy_from_slice(x);
                    continue;
                };
                let r = rms(x);
                for i in 0..dim / 2 {
                    let (c, sn) = (n.cos[(offset + s) * dim / 2 + i], n.sin[(offset + s) * dim / 2 + i]);
                    let x0 = x[2 * i] * r * n.weight[2 * i];
                    let x1 = x[2 * i + 1] * r * n.weight[2 * i + 1];
                    out[2 * i] = x0 * c - x1 * sn;
                    out[2 * i + 1] = x0 * sn + x1 * c;
                }
            }
        }
    }
}

/// Backward of [`split_heads`]: from the cotangent `[B, H, T, D]` to that of the stream `[B, S, H * D]`, overwritten.
///
/// `x` is the forward input, with the layout's stride; it is read only where there is a norm.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn split_heads_backward(
    _cpu: &Cpu,
    layout: HeadLayout,
    d_out: &[f32],
    x: &[f32],
    norm_rotary: Option<NormRotary<'_>>,
    dx: &mut [f32],
    dx_stride: usize,
) {
    let HeadLayout { batch, heads, dim, stream_tokens, tokens, offset, stride } = layout;
    let mut dn = vec![0.0f32; dim];
    for b in 0..batch {
        for h in 0..heads {
            for s in 0..stream_tokens {
                let d_out = &d_out[((b * heads + h) * tokens + offset + s) * dim..][..dim];
                let dx = &mut dx[(b * stream_tokens + s) * dx_stride + h * dim..][..dim];
                let Some(n) = norm_rotary else {
                    dx.copy_from_slice(d_out);
                    continue;
                };
                let x = &x[(b * stream_tokens + s) * stride + h * dim..][..dim];
                let r = rms(x);
                for i in 0..dim / 2 {
                    let (c, sn) = (n.cos[(offset + s) * dim / 2 + i], n.sin[(offset + s) * dim / 2 + i]);
                    dn[2 * i] = (d_out[2 * i] * c + d_out[2 * i + 1] * sn) * n.weight[2 * i];
                    dn[2 * i + 1] = (d_out[2 * i + 1] * c - d_out[2 * i] * sn) * n.weight[2 * i + 1];
                }
                let m = dn.iter().zip(x).map(|(d, x)| d * x * r).sum::<f32>() / dim as f32;
                for i in 0..dim {
                    dx[i] = r * (dn[i] - x[i] * r * m);
                }
            }
        }
    }
}
