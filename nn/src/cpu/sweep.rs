//! The loop of element-wise passes: rows are divided among tasks, and each row is processed in blocks.
#![allow(unsafe_code, reason = "tasks write disjoint parts of the results")]
#![allow(clippy::needless_range_loop, reason = "indices into arrays of a constant length are unrolled")]

use std::ops::Range;

use super::{
    Cpu,
    machine::{Kernel, Machine},
    math::{self, BLOCK, Block},
    parallel::{self, Shared},
};

/// What a pass does to a block.
pub(super) trait Pass<const IN: usize, const OUT: usize>: Copy + Send + Sync {
    /// From the inputs, and what the results hold, to the new results. Must be `#[inline(always)]`.
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        inputs: [Block<M, N>; IN],
        results: [Block<M, N>; OUT],
    ) -> [Block<M, N>; OUT];
}

/// An input of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum SweepInput<'a> {
    /// Row r stands at `r / each * stride`.
    Rows { values: &'a [f32], stride: usize, each: usize },
    /// One value for each row.
    Column(&'a [f32]),
}

impl<'a> SweepInput<'a> {
    /// A row for every row.
    pub(super) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self::Rows { values, stride, each: 1 }
    }
}

/// A result of a pass: row r stands at `start + r / each * stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output<'a> {
    values: Shared<'a>,
    start: usize,
    stride: usize,
    each: usize,
}

impl<'a> Output<'a> {
    pub(super) fn rows(values: &'a mut [f32], stride: usize) -> Self {
        Self { values: Shared::new(values), start: 0, stride, each: 1 }
    }

    /// Two results whose rows of `width` values stand one beside the other.
    pub(super) fn beside(values: &'a mut [f32], stride: usize, width: usize) -> [Self; 2] {
        let values = Shared::new(values);
        [0, width].map(|start| Self { values, start, stride, each: 1 })
    }

    /// One row for `each` rows of the inputs.
    pub(super) fn sums(values: &'a mut [f32], stride: usize, each: usize) -> Self {
        Self { values: Shared::new(values), start: 0, stride, each }
    }
}

/// Values in a task.
const TASK: usize = 1 << 14;
/// What a value of a pass costs, in operations of a matrix product: passes wait for memory.
const COST: usize = 32;

/// Runs a pass over rows of `width` values.
pub(super) fn sweep<P: Pass<IN, OUT>, const IN: usize, const OUT: usize>(
    cpu: &Cpu,
    pass: P,
    rows: usize,
    width: usize,
    inputs: [SweepInput<'_>; IN],
    outputs: [Output<'_>; OUT],
) {
    let each = (TASK / width.max(1)).max(1);
    parallel::for_each(cpu, COST * rows * width, rows.div_ceil(each), |task| {
        let rows = task * each..rows.min((task + 1) * each);
        cpu.run(Part { pass, rows, columns: 0..width, inputs, outputs });
    });
}

/// Runs a pass whose outputs have one row for `each` rows of the inputs, in the order of the rows.
pub(super) fn sweep_sums<P: Pass<IN, OUT>, const IN: usize, const OUT: usize>(
    cpu: &Cpu,
    pass: P,
    (groups, each): (usize, usize),
    width: usize,
    inputs: [SweepInput<'_>; IN],
    outputs: [Output<'_>; OUT],
) {
    const COLUMNS: usize = 128;
    let parts = width.div_ceil(COLUMNS);
    parallel::for_each(cpu, COST * groups * each * width, groups * parts, |task| {
        let (group, first) = (task / parts, task % parts * COLUMNS);
        let (rows, columns) = (group * each..(group + 1) * each, first..width.min(first + COLUMNS));
        cpu.run(Part { pass, rows, columns, inputs, outputs });
    });
}

/// Runs a pass over contiguous values, all slices of one length.
pub(super) fn sweep_flat<P: Pass<IN, OUT>, const IN: usize, const OUT: usize>(
    cpu: &Cpu,
    pass: P,
    inputs: [&[f32]; IN],
    mut outputs: [&mut [f32]; OUT],
) {
    const WIDTH: usize = 4096;
    let len = outputs[0].len();
    let lengths = inputs.iter().map(|x| x.len()).chain(outputs.iter().map(|x| x.len()));
    assert!(lengths.into_iter().all(|x| x == len), "slices of one length");
    let whole = len / WIDTH * WIDTH;
    for (range, rows, width) in [(0..whole, whole / WIDTH, WIDTH), (whole..len, 1, len - whole)] {
        let inputs = inputs.map(|x| SweepInput::rows(&x[range.clone()], width));
        let outputs = outputs.each_mut().map(|x| Output::rows(&mut x[range.clone()], width));
        sweep(cpu, pass, rows, width, inputs, outputs);
    }
}

struct Part<'a, P, const IN: usize, const OUT: usize> {
    pass: P,
    rows: Range<usize>,
    columns: Range<usize>,
    inputs: [SweepInput<'a>; IN],
    outputs: [Output<'a>; OUT],
}

impl<P: Pass<IN, OUT>, const IN: usize, const OUT: usize> Kernel for Part<'_, P, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let width = self.columns.len();
        for row in self.rows.clone() {
            let mut inputs: [&[f32]; IN] = [&[]; IN];
            let mut scalars = [0.0; IN];
            for k in 0..IN {
                match self.inputs[k] {
                    SweepInput::Rows { values, stride, each } => {
                        inputs[k] = &values[row / each * stride + self.columns.start..][..width];
                    }
                    SweepInput::Column(values) => scalars[k] = values[row],
                }
            }
            let mut outputs: [&mut [f32]; OUT] = [(); OUT].map(|()| Default::default());
            for k in 0..OUT {
                let Output { values, start, stride, each } = self.outputs[k];
                // SAFETY: a task has its own rows or, where rows of the result are shared, its own columns; results that stand
                // beside each other have columns of their own.
                outputs[k] = unsafe { values.part(start + row / each * stride + self.columns.start, width) };
            }
            let whole = width / BLOCK * BLOCK;
            for first in (0..whole).step_by(BLOCK) {
                let mut blocks = [math::splat::<M, N>(m, 0.0); IN];
                for k in 0..IN {
                    blocks[k] = match self.inputs[k] {
                        SweepInput::Rows { .. } => math::load(m, &inputs[k][first..whole]),
                        SweepInput::Column(_) => math::splat(m, scalars[k]),
                    };
                }
                let mut results = [math::splat::<M, N>(m, 0.0); OUT];
                for k in 0..OUT {
                    results[k] = math::load(m, &outputs[k][first..whole]);
                }
                let results = self.pass.block::<M, N>(m, blocks, results);
                for k in 0..OUT {
                    math::store::<M, N>(&mut outputs[k][first..whole], results[k]);
                }
            }
            if whole < width {
                let mut blocks = [math::splat::<M, N>(m, 0.0); IN];
                for k in 0..IN {
                    blocks[k] = match self.inputs[k] {
                        SweepInput::Rows { .. } => math::load_part(m, &inputs[k][whole..], 0.0),
                        SweepInput::Column(_) => math::splat(m, scalars[k]),
                    };
                }
                let mut results = [math::splat::<M, N>(m, 0.0); OUT];
                for k in 0..OUT {
                    results[k] = math::load_part(m, &outputs[k][whole..], 0.0);
                }
                let results = self.pass.block::<M, N>(m, blocks, results);
                for k in 0..OUT {
                    math::store_part::<M, N>(&mut outputs[k][whole..], results[k]);
                }
            }
        }
    }
}
