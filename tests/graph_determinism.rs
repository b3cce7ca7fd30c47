//! Lanes, run-ahead and restarts change no bit.

mod common;

use std::sync::Arc;

use common::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lanes_and_run_ahead_do_not_change_a_bit(lanes in 1usize..9, ahead in 0usize..4, seed: u64) {
        let graph = Arc::new(everything());
        prop_assert_eq!(bits(&mut runner(&graph, lanes, ahead, seed), 7), bits(&mut runner(&graph, 1, 0, seed), 7));
    }

    #[test]
    fn a_run_that_is_resumed_at_any_step_is_the_same_run(
        lanes in 1usize..5,
        ahead in 0usize..4,
        stop in 0usize..8,
        seed: u64,
    ) {
        let graph = Arc::new(everything());
        let whole = bits(&mut runner(&graph, 1, 1, seed), 8);
        let mut first = runner(&graph, 2, 1, seed);
        let mut all: Vec<u32> = (0..stop).map(|_| first.step().unwrap().loss.unwrap().to_bits()).collect();
        let mut second = runner(&graph, lanes, ahead, seed);
        second.restore(first.next_step(), &first.cells().unwrap()).unwrap();
        all.extend(bits(&mut second, 8 - stop));
        prop_assert_eq!(all, whole);
    }
}
