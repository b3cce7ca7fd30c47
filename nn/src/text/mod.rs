//! From prompts to conditions.
