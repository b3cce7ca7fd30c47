//! Frozen matrices of a mapped file, packed for the kernels.
//!
//! `N` outputs, `K` inputs, `R` rank of a frozen branch.

use std::sync::{Arc, OnceLock};

use crate::{
    device::{Device, Direction, Matrix, Merge, Precision, Values},
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
pub struct Frozen<D: Device> {
    device: D,
    view: TensorView,
    inputs: usize,
    loading: Loading,
    /// Added to the values when they are packed.
    merged: Option<FrozenFactors>,
    forward: OnceLock<D::Matrix>,
    backward: OnceLock<D::Matrix>,
    /// Set once the values are known to be finite.
    checked: OnceLock<()>,
}

impl<D: Device> Frozen<D> {
    /// The view as a matrix of so many outputs and inputs: its first axis is N, all others together are K.
    ///
    /// Where weights are resident, they are read, checked and packed here; where they are streamed, nothing is read before
    /// [`check`](Self::check). With factors to be merged, `scale up down` is added to the values, in f32.
    ///
    /// # Errors
    /// If the view has other axes; if a value that is read is not finite; if the device has no room.
    pub fn new(
        device: &D,
        view: TensorView,
        (outputs, inputs): (usize, usize),
        loading: Loading,
        merged: Option<FrozenFactors>,
    ) -> Result<Self> {
        view.expect_matrix(outputs, inputs)?;
        let (forward, backward, checked) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let device = device.clone();
        let frozen = Self { device, view, inputs, loading, merged, forward, backward, checked };
        if loading.packing == Packing::Resident {
            frozen.check()?;
            let _ = frozen.forward.set(frozen.pack(Direction::Forward)?);
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

    /// Use it for products of one direction.
    ///
    /// # Errors
    /// If the device has no room for it.
    pub fn with<T>(&self, direction: Direction, run: impl FnOnce(&D::Matrix) -> T) -> Result<T> {
        let resident = match direction {
            Direction::Backward if !D::ONE_COPY => &self.backward,
            _ => &self.forward,
        };
        match self.loading.packing {
            Packing::Resident => {
                if let Some(packed) = resident.get() {
                    return Ok(run(packed));
                }
                // Not `get_or_init`: packing uses the pool, and a thread of the pool that waits there may take up another
                // pass, which comes here, too. Two that come at once pack the same values twice.
                let packed = self.pack(direction)?;
                Ok(run(resident.get_or_init(|| packed)))
            }
            Packing::Streamed => Ok(run(&self.pack(direction)?)),
        }
    }

    fn pack(&self, direction: Direction) -> Result<D::Matrix> {
        let (rows, columns) = (self.outputs(), self.inputs);
        let merge = self.merged.as_ref().map(|FrozenFactors { down, up, scale }| {
            let rank = down.shape().first().copied().unwrap_or(0);
            Merge { down: matrix(down, (rank, columns)), up: matrix(up, (rows, rank)), scale: *scale }
        });
        let passing = self.loading.packing == Packing::Streamed;
        self.device.frozen(
            &matrix(&self.view, (rows, columns)),
            merge.as_ref(),
            direction,
            self.loading.precision,
            passing,
        )
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
pub struct FrozenBranch<D: Device> {
    /// `[R, K]`; linears with one input may share it.
    pub down: Arc<Frozen<D>>,
    /// `[N, R]`.
    pub up: Frozen<D>,
    /// What the branch is multiplied by.
    pub scale: f32,
}
