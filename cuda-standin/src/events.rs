//! Events: places in streams that other streams and the host wait for.

use std::time::Instant;

use crate::clock::Clock;

#[derive(Default)]
pub struct Event {
    /// Where it was recorded last; 0: never.
    pub operation: u32,
    pub clock: Clock,
    /// Questions since then.
    pub asked: u32,
    pub timed: bool,
    /// When it was reached.
    pub time: Option<Instant>,
}
