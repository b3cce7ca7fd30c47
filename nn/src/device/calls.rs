//! Operands of the operations that have many.
//!
//! ```text
//! B  samples    T  tokens of the attention    S  tokens of one stream    H  heads    D  width
//! U  keys       M  rows    K  summed axis     N  columns of a result     R  rank
//! ```

use std::ops::Range;

use super::{Device, Direction, View, ViewMut, WindowRows};

/// The left factor of a product.
#[derive(Debug)]
pub enum Left<'a, D: Device> {
    /// Rows as they stand.
    Rows(View<'a, D>),
    /// The windows of pictures, one a row.
    Windows(WindowRows<'a, D>),
}

impl<D: Device> Clone for Left<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Left<'_, D> {}

impl<'a, D: Device> From<View<'a, D>> for Left<'a, D> {
    fn from(rows: View<'a, D>) -> Self {
        Self::Rows(rows)
    }
}

/// `out = start + x * weight + extra`, where `start` is `out`, the bias or zero.
///
/// The extra product continues in the accumulators once the base product is complete, so that an extra product of zero
/// leaves the bits of the base product. Rows of `x` are rounded to the precision that their matrix has. A row's bits do not
/// depend on the number of rows or on its place among them.
#[derive(Debug)]
pub struct Gemm<'a, D: Device> {
    /// M.
    pub m: usize,
    /// `[M, K]`.
    pub x: Left<'a, D>,
    /// `[K, N]`.
    pub weight: &'a D::Matrix,
    /// The direction that the weight is a factor of: a device may keep one copy for both.
    pub direction: Direction,
    /// A second product to add.
    pub extra: Option<Extra<'a, D>>,
    /// `[N]`; only without `accumulate`.
    pub bias: Option<&'a D::Buffer>,
    /// Whether to add to what `out` holds.
    pub accumulate: bool,
    /// `[M, N]`.
    pub out: ViewMut<'a, D>,
}

/// A second product of a [`Gemm`]: `h [M, R]` and a matrix `[R, N]`.
#[derive(Debug)]
pub struct Extra<'a, D: Device> {
    /// `[M, R]`.
    pub x: Left<'a, D>,
    /// `[R, N]`.
    pub weight: &'a D::Matrix,
    /// The direction that the weight is a factor of.
    pub direction: Direction,
}

impl<D: Device> Clone for Extra<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Extra<'_, D> {}

/// `out[p, q] = scale * sum over m of a[m, p] * b[m, q]`, in f32: the gradient of a factor.
#[derive(Debug)]
pub struct GemmTn<'a, D: Device> {
    /// Number of rows of both factors.
    pub m: usize,
    /// Columns of `a`.
    pub p: usize,
    /// Columns of `b`.
    pub q: usize,
    /// `[M, P]`.
    pub a: View<'a, D>,
    /// `[M, Q]`.
    pub b: View<'a, D>,
    /// What the sums are multiplied by.
    pub scale: f32,
    /// `[P, Q]`, without gaps between rows.
    pub out: ViewMut<'a, D>,
}

/// A right factor that is made of parts of a buffer, `[rows, columns]` each, that stand one below the other, times `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorParts {
    /// Where each part begins.
    pub starts: Vec<usize>,
    /// Rows of each.
    pub rows: usize,
    /// Columns of each.
    pub columns: usize,
    /// What its values are multiplied by.
    pub scale: f32,
}

/// The sizes of `[B, T, D]` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRows {
    /// Samples B.
    pub batch: usize,
    /// Tokens T of each sample.
    pub tokens: usize,
    /// Width D.
    pub width: usize,
}

