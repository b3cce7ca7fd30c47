//! Work on the rows of one buffer, by several threads.

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::ParallelSliceMut,
};

use crate::cpu::Cpu;

/// Below this many values a copy runs on the caller's own thread: waking the pool costs about as much.
const WORTH_A_POOL: usize = 1 << 16;

/// Call `copy(i, row)` for every row of `to`, `stride` apart; the last may be shorter.
pub fn copy_rows(
    device: &Cpu,
    to: &mut [f32],
    stride: usize,
    copy: impl Fn(usize, &mut [f32]) + Send + Sync,
) {
    if to.len() < WORTH_A_POOL {
        to.chunks_mut(stride).enumerate().for_each(|(i, row)| copy(i, row));
        return;
    }
    let rows = WORTH_A_POOL.div_ceil(4 * stride);
    device.pool().install(|| {
        to.par_chunks_mut(stride).with_min_len(rows).enumerate().for_each(|(i, row)| copy(i, row));
    });
}
