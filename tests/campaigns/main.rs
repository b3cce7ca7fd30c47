//! Campaigns: many cases of a kind, drawn at random. Each must give an answer or an error in its place; none may panic, lose
//! anything, run for long or ask for memory that was not predicted.
//!
//! A case is a function of its number and the seed, so that a failure can be repeated alone:
//!
//! ```text
//! CAMPAIGN_SEED=7 CAMPAIGN_FIRST=1234 CAMPAIGN_CASES=1 cargo test --test campaigns damaged_run
//! ```
//!
//! `scripts/campaigns.sh` runs many of them, and others that need a tracer of system calls.

mod campaign;
#[cfg(unix)]
mod configurations;
#[path = "../copy/mod.rs"]
mod copy;
mod damage;
mod graphs;
#[cfg(unix)]
mod kills;
mod random;
mod runs;
