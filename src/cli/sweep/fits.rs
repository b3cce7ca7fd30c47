//! Whether a sweep fits into memory, and how many variants would.

use super::variants::{Sweep, load_some};
use crate::{
    cli::{Failure, fits, system},
    registry::Registry,
};

/// Refuse a sweep that needs more memory than the host has, or than its GPU has where that is known.
///
/// # Errors
/// What it needs, what there is, and how many variants need less; if not even one fits, what a run of it says.
pub(super) fn check(sweep: &Sweep, gpu: Option<u64>, registry: &Registry) -> Result<(), Failure> {
    let host = system::machine_memory();
    let Some((place, need, there)) = lacking(sweep, host, gpu) else {
        // Filling the cache, too, is looked at.
        return fits::check(&sweep.all, gpu, registry);
    };
    let count = sweep.variants.len();
    let (mut fit, mut peak, mut too_many) = (0, 0, count);
    while too_many - fit > 1 {
        let some = fit + (too_many - fit) / 2;
        let fewer = load_some(&sweep.all.args, sweep.overs.clone(), registry, some)?;
        match lacking(&fewer, host, gpu) {
            Some(_) => too_many = some,
            None => (fit, peak) = (some, needed(&fewer, place == "the host")),
        }
    }
    if fit == 0 {
        let one = load_some(&sweep.all.args, sweep.overs.clone(), registry, 1)?;
        fits::check(&one.all, gpu, registry)?;
    }
    let size = |bytes: u64| system::bytes(bytes);
    let mut ways = vec!["sweep over fewer values at a time".to_owned()];
    if sweep.all.plan.options().lanes > 1 {
        ways.push("work on one variant at a time with --lanes 1".into());
    }
    let savings: Vec<String> =
        fits::host_savings(&sweep.all).iter().map(|set| format!("--set {set}")).collect();
    if !savings.is_empty() {
        ways.push(format!("try settings that need less: {}", savings.join(" ")));
    }
    Err(Failure::new(format!(
        "{count} variants need {} of memory of {place}, and there are {}; {fit} of them would fit, with {}\n{}",
        size(need),
        size(there),
        size(peak),
        ways.join(", or "),
    )))
}

/// Bytes that are needed at a place.
fn needed(sweep: &Sweep, host: bool) -> u64 {
    match host {
        true => sweep.all.plan.memory().peak as u64,
        false => fits::gpu_memory(&sweep.all.plan).map_or(0, |(_, memory)| memory.peak as u64),
    }
}

/// A place that has less memory than is needed: its name, what is needed, what is there.
fn lacking(sweep: &Sweep, host: Option<u64>, gpu: Option<u64>) -> Option<(&'static str, u64, u64)> {
    let places = [("the host", true, host), ("the GPU", false, gpu)];
    places.into_iter().find_map(|(name, is_host, there)| {
        let (need, there) = (needed(sweep, is_host), there?);
        (need > there).then_some((name, need, there))
    })
}
