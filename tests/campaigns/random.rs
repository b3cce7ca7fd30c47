//! Random choices of a case.

use prefgraph_ops::random::Random;

/// The choices of one case of a campaign.
pub struct Choices(Random);

impl Choices {
    pub fn new(seed: u64, campaign: &str, case: u64) -> Self {
        Self(Random::new(seed, campaign, case, "mutation"))
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n.max(1) as u64) as usize
    }

    /// One in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of several, the default if there are none.
    pub fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T
    where
        &'a T: Default,
    {
        all.get(self.below(all.len())).copied().unwrap_or_default()
    }
}

/// Numbers at which something ends: types, memories, patience.
pub const NUMBERS: [&str; 32] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "16",
    "24",
    "32",
    "48",
    "100",
    "320",
    "1000",
    "1000000",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "1000000000000",
    "9007199254740993",
    "1152921504606846976",
    "4611686018427387904",
    "9223372036854775792",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551600",
    "18446744073709551615",
    "18446744073709551616",
    "0.5",
    "-0.0",
    "1e30",
    "1e999",
    "NaN",
];
