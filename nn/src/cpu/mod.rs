//! The processor as a device: a pool of worker threads, and SIMD kernels chosen at run time.
//!
//! No kernel splits a sum across threads, so results do not depend on how many there are.
//!
//! Kernels are functions over slices with explicit sizes, row-major. They assert that slices are long enough:
//! a failed assertion is a defect of the layer that calls.

pub mod map;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use self::isa::Token;
use crate::error::{Error, Result};

mod activation;
mod attention;
mod buffers;
mod check;
mod copy;
mod device;
mod exp;
mod gated_gelu;
mod gemm;
mod gemm_tn;
mod heads;
mod isa;
mod left;
mod machine;
mod math;
mod memory;
mod micro;
mod norm;
mod norm_weighted;
mod norm_weighted_backward;
mod optimizer;
mod packed;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod parallel;
mod pointwise;
mod precision;
mod product;
mod queue;
mod scores;
mod scratch;
mod softmax;
mod sweep;
mod tile;
mod windows;

pub use crate::device::{AdamW, AttentionShape, HeadLayout, Matrix, Precision, TokenRows, Update, Values};
pub use activation::{activate, multiply};
pub use attention::{
    Attention, AttentionBackward, ScoredAttention, WIDEST, attention, attention_backward, scored_attention,
};
pub use buffers::{Buffer, Buffers};
pub use copy::{copy, copy_tokens};
pub use exp::exp;
pub use gated_gelu::{gated_gelu, gated_gelu_backward};
pub use gemm::{Extra, Gemm, gemm};
pub use gemm_tn::{GemmTn, gemm_tn};
pub use heads::{NormRotary, split_heads, split_heads_backward};
pub use isa::Isa;
pub use left::{Left, Pictures};
pub use memory::Memory;
pub use norm::{ModulationGrad, norm_modulate, norm_modulate_backward};
pub use norm_weighted::{GroupNorm, group_norm, layer_norm, rms_norm};
pub use norm_weighted_backward::{group_norm_backward, layer_norm_backward, rms_norm_backward};
pub use optimizer::{adamw, sum_of_squares};
pub use packed::Packed;
pub use pointwise::{
    GateGrad, SubMatrix, add_scaled, add_to_tokens, gated_add, gated_add_backward, gelu, gelu_backward,
    scale, silu, silu_backward,
};
pub use queue::CpuQueue;
pub use scores::{cosine_scores, masked_mean};
pub use softmax::softmax;
pub use windows::{windows, windows_backward};

/// Is this thread a worker of a pool, which runs what other threads wait for?
pub fn is_worker() -> bool {
    rayon::current_thread_index().is_some()
}

/// Host memory and a pool of worker threads that all users of the device share.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    token: Token,
    /// Memory of matrices that were packed for one product, for the next.
    spare: Arc<Mutex<Vec<Memory>>>,
    /// Working memory of all who use the device.
    buffers: Buffers,
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
        Ok(Self { pool: Arc::new(pool), token, spare: Arc::default(), buffers: Buffers::default() })
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
    fn run<K: machine::Kernel>(&self, kernel: K) -> K::Output {
        self.token.run(kernel)
    }

    /// Rows and columns of the micro-tile of the matrix product.
    fn tile(&self) -> (usize, usize) {
        self.token.tile()
    }

    /// Memory for at least this many values, with anything in it.
    fn memory(&self, len: usize) -> Memory {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough and not wastefully so.
        let fits = |memory: &Memory| (len..=2 * len + 1024).contains(&memory.len());
        let best = (0..spare.len()).filter(|i| fits(&spare[*i])).min_by_key(|i| spare[*i].len());
        best.map_or_else(|| Memory::zeros(len), |best| spare.swap_remove(best))
    }

    /// Keep memory for later, if it is worth it.
    fn keep(&self, memory: Memory) {
        /// Matrices that are packed at one time, by a few lanes.
        const KEPT: usize = 4;
        /// Shorter ones, such as the factors of an adapter, would only take the places of long ones.
        const LONG: usize = 1 << 18;
        if memory.len() < LONG {
            return;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() == KEPT {
            spare.remove(0);
        }
        spare.push(memory);
    }

    /// Working memory.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
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
