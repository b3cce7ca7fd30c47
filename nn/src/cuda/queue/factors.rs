//! Products with an adapter's factors on tensor cores: one side of each is the rank.
//!
//! `M` rows, `N` columns, `R` rank.

use super::{CudaQueue, rows::Rows};
use crate::cuda::{
    launch::{Grid, flag, float, int, pointer},
    modules::Source,
    products::Product,
    values::Element,
};

/// Rows and columns of a block of `expand_*`, and its threads (`factors.cu`).
const EXPANDED: (usize, usize) = (64, 128);
const EXPAND_THREADS: usize = 128;
/// Bytes that a block of `factor_sums_*` has for its tiles, and its threads (`factors.cu`).
const SUM_SHARED: usize = 96 << 10;
const SUM_THREADS: usize = 256;
/// From so many columns on, a block of sums has 64 of them, so that the narrow side is read half as often. Of fewer it has 32: otherwise
/// half of the multiprocessors would have no block.
const WIDE_STRIPES: usize = 8192;
/// Fewer blocks than this leave most of a GPU idle. Over many rows it is better then to split the sum, as cuBLASLt does.
const FEWEST_BLOCKS: usize = 48;
const MANY_ROWS: usize = 4096;

/// The ranks that there are kernels for: a smaller one takes the next. A group of linears with one input has its ranks side by side in the
/// product that leads back to it.
const RANKS_TO_EXPAND: [usize; 3] = [32, 64, 128];
/// The same for sums: of more columns on both sides, cuBLASLt makes a usual product.
const RANKS_TO_SUM: [usize; 2] = [32, 64];

/// Where the rank finds its kernel: chunks of eight values are read at once.
fn place_of(rank: usize, ranks: &[usize]) -> Option<usize> {
    ranks.iter().position(|most| rank <= *most).filter(|_| rank.is_multiple_of(8))
}

fn fits(rows: Rows) -> bool {
    rows.element == Element::Bf16 && rows.is_wide()
}

/// `[M, N]` summed over its rows with `[M, R]`.
struct Sums {
    wide: (Rows, usize),
    narrow: (Rows, usize),
    /// The result is `[R, N]`, and else `[N, R]`.
    turned: bool,
}

impl Sums {
    fn of((a, p): (Rows, usize), (b, q): (Rows, usize)) -> Self {
        if q <= p {
            Self { wide: (a, p), narrow: (b, q), turned: false }
        } else {
            Self { wide: (b, q), narrow: (a, p), turned: true }
        }
    }
}

impl CudaQueue {
    /// `out [M, N] = h [M, R] factor [R, N]`. False, and nothing done, where there is no kernel for it.
    pub(super) fn expand(&self, product: &Product) -> bool {
        let Product { sizes: (m, n, rank), left, right, out, .. } = *product;
        let element = product.factors;
        let operands = [left, right].map(|o| Rows { pointer: o.pointer, stride: o.stride, element });
        let result = Rows { pointer: out.pointer, stride: out.stride, element: product.result };
        let alone = !product.accumulate && product.bias.is_none() && product.parts == 1;
        let plain = alone && product.scale == 1.0 && !left.transposed;
        let whole = n.is_multiple_of(8) && operands.into_iter().chain([result]).all(fits);
        let Some(place) = place_of(rank, &RANKS_TO_EXPAND).filter(|_| plain && whole) else { return false };
        let name = match right.transposed {
            true => ["expand_outputs_32", "expand_outputs_64", "expand_outputs_128"][place],
            false => ["expand_inputs_32", "expand_inputs_64", "expand_inputs_128"][place],
        };
        let (rows, columns) = EXPANDED;
        // Results stand where the operands stood.
        let shared = ((rows + columns) * RANKS_TO_EXPAND[place]).max(rows * columns) * element.size();
        let blocks = (m.div_ceil(rows) * n.div_ceil(columns), 1);
        let grid = Grid { blocks, threads: EXPAND_THREADS as u32, shared };
        let pointers = [left, right, out].map(|o| pointer(o.pointer));
        let sizes = [left.stride, right.stride, out.stride, m, n, rank].map(int);
        self.launch(Source::Factors, name, grid, &[&pointers[..], &sizes].concat());
        true
    }

    /// `out [P, Q] = scale a [M, P]^T b [M, Q]`, without gaps. False, and nothing done, where there is no kernel for it.
    pub(super) fn factor_sums(
        &self,
        m: usize,
        a: (Rows, usize),
        b: (Rows, usize),
        scale: f32,
        out: Rows,
    ) -> bool {
        let Sums { wide: (wide, columns), narrow: (narrow, rank), turned } = Sums::of(a, b);
        let whole = columns.is_multiple_of(8) && fits(wide) && fits(narrow) && out.element == Element::F32;
        let Some(place) = place_of(rank, &RANKS_TO_SUM).filter(|_| whole && m > 0) else { return false };
        let (stripe, name) = match columns >= WIDE_STRIPES {
            true => (64, ["factor_sums_32_64", "factor_sums_64_64"][place]),
            false => (32, ["factor_sums_32_32", "factor_sums_64_32"][place]),
        };
        let blocks = columns.div_ceil(stripe);
        if blocks < FEWEST_BLOCKS && m > MANY_ROWS {
            return false;
        }
        let grid = Grid { blocks: (blocks, 1), threads: SUM_THREADS as u32, shared: SUM_SHARED };
        let pointers = [wide, narrow, out].map(Rows::argument);
        let sizes = [wide.stride, narrow.stride, m, columns, rank].map(int);
        let end = [flag(turned), float(scale)];
        self.launch(Source::Factors, name, grid, &[&pointers[..], &sizes, &end].concat());
        true
    }
}
