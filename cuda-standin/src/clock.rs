//! Vector clocks: of each stream, how far what is known to be before goes.

/// Of each stream, the place up to which everything is known to be before.
pub type Clock = Vec<u32>;

pub fn join(into: &mut Clock, from: &Clock) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    for (place, other) in into.iter_mut().zip(from) {
        *place = (*place).max(*other);
    }
}
