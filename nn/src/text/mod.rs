//! From prompts to conditions.

pub mod hash;

pub use hash::Hash;
