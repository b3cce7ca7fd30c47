//! The processor as a [`Device`].

use super::{Buffer, Cpu, CpuQueue, Packed};
use crate::{
    cpu,
    device::{Device, Direction, Kind, Matrix, Merge, Precision},
    error::Result,
};

impl Device for Cpu {
    type Buffer = Buffer;
    type Matrix = Packed;
    type Queue = CpuQueue;

    const ONE_COPY: bool = false;
    const READS_WINDOWS: bool = true;

    fn name(&self) -> String {
        "cpu".into()
    }

    fn queue(&self, precision: Precision) -> Result<CpuQueue> {
        Ok(CpuQueue::new(self.clone(), precision))
    }

    /// On the pool's own threads, so that kernels need not change threads one by one.
    fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.pool().install(body)
    }

    fn frozen(
        &self,
        rows: &Matrix<'_>,
        merge: Option<&Merge<'_>>,
        direction: Direction,
        precision: Precision,
        passing: bool,
    ) -> Result<Packed> {
        let Some(Merge { down, up, scale }) = merge else {
            return Ok(self.pack(rows, direction, precision, passing));
        };
        let (n, k) = (rows.rows(), rows.columns());
        let mut values = self.buffers().take(n * k);
        rows.read_all(&mut values);
        let rank = down.rows();
        let mut scaled = self.buffers().take(n * rank);
        up.read_all(&mut scaled);
        scaled.iter_mut().for_each(|v| *v *= scale);
        let call = cpu::Gemm {
            m: n,
            x: cpu::Left::Rows(&scaled, rank),
            weight: &self.pack(down, Direction::Backward, Precision::F32, true),
            extra: None,
            bias: None,
            accumulate: true,
            out: &mut values,
            out_stride: k,
        };
        cpu::gemm(self, call);
        Ok(self.pack(&Matrix::of(&values, n, k), direction, precision, passing))
    }

    /// Not from the pool: it counts what passes hold, and these values belong to the model.
    fn upload(&self, values: &[f32], _: Kind, _: Precision) -> Result<Buffer> {
        Ok(Buffer::owned(values.to_vec()))
    }
}

impl Cpu {
    /// A matrix packed for a direction; the memory of one that is `passing` is kept for the next.
    pub(super) fn pack(
        &self,
        rows: &Matrix<'_>,
        direction: Direction,
        precision: Precision,
        passing: bool,
    ) -> Packed {
        let packed = match direction {
            Direction::Forward => Packed::from_weight(self, precision, rows),
            Direction::Backward => Packed::from_matrix(self, precision, rows),
        };
        if passing { packed.passing(self) } else { packed }
    }
}
