//! A GPU as a [`Device`].

use std::sync::Arc;

use super::{
    context::{Cuda, Urgency},
    queue::CudaQueue,
    values::{CudaBuffer, CudaMatrix, Element, MatrixMemory},
    window,
};
use crate::{
    device::{Device, Direction, Kind, Matrix, Merge, Precision},
    error::Result,
};

impl Device for Cuda {
    type Buffer = CudaBuffer;
    type Matrix = CudaMatrix;
    type Queue = CudaQueue;

    const ONE_COPY: bool = true;
    const READS_WINDOWS: bool = false;
    const BLOCKS_AHEAD: usize = window::AHEAD;

    fn name(&self) -> String {
        format!("cuda:{}", self.0.info.ordinal)
    }

    fn queue(&self, precision: Precision) -> Result<CudaQueue> {
        CudaQueue::new(self.clone(), precision, Urgency::Usual)
    }

    fn urgent_queue(&self, precision: Precision) -> Result<CudaQueue> {
        CudaQueue::new(self.clone(), precision, Urgency::First)
    }

    /// On the caller's own thread: it only asks for work.
    fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        body()
    }

    fn frozen(
        &self,
        rows: &Matrix<'_>,
        merge: Option<&Merge<'_>>,
        _: Direction,
        precision: Precision,
        _: bool,
    ) -> Result<CudaMatrix> {
        let (n, k) = (rows.rows(), rows.columns());
        let element = Element::of(Kind::Activation, precision);
        let stored = rows.parts().iter().map(|part| element.stored(part)).collect::<Option<Vec<_>>>();
        let memory = match stored.filter(|_| merge.is_none()) {
            Some(parts) => self.0.write(&parts)?,
            None => {
                let mut values = vec![0.0; n * k];
                rows.read_all(&mut values);
                if let Some(merge) = merge {
                    add_merged(&mut values, merge, k);
                }
                self.0.write(&[&element.bytes(&values)])?
            }
        };
        Ok(CudaMatrix { memory: MatrixMemory::Own(Arc::new(memory)), rows: n, columns: k, element })
    }

    fn upload(&self, values: &[f32], kind: Kind, precision: Precision) -> Result<CudaBuffer> {
        let element = Element::of(kind, precision);
        let memory = self.0.write(&[&element.bytes(values)])?;
        Ok(CudaBuffer { memory: Some(Arc::new(memory)), len: values.len(), element })
    }
}

/// Adds `scale up down` to `[N, K]`, on the host: weights are merged once, when they are read.
fn add_merged(values: &mut [f32], merge: &Merge<'_>, k: usize) {
    let rank = merge.down.rows();
    let mut down = vec![0.0; rank * k];
    merge.down.read_all(&mut down);
    let mut up = vec![0.0; rank];
    for (i, row) in values.chunks_exact_mut(k.max(1)).enumerate() {
        merge.up.read(i, 0, &mut up);
        for (factor, down) in up.iter().zip(down.chunks_exact(k.max(1))) {
            let factor = factor * merge.scale;
            for (value, d) in row.iter_mut().zip(down) {
                *value = factor.mul_add(*d, *value);
            }
        }
    }
}
