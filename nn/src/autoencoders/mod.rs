//! From pictures to latents.
