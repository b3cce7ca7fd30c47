//! Sums over rows of products of two activations: the gradients of LoRA matrices.
//!
//! ```text
//! M  rows (tokens)    P, Q  columns of the two factors
//! ```
#![allow(unsafe_code, reason = "tasks write disjoint columns of the result")]

use super::{
    Cpu,
    check::check_matrix,
    machine::{Kernel, Machine},
    packed::pack,
    parallel::{self, Shared},
    product::{Product, Start, product},
    scratch::with_scratch,
    tile::ACROSS,
};

/// `out[p, q] = sum over m of a[m, p] * b[m, q]`.
#[derive(Debug)]
pub struct GemmTn<'a> {
    /// Number of rows M of both factors.
    pub m: usize,
    /// Columns of `a`.
    pub p: usize,
    /// Columns of `b`.
    pub q: usize,
    /// `[M, P]`.
    pub a: &'a [f32],
    /// Stride of the rows of `a`.
    pub a_stride: usize,
    /// `[M, Q]`.
    pub b: &'a [f32],
    /// Stride of the rows of `b`.
    pub b_stride: usize,
    /// Whether to add to what `out` holds.
    pub accumulate: bool,
    /// `[P, Q]`, without gaps between rows.
    pub out: &'a mut [f32],
}

/// Rows of one run of the micro-kernel: a panel of them stays in the first cache while the narrow factor passes.
const TERMS: usize = 64;
/// Panels of one task: so much of a row is read together, since every row may stand on a page of its own.
const TASK_PANELS: usize = 16;

/// Computes a [`GemmTn`]. Each element is one chain of fused multiply-adds in the order of the rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gemm_tn(cpu: &Cpu, call: GemmTn<'_>) {
    let GemmTn { m, p, q, a, a_stride, b, b_stride, accumulate, out } = call;
    check_matrix("a", a.len(), m, p, a_stride);
    check_matrix("b", b.len(), m, q, b_stride);
    check_matrix("out", out.len(), p, q, q);
    // The wider factor is read in vectors, the narrower one is broadcast.
    let swapped = p > q;
    let (narrow, wide) =
        if swapped { ((b, b_stride, q), (a, a_stride, p)) } else { ((a, a_stride, p), (b, b_stride, q)) };
    let width = cpu.tile().1;
    let panels = wide.2.div_ceil(width);
    let each = panels.div_ceil(2 * cpu.threads()).clamp(1, TASK_PANELS);
    let out = Shared::new(out);
    parallel::for_each(cpu, 2 * m * p * q, panels.div_ceil(each), |task| {
        let first = task * each * width;
        let columns = (each * width).min(wide.2 - first);
        let padded = columns.next_multiple_of(width);
        with_scratch([TERMS * padded, narrow.2 * padded], |scratch| {
            cpu.run(Columns { m, narrow, wide, first, columns, swapped, accumulate, out, scratch });
        });
    });
}

/// One task: some columns of the wider factor.
struct Columns<'a> {
    m: usize,
    /// Values, stride, columns.
    narrow: (&'a [f32], usize, usize),
    wide: (&'a [f32], usize, usize),
    first: usize,
    columns: usize,
    /// Whether the wider factor is `a`, so that the result is written transposed.
    swapped: bool,
    accumulate: bool,
    out: Shared<'a>,
    /// Packed panels, and the result.
    scratch: [&'a mut [f32]; 2],
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, machine: M) {
        let width = M::TILE_COLUMNS;
        let Self {
            m,
            narrow: (narrow, narrow_stride, rows),
            wide: (wide, stride, total),
            first,
            columns,
            ..
        } = self;
        let panels = columns.div_ceil(width);
        // SAFETY: element (i, j) of the narrow-by-wide result belongs to the task that has column j.
        let element = |i: usize, j: usize| unsafe {
            let index = if self.swapped { (first + j) * rows + i } else { i * total + first + j };
            &mut self.out.part(index, 1)[0]
        };
        let [packed, sums] = self.scratch;
        let sums_stride = panels * width;
        sums.fill(0.0);
        if self.accumulate {
            for j in 0..columns {
                for i in 0..rows {
                    sums[i * sums_stride + j] = *element(i, j);
                }
            }
        }
        // Whole panels are read where they stand.
        let direct = columns.is_multiple_of(width);
        for r in (0..m).step_by(TERMS) {
            let terms = TERMS.min(m - r);
            let from = &wide[r * stride + first..];
            let (panels, panel_row, panel_stride) = if direct {
                (from.as_ptr(), stride, width)
            } else {
                pack(from, stride, terms, columns, width, packed);
                (packed.as_ptr(), width, terms * width)
            };
            let block = Product {
                rows,
                columns: sums_stride,
                k: terms,
                a: narrow[r * narrow_stride..].as_ptr(),
                a_stride: narrow_stride,
                panels,
                panel_row,
                panel_stride,
                start: Start::Result,
                c: sums.as_mut_ptr(),
                c_stride: sums_stride,
            };
            // SAFETY: both factors were checked for `m` rows, the wide one, where it is read directly, for whole panels; the
            // sums are `rows` rows of `sums_stride`.
            unsafe { product::<M, ACROSS, false>(machine, &block) };
        }
        for i in 0..rows {
            for j in 0..columns {
                *element(i, j) = sums[i * sums_stride + j];
            }
        }
    }
}
