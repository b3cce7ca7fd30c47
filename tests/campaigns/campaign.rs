//! Running the cases of a campaign.

use std::{
    collections::BTreeMap,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crate::random::Choices;

/// How a case ended: in a word that is counted, or with what is wrong.
pub type Outcome = Result<&'static str, String>;

/// The longest that a case may take: far more than any input is worth, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: a whole number is needed")),
        Err(_) => default,
    }
}

/// Run as many cases as the environment asks for, else `cases`; all failures are reported. Returns how many ended in each way.
#[allow(clippy::print_stdout, reason = "a campaign is run for its figures")]
pub fn run(name: &str, cases: u64, case: impl Fn(&mut Choices) -> Outcome) -> BTreeMap<&'static str, u64> {
    let (seed, first) = (number("CAMPAIGN_SEED", 0), number("CAMPAIGN_FIRST", 0));
    let cases = number("CAMPAIGN_CASES", cases);
    let (mut ends, mut faults) = (BTreeMap::new(), Vec::new());
    let begun = Instant::now();
    for index in first..first + cases {
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut Choices::new(seed, name, index))));
        let outcome = outcome.unwrap_or_else(|_| Err("a panic".into()));
        let outcome = match begun.elapsed() {
            took if took > PATIENCE => outcome.and(Err(format!("it took {took:?}"))),
            _ => outcome,
        };
        match outcome {
            Ok(end) => *ends.entry(end).or_default() += 1,
            Err(fault) => faults.push(format!("{name}, seed {seed}, case {index}: {fault}")),
        }
    }
    println!(
        "{name}: {cases} cases of seed {seed} in {:.1?}: {ends:?}, {} faults",
        begun.elapsed(),
        faults.len()
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    ends
}

/// May a campaign of this many cases be judged by its figures?
pub fn is_whole() -> bool {
    env::var_os("CAMPAIGN_CASES").is_none()
}
