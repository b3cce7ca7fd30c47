//! The cases of every operation of a device: small shapes for tests, and those of networks for benches.
//!
//! ```text
//! B  samples   T  tokens   D  width (of a head, in attention)   H  heads   S  tokens of one stream   U  keys
//! M  rows      K  summed axis   N  columns of a result   R  rank
//! ```
//!
//! Tests of both devices and the benches include this file; none of them uses all of it.

#![allow(dead_code, reason = "each target takes its part")]

pub mod numbers;

use prefgraph_nn::device::{AttentionShape, HeadLayout, TokenRows};

/// A product `[M, K]` by `[K, N]` with a low-rank branch.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub m: usize,
    pub k: usize,
    pub n: usize,
    /// R; 0 where there is no branch.
    pub r: usize,
}

/// A norm of `rows` of `width`, and of groups of its columns.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    pub rows: usize,
    pub width: usize,
    pub groups: usize,
}

/// A picture, channels last.
#[derive(Clone, Copy, Debug)]
pub struct Picture {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

/// The mean of `tokens` rows against each of `count` rows.
#[derive(Clone, Copy, Debug)]
pub struct Scored {
    pub width: usize,
    pub tokens: usize,
    pub count: usize,
}

/// The shapes of all operations at one size.
#[derive(Clone, Copy, Debug)]
pub struct Shapes {
    pub products: &'static [Product],
    /// Sums over M of `[M, P]` and `[M, Q]`.
    pub factor_gradients: &'static [(usize, usize, usize)],
    /// Token rows of copies, gates and modulated norms.
    pub rows: &'static [TokenRows],
    /// Rows and width of activation functions.
    pub functions: &'static [(usize, usize)],
    pub heads: &'static [HeadLayout],
    pub attention: &'static [AttentionShape],
    pub norms: &'static [Groups],
    pub pictures: &'static [Picture],
    pub scores: &'static [Scored],
}

const fn product(m: usize, k: usize, n: usize, r: usize) -> Product {
    Product { m, k, n, r }
}

const fn rows(batch: usize, tokens: usize, width: usize) -> TokenRows {
    TokenRows { batch, tokens, width }
}

/// Rows, and those of two more streams that follow them.
pub fn streams(rows: TokenRows) -> [TokenRows; 3] {
    [rows, TokenRows { tokens: 1, ..rows }, TokenRows { tokens: rows.tokens + 2, ..rows }]
}

/// The layout of a stream, and those of two more that follow it in the same attention.
pub fn head_streams(layout: HeadLayout) -> [HeadLayout; 3] {
    let HeadLayout { stream_tokens, offset, .. } = layout;
    let tokens = layout.tokens + stream_tokens + 3;
    [
        HeadLayout { tokens, ..layout },
        HeadLayout { tokens, stream_tokens: 2, offset: offset + stream_tokens, ..layout },
        HeadLayout { tokens, stream_tokens: stream_tokens + 1, offset: offset + stream_tokens + 2, ..layout },
    ]
}

const fn attention(batch: usize, heads: usize, tokens: usize, keys: usize, dim: usize) -> AttentionShape {
    AttentionShape { batch, heads, tokens, keys, dim }
}

const fn heads(
    (batch, heads, dim): (usize, usize, usize),
    (stream_tokens, tokens, offset): (usize, usize, usize),
) -> HeadLayout {
    HeadLayout { batch, heads, dim, stream_tokens, tokens, offset }
}

const fn groups(rows: usize, width: usize, groups: usize) -> Groups {
    Groups { rows, width, groups }
}

const fn picture(height: usize, width: usize, channels: usize) -> Picture {
    Picture { height, width, channels }
}

const fn scored(width: usize, tokens: usize, count: usize) -> Scored {
    Scored { width, tokens, count }
}

/// One of everything, widths with and without whole registers and whole sixteen bytes, sizes on both sides of every block and tile.
pub const SMALL: Shapes = Shapes {
    products: &[
        product(1, 1, 1, 0),
        product(1, 7, 5, 1),
        product(1, 8, 8, 1),
        product(2, 3, 17, 4),
        product(5, 16, 16, 0),
        product(5, 24, 40, 4),
        product(6, 8, 32, 3),
        product(7, 31, 33, 5),
        product(12, 64, 48, 16),
        product(13, 65, 15, 4),
        product(25, 257, 70, 8),
        product(37, 65, 33, 3),
        product(61, 100, 129, 4),
        product(97, 40, 31, 64),
        product(70, 128, 256, 16),
        product(200, 300, 50, 16),
        product(64, 530, 96, 7),
        // Rows that stand as far apart as the processor's kernel wants them.
        product(48, 256, 40, 8),
        product(49, 255, 70, 0),
    ],
    factor_gradients: &[
        (1, 1, 1),
        (1, 8, 8),
        (5, 3, 40),
        (130, 16, 64),
        (300, 70, 4),
        (257, 33, 34),
        (64, 129, 17),
        (70, 128, 256),
        // Ranks on both sides of 32, on either side of the result; more tiles of 128 rows than are in memory at once; stripes of 64 columns.
        (700, 40, 72),
        (900, 24, 40),
        (70, 1000, 8),
        (500, 64, 8200),
        (600, 8200, 24),
    ],
    rows: &[
        rows(1, 1, 1),
        rows(1, 1, 8),
        rows(2, 3, 17),
        rows(2, 5, 48),
        rows(3, 7, 37),
        rows(3, 5, 130),
        rows(2, 17, 40),
        rows(1, 3, 2600),
        // Longer than the registers of a block.
        rows(2, 2, 3204),
        rows(2, 140, 200),
    ],
    functions: &[(1, 8), (5, 33), (3, 520)],
    heads: &[
        heads((1, 1, 2), (1, 1, 0)),
        heads((2, 3, 16), (5, 9, 4)),
        heads((2, 3, 24), (5, 9, 3)),
        heads((2, 2, 64), (7, 7, 0)),
        heads((1, 2, 130), (3, 8, 2)),
        // More heads than a group of threads has, and heads wider than a group.
        heads((2, 9, 32), (3, 5, 1)),
        heads((1, 3, 136), (3, 5, 1)),
        heads((1, 5, 264), (2, 3, 1)),
        // More than the threads of a block have at once.
        heads((1, 14, 256), (2, 3, 1)),
        heads((2, 4, 32), (150, 170, 20)),
    ],
    attention: &[
        attention(1, 1, 1, 1, 1),
        attention(1, 1, 1, 1, 8),
        attention(1, 2, 5, 5, 3),
        attention(2, 2, 5, 10, 12),
        attention(2, 1, 17, 17, 16),
        attention(1, 3, 33, 33, 16),
        attention(2, 2, 37, 37, 64),
        attention(1, 1, 67, 67, 128),
        attention(1, 1, 34, 34, 160),
        // Of tokens over others, fewer and more.
        attention(2, 2, 40, 77, 16),
        attention(1, 2, 75, 9, 24),
        attention(1, 1, 34, 39, 160),
    ],
    norms: &[
        groups(1, 8, 2),
        groups(1, 42, 14),
        groups(7, 48, 4),
        groups(5, 520, 8),
        groups(9, 42, 14),
        groups(2101, 32, 8),
    ],
    pictures: &[picture(4, 6, 3), picture(7, 5, 8), picture(16, 16, 4)],
    scores: &[scored(1, 1, 1), scored(8, 1, 1), scored(33, 7, 7), scored(48, 9, 5), scored(200, 33, 3)],
};

/// A network of width 256 with heads of 64, and single operations of wider ones: what one processor does in a few seconds.
pub const BENCH: Shapes = Shapes {
    products: &[
        product(192, 256, 256, 0),
        product(192, 1024, 256, 0),
        product(192, 1024, 1024, 0),
        product(1152, 256, 1024, 0),
        product(1152, 256, 1024, 16),
        product(2304, 256, 768, 0),
        product(2304, 1024, 256, 0),
        product(2304, 1024, 256, 16),
        product(2304, 256, 16, 0),
        product(2304, 1024, 16, 0),
        product(1536, 1024, 4096, 0),
        product(4608, 3072, 3072, 0),
    ],
    factor_gradients: &[(2304, 256, 16), (2304, 16, 1024), (2304, 768, 32), (4608, 3072, 64), (2304, 256, 4)],
    rows: &[rows(4, 576, 256)],
    functions: &[(2304, 256)],
    heads: &[heads((4, 4, 64), (576, 576, 0))],
    attention: &[
        attention(4, 4, 576, 576, 64),
        attention(2, 8, 1600, 1600, 128),
        attention(4, 4, 576, 576, 24),
        // SDXL's pixels over 77 tokens of text.
        attention(2, 10, 1024, 77, 64),
    ],
    norms: &[groups(2304, 256, 32)],
    pictures: &[picture(64, 64, 128)],
    scores: &[scored(256, 576, 2304)],
};

/// FLUX.1-dev at 512 pixels with a reference of 320 pixels: 512 tokens of text, 1024 of the image and 400 of the reference, winner
/// and loser, LoRA of rank 32. Norms and pictures are those of its encoders: T5-XXL and the last blocks of the autoencoder.
pub const FLUX_DEV: Shapes = Shapes {
    products: &[
        product(2848, 3072, 3072, 32),
        product(2848, 3072, 12288, 32),
        product(2848, 12288, 3072, 32),
        product(3872, 3072, 12288, 32),
        product(3872, 15360, 3072, 32),
        product(3872, 3072, 32, 0),
    ],
    factor_gradients: &[(3872, 32, 3072), (3872, 3072, 32), (3872, 12288, 32)],
    rows: &[rows(2, 1936, 3072)],
    functions: &[(3872, 12288)],
    heads: &[heads((2, 24, 128), (1424, 1936, 512))],
    attention: &[attention(2, 24, 1936, 1936, 128)],
    norms: &[groups(512, 4096, 32), groups(512 * 512, 128, 32)],
    pictures: &[picture(128, 512, 128)],
    scores: &[scored(3072, 1024, 400)],
};
