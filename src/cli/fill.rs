//! Filling the cache before the first step.

use prefgraph_nn as nn;
use prefgraph_ops::words::{count, form};

use super::{Failure, interrupt, prepare::Prepared, progress::Counter, say::say};
use crate::cache::{Cache, Filled};

/// Sentences about damaged entries that are shown; the rest is counted.
const SHOWN: usize = 5;

/// Make what is missing and drop the encoders; false if somebody interrupted.
pub(super) fn fill(
    prepared: &mut Prepared,
    cpu: &nn::Cpu,
    gpu: Option<&nn::cuda::Cuda>,
) -> Result<bool, Failure> {
    let Some((cache, _)) = &mut prepared.cache else { return Ok(true) };
    let mut counter: Option<Counter> = None;
    let filled = cache.fill(&prepared.graph, &prepared.plan, (cpu, gpu), &mut |at| {
        counter.get_or_insert_with(|| Counter::new("filling the cache", at.samples)).at(at.done);
        !interrupt::interrupted()
    });
    if let Some(counter) = counter {
        counter.end();
    }
    let filled = filled.map_err(Failure::new)?;
    tell(cache, &filled);
    Ok(filled.complete)
}

fn tell(cache: &Cache, filled: &Filled) {
    for damaged in filled.damaged.iter().take(SHOWN) {
        say!("warning: a damaged cache entry is recomputed: {damaged}");
    }
    if filled.damaged.len() > SHOWN {
        say!("warning: and {} more", filled.damaged.len() - SHOWN);
    }
    if filled.left_out > 0 {
        say!(
            "note: {} cannot be used and {} left out of the cache",
            count(filled.left_out, "sample"),
            form(filled.left_out, "is", "are")
        );
    }
    match filled.complete {
        true if filled.read > 0 => say!(
            "the cache is filled: {} {} read",
            count(filled.read, "sample"),
            form(filled.read, "was", "were")
        ),
        true => {}
        false => say!(
            "interrupted while filling the cache: the entries in `{}` stay, and the same command continues from there",
            cache.folder().display()
        ),
    }
}
