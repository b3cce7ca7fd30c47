//! The processor as a device: a pool of worker threads, and SIMD kernels chosen at run time.
//!
//! No kernel splits a sum across threads, so results do not depend on how many there are.
//!
//! Kernels are functions over slices with explicit sizes, row-major. They assert that slices are long enough:
//! a failed assertion is a defect of the layer that calls.

pub mod map;

use std::{fmt, sync::Arc};

use self::isa::Token;
use crate::{
    device::Device,
    error::{Error, Result},
};

mod attention;
mod gemm;
mod gemm_tn;
mod heads;
mod isa;
mod math;
mod norm;
mod optimizer;
mod packed;
mod parallel;
mod pointwise;
mod scores;
mod scratch;
mod sweep;
mod tile;

pub use attention::{Attention, AttentionBackward, AttentionShape, attention, attention_backward};
pub use gemm::{Gemm, gemm};
pub use gemm_tn::{GemmTn, gemm_tn};
pub use heads::{HeadLayout, NormRotary, split_heads, split_heads_backward};
pub use isa::Isa;
pub use norm::{ModulationGrad, Rows, norm_modulate, norm_modulate_backward};
pub use optimizer::{AdamW, adamw, sum_of_squares};
pub use packed::Packed;
pub use pointwise::{
    GateGrad, Window, add_scaled, gated_add, gated_add_backward, gelu, gelu_backward, scale, silu,
    silu_backward,
};
pub use scores::{cosine_scores, masked_mean};

/// Host memory and a pool of worker threads that all users of the device share.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    token: Token,
}

impl Cpu {
    /// A device with this many worker threads; zero means one for each core.
    ///
    /// # Errors
    /// If the operating system gives no threads.
    pub fn new(threads: usize) -> Result<Self> {
        Self::build(threads, Token::best())
    }

    /// The same with a given instruction set instead of the widest one.
    ///
    /// # Errors
    /// If the machine does not have it, or the operating system gives no threads.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        Self::build(threads, Token::require(isa)?)
    }

    fn build(threads: usize, token: Token) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cpu-{i}"))
            .build()
            .map_err(|e| Error::Setting(format!("no worker threads: {e}")))?;
        Ok(Self { pool: Arc::new(pool), token })
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set that kernels use.
    pub fn isa(&self) -> Isa {
        self.token.isa()
    }

    /// Runs a kernel compiled for this device's instruction set, on this thread.
    #[inline]
    fn run<K: isa::Kernel>(&self, kernel: K) -> K::Output {
        self.token.run(kernel)
    }

    /// Rows and columns of the micro-tile of the matrix product.
    fn tile(&self) -> (usize, usize) {
        self.token.tile()
    }

    /// The pool that kernels run on.
    pub(crate) fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu ({} threads, {:?})", self.threads(), self.isa())
    }
}

impl Device for Cpu {
    type Buffer = Vec<f32>;

    fn name(&self) -> String {
        "cpu".into()
    }
    fn zeros(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }
    fn upload(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }
    fn download(&self, buffer: &Vec<f32>) -> Vec<f32> {
        buffer.clone()
    }
    fn len(buffer: &Vec<f32>) -> usize {
        buffer.len()
    }
}
