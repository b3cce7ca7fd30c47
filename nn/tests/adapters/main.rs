//! Adapter files of other tools, against the same adapter in the project's own names.

mod files;
mod layouts;
mod peft;
mod refused;
mod strength;
