//! How many worker threads there will be.

use std::{num::NonZero, thread};

/// Threads for each core beyond which they only take memory.
const PER_CORE: usize = 4;
/// Threads that any machine can start, whatever its cores.
const ALWAYS: usize = 64;

/// `asked` threads, or as many as `RAYON_NUM_THREADS` says where `asked` is 0, but not more than are of any use; and a word
/// where that are fewer. 0 is one a core.
pub(super) fn capped(asked: usize) -> (usize, Option<String>) {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let stated = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.trim().parse().ok());
    cap(asked, stated, cores)
}

fn cap(asked: usize, stated: Option<usize>, cores: usize) -> (usize, Option<String>) {
    let most = cores.saturating_mul(PER_CORE).max(ALWAYS);
    let (wanted, who) = match (asked, stated) {
        (0, Some(stated)) => (stated, "RAYON_NUM_THREADS"),
        _ => (asked, "threads"),
    };
    match wanted > most {
        true => (
            most,
            Some(format!("{who} is {wanted}, but only {most} are started: this machine has {cores} cores")),
        ),
        false => (wanted, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_threads_are_fewer_threads_and_a_word() {
        assert_eq!(cap(0, None, 2), (0, None));
        assert_eq!(cap(0, Some(3), 2), (3, None));
        assert_eq!(cap(5, Some(1_000_000), 2), (5, None), "what the graph says goes first");
        assert_eq!(cap(400, None, 128), (400, None));
        let (threads, word) = cap(1_000_000, None, 2);
        assert!(
            threads == 64 && word.as_ref().is_some_and(|w| w.contains("threads is 1000000, but only 64")),
            "{word:?}"
        );
        let (threads, word) = cap(0, Some(usize::MAX), 32);
        assert!(threads == 128 && word.as_ref().is_some_and(|w| w.contains("RAYON_NUM_THREADS")), "{word:?}");
    }
}
