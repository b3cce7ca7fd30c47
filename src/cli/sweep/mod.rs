//! stub
mod fits;
mod plan;
mod variants;
use super::{Failure, args};
use crate::registry::Registry;
pub(super) use plan::plan;
pub(super) fn sweep(args: &args::Sweep, registry: &Registry) -> Result<u8, Failure> {
    let _ = (args, registry);
    Ok(0)
}
