//! Files: safetensors read through a map, and everything written beside and renamed.
