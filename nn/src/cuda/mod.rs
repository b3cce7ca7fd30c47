//! NVIDIA GPUs as a [`Device`](crate::device::Device), by the driver's API: no toolkit is needed to build.
//!
//! ```text
//!  driver   which libraries and GPUs are there      context  one GPU: its kernels, products and streams
//!  modules  kernels compiled, and kept on the disk  launch   how a kernel is launched
//!  memory   memory in the order of a stream         values   buffers and matrices
//!  products matrix products, by cuBLASLt            queue    the operations of a device, on one stream
//!  window   streamed weights, brought ahead         staging  pinned buffers, on the way to a GPU
//!  vec      values that outlive a pass             device   a GPU as a device
//! ```
//!
//! Nothing is loaded before [`Cuda::open`] or [`devices`]. A queue is a stream with a workspace of its own, so that passes of
//! several lanes overlap; all memory of a pass is allocated and freed in the order of its stream. What crosses streams is complete
//! before another one sees it: the model's weights, and the adapter with its gradient and moments. Streamed weights alone cross them
//! while work is under way, with events between.

mod context;
mod device;
mod driver;
mod launch;
mod memory;
mod modules;
mod products;
mod queue;
mod staging;
mod values;
mod vec;
mod window;

pub use context::Cuda;
pub use driver::{GpuInfo, devices, is_there};
pub(crate) use products::WORKSPACE;
pub use queue::CudaQueue;
pub(crate) use staging::PINNED;
pub use values::{CudaBuffer, CudaMatrix};
pub(crate) use window::GROUPS;
