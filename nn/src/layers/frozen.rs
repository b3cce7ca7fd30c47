//! Frozen matrices of a mapped file, packed for the kernels.
//!
//! `N` outputs, `K` inputs, `R` rank of a frozen branch.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    device::{ConvWindow, Device, Direction, Matrix, Merge, Passing, Precision, Queue},
    error::Result,
    files::TensorView,
    lora::FrozenFactors,
    once::get_or_try_init,
};

/// Where the packed form of a frozen matrix lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// In memory, from the first use on: fastest, and a copy of every weight for each direction.
    #[default]
    Resident,
    /// Nowhere: every product packs what it needs from the mapped file and gives the memory back. Weights take no memory but
    /// the system's file cache. On a GPU a window of a few blocks moves along with the pass.
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

/// In which order a row of the file has the inputs of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As the product reads them.
    Same,
    /// So many taps within channels, where the product reads channels within taps. Where it is `turned`, the backward is a
    /// convolution, too, with a row for each tap, in the reverse order, and output channel.
    Taps { taps: usize, turned: bool },
}

/// A frozen matrix `[N, K]`.
#[derive(Debug)]
pub struct Frozen<D: Device> {
    /// No other one of the process has it.
    id: u64,
    device: D,
    view: TensorView,
    inputs: usize,
    order: Order,
    loading: Loading,
    /// Added to the values when they are packed.
    merged: Option<FrozenFactors>,
    forward: OnceLock<D::Matrix>,
    backward: OnceLock<D::Matrix>,
    /// Set once the values are known to be finite.
    checked: OnceLock<()>,
}

/// The number of the next frozen matrix.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

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
        Self::build(device, view, (outputs, inputs), Order::Same, loading, merged)
    }

    /// The weight `[N, C, S, S]` of a convolution as the matrix that its windows are multiplied with: a row is `[S S, C]`, so
    /// that a window is whole pixels. N is `outputs`, C `channels`, S the side of the window.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_windows(
        device: &D,
        view: TensorView,
        (outputs, channels): (usize, usize),
        window: ConvWindow,
        loading: Loading,
    ) -> Result<Self> {
        let taps = window.side() * window.side();
        let turned = D::READS_WINDOWS && window.is_its_own_adjoint();
        let order = if taps == 1 { Order::Same } else { Order::Taps { taps, turned } };
        Self::build(device, view, (outputs, taps * channels), order, loading, None)
    }

    fn build(
        device: &D,
        view: TensorView,
        (outputs, inputs): (usize, usize),
        order: Order,
        loading: Loading,
        merged: Option<FrozenFactors>,
    ) -> Result<Self> {
        view.expect_matrix(outputs, inputs)?;
        let (forward, backward, checked) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let (id, device) = (NEXT_ID.fetch_add(1, Ordering::Relaxed), device.clone());
        let frozen = Self { id, device, view, inputs, order, loading, merged, forward, backward, checked };
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

    /// Pixels of a window, whose inputs the product reads one after the other; 1 where rows are as in the file.
    pub fn taps(&self) -> usize {
        match self.order {
            Order::Same => 1,
            Order::Taps { taps, .. } => taps,
        }
    }

    /// Is the backward a product with the windows of the cotangent?
    pub fn is_turned(&self) -> bool {
        matches!(self.order, Order::Taps { turned: true, .. })
    }

    /// The precision of its products.
    pub fn precision(&self) -> Precision {
        self.loading.precision
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

    /// As a device brings it ahead of its use, where it is streamed as the file has it.
    pub fn passing(&self) -> Option<Passing<'_>> {
        let as_it_is = self.order == Order::Same && self.merged.is_none();
        (self.loading.packing == Packing::Streamed && as_it_is)
            .then(|| Passing { id: self.id, values: matrix(&self.view, (self.outputs(), self.inputs)) })
    }

    /// Use it for products of one direction that `run` asks of the queue.
    ///
    /// # Errors
    /// If the device has no room for it.
    pub fn with<T>(
        &self,
        queue: &D::Queue,
        direction: Direction,
        run: impl FnOnce(&D::Matrix) -> T,
    ) -> Result<T> {
        let resident = match direction {
            Direction::Backward if !D::ONE_COPY => &self.backward,
            _ => &self.forward,
        };
        match self.loading.packing {
            Packing::Resident => get_or_try_init(resident, || self.pack(direction)).map(run),
            Packing::Streamed => match self.passing() {
                Some(matrix) => queue.with_passing(&matrix, || self.pack(direction), run),
                None => Ok(run(&self.pack(direction)?)),
            },
        }
    }

    fn pack(&self, direction: Direction) -> Result<D::Matrix> {
        let (rows, columns) = (self.outputs(), self.inputs);
        let merge = self.merged.as_ref().map(|FrozenFactors { down, up, scale }| {
            let rank = down.shape().first().copied().unwrap_or(0);
            Merge { down: matrix(down, (rank, columns)), up: matrix(up, (rows, rank)), scale: *scale }
        });
        let passing = self.loading.packing == Packing::Streamed;
        let ordered;
        let values = match self.order {
            Order::Same => matrix(&self.view, (rows, columns)),
            Order::Taps { taps, turned: true } if direction == Direction::Backward => {
                ordered = turned(&self.view.read(), taps, (rows, columns / taps));
                Matrix::of(&ordered, taps * rows, columns / taps)
            }
            Order::Taps { taps, .. } => {
                ordered = taps_first(&self.view.read(), taps, columns / taps);
                Matrix::of(&ordered, rows, columns)
            }
        };
        self.device.frozen(&values, merge.as_ref(), direction, self.loading.precision, passing)
    }
}

/// Rows `[channels, taps]` as rows `[taps, channels]`.
fn taps_first(stored: &[f32], taps: usize, channels: usize) -> Vec<f32> {
    let mut ordered = vec![0.0; stored.len()];
    let row = (taps * channels).max(1);
    for (to, from) in ordered.chunks_exact_mut(row).zip(stored.chunks_exact(row)) {
        for (channel, from) in from.chunks_exact(taps).enumerate() {
            for (tap, value) in from.iter().enumerate() {
                to[tap * channels + channel] = *value;
            }
        }
    }
    ordered
}

/// `[outputs, channels, taps]` as `[taps, outputs, channels]`, the last tap first.
fn turned(stored: &[f32], taps: usize, (outputs, channels): (usize, usize)) -> Vec<f32> {
    let mut ordered = vec![0.0; stored.len()];
    let each = (outputs * channels).max(1);
    for (tap, to) in ordered.chunks_exact_mut(each).enumerate() {
        for (to, from) in to.iter_mut().zip(stored[taps - 1 - tap..].iter().step_by(taps)) {
            *to = *from;
        }
    }
    ordered
}

/// A view as the kernels read it, without a copy.
fn matrix(view: &TensorView, (rows, columns): (usize, usize)) -> Matrix<'_> {
    Matrix::new(view.pieces().map(|piece| piece.values()).collect(), rows, columns)
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
