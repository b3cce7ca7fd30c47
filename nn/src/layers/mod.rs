//! Layers: functions with an explicit backward, over the kernels of a device.

pub mod buffers;

pub use buffers::{Buffer, Buffers};
