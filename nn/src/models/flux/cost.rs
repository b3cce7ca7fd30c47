//! What a pass costs, from sizes alone.

use super::config::FluxConfig;
use crate::{backbone::PassCost, lora::AdapterLayout};

pub(super) fn cost(
    _config: &FluxConfig,
    _batch: usize,
    _grid: (usize, usize),
    _references: &[(usize, usize)],
    _text: usize,
    _adapter: Option<&AdapterLayout>,
) -> PassCost {
    PassCost::default()
}
