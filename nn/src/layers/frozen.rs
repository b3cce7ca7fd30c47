//! Frozen matrices of a mapped file, packed for the kernels.
//!
//! `N` outputs, `K` inputs, `R` rank of a frozen branch.

use std::sync::{Arc, OnceLock};

use crate::{
    cpu::{self, Cpu, Gemm, Matrix, Packed, Precision, Values},
    error::Result,
    files::{Dtype, TensorView},
    lora::FrozenFactors,
};

/// Where the packed form of a frozen matrix lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// In memory, from the first use on: fastest, and a copy of every weight for each direction.
    #[default]
    Resident,
    /// Nowhere: every product packs what it needs from the mapped file and gives the memory back. Weights take no memory but
    /// the system's file cache.
    Streamed,
}

/// How frozen matrices are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loading {
    /// What the operands of products are rounded to.
    pub precision: Precision,
    /// Where packed weights live.
    pub packing: Packing,
}

/// A frozen matrix `[N, K]`.
#[derive(Debug)]
pub struct Frozen {
    view: TensorView,
    inputs: usize,
    loading: Loading,
    /// Added to the values when they are packed.
    merged: Option<FrozenFactors>,
    forward: OnceLock<Packed>,
    backward: OnceLock<Packed>,
    /// Set once the values are known to be finite.
    checked: OnceLock<()>,
}

impl Frozen {
    /// The view as a matrix of so many outputs and inputs: its first axis is N, all others together are K.
    ///
    /// Where weights are resident, they are read, checked and packed here; where they are streamed, nothing is read before
    /// [`check`](Self::check). With factors to be merged, `scale up down` is added to the values, in f32.
    ///
    /// # Errors
    /// If the view has other axes; if a value that is read is not finite.
    pub fn new(
        device: &Cpu,
        view: TensorView,
        (outputs, inputs): (usize, usize),
        loading: Loading,
        merged: Option<FrozenFactors>,
    ) -> Result<Self> {
        view.expect_matrix(outputs, inputs)?;
        let (forward, backward, checked) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let frozen = Self { view, inputs, loading, merged, forward, backward, checked };
        if loading.packing == Packing::Resident {
            frozen.check()?;
            let _ = frozen.forward.set(frozen.pack(device, Packed::from_weight));
        }
        Ok(frozen)
    }

    /// N.
    pub fn outputs(&self) -> usize {
        self.view.shape().first().copied().unwrap_or(0)
    }

    /// K.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Search the values, if that was not done yet. Streamed ones are searched just before they are first used, when they are
    /// read in any case.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn check(&self) -> Result<()> {
        if self.checked.get().is_none() {
            self.view.check_finite()?;
            let _ = self.checked.set(());
        }
        Ok(())
    }

    /// It is used soon: where weights are streamed, the system begins to read them.
    pub fn will_need(&self) {
        if self.loading.packing == Packing::Streamed {
            self.view.will_need();
        }
    }

    /// Use it for `y = x W^T`.
    pub fn forward<T>(&self, device: &Cpu, run: impl FnOnce(&Packed) -> T) -> T {
        self.packed(device, &self.forward, Packed::from_weight, run)
    }

    /// Use it for `dx = dy W`.
    pub fn backward<T>(&self, device: &Cpu, run: impl FnOnce(&Packed) -> T) -> T {
        self.packed(device, &self.backward, Packed::from_matrix, run)
    }

    fn packed<T>(
        &self,
        device: &Cpu,
        resident: &OnceLock<Packed>,
        pack: fn(&Cpu, Precision, &Matrix<'_>) -> Packed,
        run: impl FnOnce(&Packed) -> T,
    ) -> T {
        match self.loading.packing {
            Packing::Resident => run(match resident.get() {
                Some(packed) => packed,
                None => {
                    // Not `get_or_init`: packing uses the pool, and a thread of the pool that waits there may take up
                    // another pass, which comes here, too. Two that come at once pack the same values twice.
                    let packed = self.pack(device, pack);
                    resident.get_or_init(|| packed)
                }
            }),
            Packing::Streamed => {
                let packed = self.pack(device, pack);
                let result = run(&packed);
                packed.give_back(device);
                result
            }
        }
    }

    fn pack(&self, device: &Cpu, pack: fn(&Cpu, Precision, &Matrix<'_>) -> Packed) -> Packed {
        let (rows, columns) = (self.outputs(), self.inputs);
        let Some(FrozenFactors { down, up, scale }) = &self.merged else {
            return pack(device, self.loading.precision, &matrix(&self.view, (rows, columns)));
        };
        let mut values = self.view.read();
        let rank = down.shape().first().copied().unwrap_or(0);
        let down = Packed::from_matrix(device, Precision::F32, &matrix(down, (rank, columns)));
        let up: Vec<f32> = up.read().into_iter().map(|v| v * scale).collect();
        let call = Gemm {
            m: rows,
            x: &up,
            x_stride: rank,
            weight: &down,
            extra: None,
            bias: None,
            accumulate: true,
            out: &mut values,
            out_stride: columns,
        };
        cpu::gemm(device, call);
        down.give_back(device);
        pack(device, self.loading.precision, &Matrix::of(&values, rows, columns))
    }
}

/// A view as the kernels read it, without a copy.
pub(super) fn matrix(view: &TensorView, (rows, columns): (usize, usize)) -> Matrix<'_> {
    let values = |dtype, bytes| match dtype {
        Dtype::F16 => Values::F16Bytes(bytes),
        Dtype::BF16 => Values::Bf16Bytes(bytes),
        // A view is of f32, f16 or bf16.
        _ => Values::F32Bytes(bytes),
    };
    Matrix::new(view.pieces().map(|p| values(p.dtype, p.bytes)).collect(), rows, columns)
}

/// A low-rank branch that belongs to the frozen network, such as UNO's own adapter: `y += scale (x down^T) up^T`.
#[derive(Debug)]
pub struct FrozenBranch {
    /// `[R, K]`; linears with one input may share it.
    pub down: Arc<Frozen>,
    /// `[N, R]`.
    pub up: Frozen,
    /// What the branch is multiplied by.
    pub scale: f32,
}
