//! Values that outlive a pass, in a GPU's memory.

use std::{any::Any, sync::Arc};

use super::{Cuda, CudaBuffer, CudaQueue};
use crate::{
    device::{Device, Kind, Precision, Queue, Remote, Update, View, ViewMut},
    error::{Error, Result},
};

/// f32 values on a GPU. No work on them is under way, so that every queue may use them.
#[derive(Debug)]
pub(super) struct CudaVec {
    cuda: Cuda,
    buffer: CudaBuffer,
    len: usize,
}

impl CudaVec {
    /// The first `len` values of a buffer that is complete.
    pub fn new(cuda: Cuda, buffer: CudaBuffer, len: usize) -> Self {
        Self { cuda, buffer, len }
    }

    /// These values, if they are on this GPU.
    pub fn on<'a>(cuda: &Cuda, values: &'a dyn Remote) -> Option<&'a Self> {
        let found = (values as &dyn Any).downcast_ref::<Self>()?;
        found.cuda.is(cuda).then_some(found)
    }

    /// Where the values are.
    pub fn buffer(&self) -> &CudaBuffer {
        &self.buffer
    }

    fn view(&self) -> View<'_, Cuda> {
        View::new(&self.buffer, self.len)
    }

    /// The buffer of other values that take part in an operation.
    fn partner<'a>(&self, other: &'a dyn Remote) -> Result<&'a CudaBuffer> {
        match Self::on(&self.cuda, other) {
            Some(other) if other.len == self.len => Ok(&other.buffer),
            Some(other) => Err(Error::shape("values on the GPU", self.len, other.len)),
            None => Err(elsewhere()),
        }
    }
}

/// Ask a GPU for work, and wait until it is done: before anything else, since a step waits, too.
fn work<T>(cuda: &Cuda, work: impl FnOnce(&CudaQueue) -> Result<T>) -> Result<T> {
    let queue = cuda.urgent_queue(Precision::F32)?;
    let result = work(&queue)?;
    queue.finish()?;
    Ok(result)
}

fn elsewhere() -> Error {
    Error::Internal("values of two devices in one operation".into())
}

impl Remote for CudaVec {
    fn len(&self) -> usize {
        self.len
    }

    fn read(&self) -> Result<Vec<f32>> {
        work(&self.cuda, |queue| queue.download(&self.buffer, 0, self.len))
    }

    fn copy(&self) -> Result<Arc<dyn Remote>> {
        let buffer = work(&self.cuda, |queue| Ok(queue.copy(self.view(), self.len, Kind::Exact)))?;
        Ok(Arc::new(Self::new(self.cuda.clone(), buffer, self.len)))
    }

    fn beside(&self, values: &[f32]) -> Result<Arc<dyn Remote>> {
        let buffer = work(&self.cuda, |queue| Ok(queue.upload(values, Kind::Exact)))?;
        Ok(Arc::new(Self::new(self.cuda.clone(), buffer, values.len())))
    }

    fn is_shared(&self) -> bool {
        self.buffer.is_shared()
    }

    fn is_beside(&self, other: &dyn Remote) -> bool {
        Self::on(&self.cuda, other).is_some()
    }

    fn sum_of_squares(&self) -> Result<f64> {
        work(&self.cuda, |queue| queue.sum_of_squares(self.view(), self.len))
    }

    fn find_not_finite(&self) -> Result<Option<usize>> {
        work(&self.cuda, |queue| queue.find_not_finite(self.view(), self.len))
    }

    fn add(&mut self, other: &dyn Remote) -> Result<()> {
        let (other, len) = (self.partner(other)?, self.len);
        let to = ViewMut::new(&mut self.buffer, len);
        work(&self.cuda, |queue| {
            queue.add_into(View::new(other, len), &to, len);
            Ok(())
        })
    }

    fn scale(&mut self, factor: f32) -> Result<()> {
        let to = ViewMut::new(&mut self.buffer, self.len);
        work(&self.cuda, |queue| {
            queue.scale(factor, to, self.len);
            Ok(())
        })
    }

    fn adamw(&self, update: &Update, mut state: [&mut Arc<dyn Remote>; 3]) -> Result<()> {
        // What others hold stays as it is: the new values are written beside it, which costs no copy.
        let beside = work(&self.cuda, |queue| {
            let beside = state.each_mut().map(|values| {
                let shared = Arc::get_mut(values).is_none_or(|own| own.is_shared());
                shared.then(|| queue.take(self.len, Kind::Exact))
            });
            let [values, first, second] = state.each_ref().map(|values| self.partner(&***values));
            let from = [values?, first?, second?];
            let to = [0, 1, 2].map(|i: usize| beside[i].as_ref().unwrap_or(from[i]));
            queue.adamw_into(update, self.len, &self.buffer, from, to);
            Ok(beside)
        })?;
        for (values, new) in state.into_iter().zip(beside) {
            if let Some(buffer) = new {
                *values = Arc::new(Self::new(self.cuda.clone(), buffer, self.len));
            }
        }
        Ok(())
    }
}