impl TokenRows {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.batch * self.tokens * self.width
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.batch * self.tokens
    }

    /// The rows of streams that stand one after the other, each with the row at which it begins.
    pub(crate) fn one_by_one(streams: &[Self]) -> impl Iterator<Item = (Self, usize)> {
        streams.iter().scan(0, |next, rows| {
            let first = *next;
            *next += rows.count();
            Some((*rows, first))
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Copies the tokens of every sample to where they stand in another order of tokens.
#[derive(Debug)]
pub struct CopyTokens<'a, D: Device> {
    /// What is copied.
    pub rows: TokenRows,
    /// From here; samples are this many rows apart.
    pub from: (View<'a, D>, usize),
    /// To here; samples are this many rows apart.
    pub to: (ViewMut<'a, D>, usize),
}

/// The most streams of tokens that one call takes: text, targets and references of a diffusion transformer.
pub const MOST_STREAMS: usize = 3;

/// Where the rows of some streams of the same samples, one after the other, stand in the joint order `[B, T, D]` of their tokens.
#[derive(Clone, Copy, Debug)]
pub struct JointOrder<'a> {
    /// The rows: the tokens of these streams follow one another.
    pub rows: &'a [TokenRows],
    /// T.
    pub tokens: usize,
    /// Where the first stream's first token stands.
    pub offset: usize,
}

impl JointOrder<'_> {
    /// Each stream, with the row and the place at which it begins.
    pub(super) fn streams(&self) -> impl Iterator<Item = (TokenRows, usize, usize)> {
        let mut place = self.offset;
        TokenRows::one_by_one(self.rows).map(move |(rows, row)| {
            let first = place;
            place += rows.tokens;
            (rows, row, first)
        })
    }
}

/// `y = norm(x) (1 + scale[b]) + shift[b]`, a layer norm with eps 1e-6; mean and 1 / deviation of each row are kept for the
/// backward.
#[derive(Debug)]
pub struct NormModulate<'a, D: Device> {
    /// The sizes of `x` and `y`: the rows of [some](MOST_STREAMS) streams of the same samples, one after the other.
    pub rows: &'a [TokenRows],
    /// `[B, T, D]`.
    pub x: View<'a, D>,
    /// `[B, D]`.
    pub shift: View<'a, D>,
    /// `[B, D]`.
    pub scale: View<'a, D>,
    /// `[B, T, D]`.
    pub y: ViewMut<'a, D>,
    /// `[B T]`.
    pub mean: ViewMut<'a, D>,
    /// `[B T]`.
    pub reciprocal: ViewMut<'a, D>,
}

/// Backward of [`NormModulate`].
#[derive(Debug)]
pub struct NormModulateBackward<'a, D: Device> {
    /// The sizes of `x`, `dy` and `dx`; of one stream where the modulation's cotangent is wanted.
    pub rows: &'a [TokenRows],
    /// `[B, T, D]`.
    pub x: View<'a, D>,
    /// `[B T]`.
    pub mean: View<'a, D>,
    /// `[B T]`.
    pub reciprocal: View<'a, D>,
    /// `[B, D]`.
    pub scale: View<'a, D>,
    /// `[B, T, D]`.
    pub dy: View<'a, D>,
    /// `[B, T, D]`, overwritten, or added to with `accumulate`.
    pub dx: ViewMut<'a, D>,
    /// Whether to add to what `dx` holds.
    pub accumulate: bool,
    /// The modulation's own cotangent, where it is wanted.
    pub modulation: Option<ModulationGrad<'a, D>>,
}

/// Where the sums of a modulation's cotangents go, `[B, D]` each; overwritten.
#[derive(Debug)]
pub struct ModulationGrad<'a, D: Device> {
    /// Sum over tokens of the cotangent of `y`.
    pub d_shift: ViewMut<'a, D>,
    /// Sum over tokens of the cotangent of `y` times the normed value.
    pub d_scale: ViewMut<'a, D>,
}

/// A gate's own cotangent.
#[derive(Debug)]
pub struct GateGrad<'a, D: Device> {
    /// The forward `y`, `[B, T, D]`.
    pub y: View<'a, D>,
    /// Sum over tokens of `dx * y`, `[B, D]`; overwritten.
    pub d_gate: ViewMut<'a, D>,
}

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
}

/// A projection on its way to its heads.
#[derive(Debug)]
pub struct SplitHeads<'a, D: Device> {
    /// Rows of the streams, `[B, S, H D]` each, one after the other.
    pub x: View<'a, D>,
    /// Of queries and keys; all operands of a call turn by the same angles.
    pub norm: Option<NormRotary<'a, D>>,
    /// `[B, H, T, D]`; tokens of other streams are left alone.
    pub out: &'a mut D::Buffer,
}

