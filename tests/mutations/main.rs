//! A campaign of mutated inputs: shipped graphs with random edits and absurd numbers, settings of the command line, and
//! configurations of models. Each gives an answer or an error in its place; none panics, runs for long or asks for memory that
//! was not predicted.
//!
//! A case is a function of its number and the seed, so that a failure can be repeated alone:
//!
//! ```text
//! CAMPAIGN_SEED=7 CAMPAIGN_FIRST=1234 CAMPAIGN_CASES=1 cargo test --test mutations
//! ```
//!
//! `scripts/campaigns.sh mutate` runs many of them.

mod campaign;
mod configurations;
mod graphs;
mod random;
