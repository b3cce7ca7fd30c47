//! AdamW over all values of an adapter, and what is asked of its gradient before.
//!
//! Values, gradients and moments are f32. A sum and a search give the same result in every run.

use super::{CudaQueue, rows::Rows};
use crate::{
    cuda::{
        Cuda,
        launch::{Argument, Grid, float, int},
        modules::Source,
        values::{CudaBuffer, Element},
    },
    device::{Kind, Queue, Step, Update, View, ViewMut},
    error::{Error, Result},
};

/// Values of a part, and threads of a block (`optimizer.cu`).
const PART: usize = 4096;
const THREADS: usize = 256;

/// A block for each of `blocks` parts, with so many bytes of shared memory for each thread.
fn parts_grid(blocks: usize, bytes: usize) -> Grid {
    Grid { blocks: (blocks, 1), threads: THREADS as u32, shared: THREADS * bytes }
}

impl CudaQueue {
    /// An error if rows are not f32.
    fn expect_exact(&self, name: &str, rows: &[Rows]) {
        if rows.iter().any(|r| r.element != Element::F32) {
            self.note::<()>(Err(Error::Internal(format!("{name} takes f32 values only"))));
        }
    }

    /// One update, of `parameters` and both moments in place, as [`crate::cpu::adamw`] makes it.
    ///
    /// # Panics
    /// If a buffer is shorter than `len`, or the update's number is zero.
    pub fn adamw(
        &self,
        update: &Update,
        len: usize,
        (parameters, gradient): (&mut CudaBuffer, &CudaBuffer),
        (first_moment, second_moment): (&mut CudaBuffer, &mut CudaBuffer),
    ) {
        let state = [&*parameters, &*first_moment, &*second_moment];
        self.adamw_into(update, len, gradient, state, state);
    }

    /// The same from values and moments into others, or into the same.
    pub(in crate::cuda) fn adamw_into(
        &self,
        update: &Update,
        len: usize,
        gradient: &CudaBuffer,
        from: [&CudaBuffer; 3],
        to: [&CudaBuffer; 3],
    ) {
        let rows = [&from[..], &[gradient], &to].concat();
        let rows: Vec<Rows> = rows.into_iter().map(|b| Rows::flat(b, len)).collect();
        self.expect_exact("adamw", &rows);
        let Step { factor, keep, step_size, root2, eps, beta1, beta2, rest1, rest2 } = Step::new(update);
        let factors = [factor, keep, step_size, root2, eps, beta1, beta2, rest1, rest2].map(float);
        let pointers: Vec<Argument> = rows.into_iter().map(Rows::argument).collect();
        let arguments = [&pointers[..], &[int(len)], &factors].concat();
        self.launch(Source::Optimizer, "adamw", Grid::threads_for(len), &arguments);
    }

    /// The sum of squares of `len` values, in f64. Waits for it.
    ///
    /// # Errors
    /// If something has failed on this queue.
    pub fn sum_of_squares(&self, x: View<'_, Cuda>, len: usize) -> Result<f64> {
        let (x, parts) = (Rows::of(x, 1, len), len.div_ceil(PART));
        self.expect_exact("sum_of_squares", &[x]);
        // A number of eight bytes takes the place of two values.
        let (sums, total) = (self.take(2 * parts, Kind::Exact), self.take(2, Kind::Exact));
        let [sums, at] = [(&sums, 2 * parts), (&total, 2)].map(|(b, len)| Rows::flat(b, len).argument());
        self.launch(
            Source::Optimizer,
            "squares_of_parts",
            parts_grid(parts, 8),
            &[x.argument(), sums, int(len)],
        );
        self.launch(Source::Optimizer, "sum_of_parts", parts_grid(1, 8), &[sums, at, int(parts)]);
        let halves = self.download(&total, 0, 2)?;
        let [low, high] = [0, 1].map(|i: usize| u64::from(halves[i].to_bits()));
        Ok(f64::from_bits(high << 32 | low))
    }

    /// The place of the first of `len` values that is not finite. Waits for it.
    ///
    /// # Errors
    /// If something has failed on this queue.
    pub fn find_not_finite(&self, x: View<'_, Cuda>, len: usize) -> Result<Option<usize>> {
        let (x, parts) = (Rows::of(x, 1, len), len.div_ceil(PART));
        self.expect_exact("find_not_finite", &[x]);
        let (places, first) = (self.take(parts, Kind::Exact), self.take(1, Kind::Exact));
        let [places, at] = [(&places, parts), (&first, 1)].map(|(b, len)| Rows::flat(b, len).argument());
        self.launch(
            Source::Optimizer,
            "not_finite_of_parts",
            parts_grid(parts, 4),
            &[x.argument(), places, int(len)],
        );
        self.launch(
            Source::Optimizer,
            "first_of_parts",
            parts_grid(1, 4),
            &[places, at, int(parts), int(len)],
        );
        let place = self.download(&first, 0, 1)?[0].to_bits() as usize;
        Ok((place < len).then_some(place))
    }

    /// `to += from` over `len` f32 values: gradients are accumulated with it.
    pub fn add_into(&self, from: View<'_, Cuda>, to: &ViewMut<'_, Cuda>, len: usize) {
        let (from, to) = (Rows::of(from, 1, len), Rows::of_mut(to, 1, len));
        self.expect_exact("add_into", &[from, to]);
        self.scaled_sum(1.0, from, to, len);
    }
}
