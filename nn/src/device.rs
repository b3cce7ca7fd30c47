//! The device trait: where buffers live. Kernels are functions of each device's own module.

/// A place where tensors live.
pub trait Device: Clone + Send + Sync + 'static {
    /// A run of `f32` values on this device.
    type Buffer: Clone + Send + Sync + 'static;

    /// Name in messages, e.g. `cpu`.
    fn name(&self) -> String;
    /// A buffer of zeros.
    fn zeros(&self, len: usize) -> Self::Buffer;
    /// Move values from the host.
    fn upload(&self, values: Vec<f32>) -> Self::Buffer;
    /// Copy values to the host.
    fn download(&self, buffer: &Self::Buffer) -> Vec<f32>;
    /// Number of values.
    fn len(buffer: &Self::Buffer) -> usize;
}