/// Backward of [`SplitHeads`].
#[derive(Debug)]
pub struct SplitHeadsBackward<'a, D: Device> {
    /// Cotangent of the heads, `[B, H, T, D]`.
    pub d_out: &'a D::Buffer,
    /// The forward's rows, where there is a norm.
    pub norm: Option<(View<'a, D>, NormRotary<'a, D>)>,
    /// Rows of the streams, overwritten.
    pub dx: ViewMut<'a, D>,
}

/// What is done to queries and keys on their way to their heads; values go without.
#[derive(Debug)]
pub struct NormRotary<'a, D: Device> {
    /// Weight of the RMS norm `[D]` (eps 1e-6).
    pub weight: &'a D::Buffer,
    /// Cosines `[T, D / 2]`, by the token's place in the attention.
    pub cos: &'a D::Buffer,
    /// Sines `[T, D / 2]`.
    pub sin: &'a D::Buffer,
}

impl<D: Device> Clone for NormRotary<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for NormRotary<'_, D> {}

/// The sizes of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Samples B.
    pub batch: usize,
    /// Heads H.
    pub heads: usize,
    /// Tokens T that have queries.
    pub tokens: usize,
    /// Keys and values U: T in an attention of tokens over themselves.
    pub keys: usize,
    /// Width D of one head.
    pub dim: usize,
}

/// What an attention does to its scores before their softmax.
#[derive(Debug)]
pub struct Scores<'a, D: Device> {
    /// What they are multiplied by; 1 / sqrt(D) where nothing is said.
    pub scale: Option<f32>,
    /// Added then, `[H, T, U]`, to every sample alike.
    pub bias: Option<&'a D::Buffer>,
    /// Whether query t sees no key after the t-th.
    pub causal: bool,
}

impl<D: Device> Scores<'_, D> {
    /// Scaled by 1 / sqrt(D), and nothing else.
    pub const PLAIN: Self = Self { scale: None, bias: None, causal: false };

    /// Is it [`PLAIN`](Self::PLAIN)? Only such an attention has a backward.
    pub fn are_plain(&self) -> bool {
        self.scale.is_none() && self.bias.is_none() && !self.causal
    }
}

impl<D: Device> Clone for Scores<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Scores<'_, D> {}

/// Softmax attention: `out = softmax(scale q k^T + bias) v`.
#[derive(Debug)]
pub struct Attention<'a, D: Device> {
    /// The sizes.
    pub shape: AttentionShape,
    /// The query rows that are computed; rows of `out` and `lse` outside are left alone.
    pub query_rows: Range<usize>,
    /// What is done to the scores.
    pub scores: Scores<'a, D>,
    /// `[B, H, T, D]`.
    pub q: &'a D::Buffer,
    /// `[B, H, U, D]`.
    pub k: &'a D::Buffer,
    /// `[B, H, U, D]`.
    pub v: &'a D::Buffer,
    /// `[B, T, H D]`.
    pub out: ViewMut<'a, D>,
    /// `[B, H, T]`: logarithm of the sum of the exponentials of the scaled scores, for the backward. Written where scores are
    /// plain, else unspecified.
    pub lse: &'a mut D::Buffer,
}

/// Backward of an [`Attention`] whose scores are plain.
#[derive(Debug)]
pub struct AttentionBackward<'a, D: Device> {
    /// The sizes.
    pub shape: AttentionShape,
    /// The query rows that have a cotangent; the others count as zero and are not read.
    pub query_rows: Range<usize>,
    /// `[B, H, T, D]`.
    pub q: &'a D::Buffer,
    /// `[B, H, U, D]`.
    pub k: &'a D::Buffer,
    /// `[B, H, U, D]`.
    pub v: &'a D::Buffer,
    /// The forward result `[B, T, H D]`.
    pub out: View<'a, D>,
    /// `[B, H, T]` of the forward.
    pub lse: &'a D::Buffer,
    /// Cotangent of `out`, `[B, T, H D]`.
    pub d_out: View<'a, D>,
    /// Cotangent of the queries `[B, H, T, D]`, overwritten (zero outside `query_rows`).
    pub dq: &'a mut D::Buffer,
    /// Cotangent of the keys `[B, H, U, D]`, overwritten.
    pub dk: &'a mut D::Buffer,
    /// Cotangent of the values `[B, H, U, D]`, overwritten.
    pub dv: &'a mut D::Buffer,
}
