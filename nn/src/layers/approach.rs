//! Streamed weights on their way to the blocks of a pass.

use super::{Linear, Packing};
use crate::{
    device::{Device, Passing, Queue},
    error::Result,
};

/// The block at `place` of this order of blocks runs next. Where weights are streamed, those of the blocks behind it are on their
/// way meanwhile: to the device those that it takes ahead, into the system's memory the one after them. `linears` are those of a
/// block, by its number.
///
/// # Errors
/// If a mapped file was truncated: a pass may take minutes, and touching a missing page would end the process. If the device has
/// no room.
pub fn approach<'l, D: Device>(
    queue: &D::Queue,
    packing: Packing,
    order: &[usize],
    place: usize,
    linears: impl Fn(usize) -> Vec<&'l Linear<D>>,
) -> Result<()> {
    crate::cpu::map::check_lengths()?;
    if packing == Packing::Resident {
        return Ok(());
    }
    let last = place + D::BLOCKS_AHEAD;
    let linears = |place: usize| order.get(place).map_or_else(Vec::new, |number| linears(*number));
    // At the start all of them, then one more with every block. Behind the end, what was used is dropped.
    let first = if place == 0 { 0 } else { last };
    for place in first..=last {
        let group: Vec<Passing<'_>> = linears(place).into_iter().flat_map(Linear::passing).collect();
        queue.prefetch(&group)?;
    }
    linears(last + 1).into_iter().for_each(Linear::will_need);
    Ok(())
}
