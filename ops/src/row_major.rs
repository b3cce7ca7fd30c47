//! The values of a port's tensor, in the order of its axes.
//!
//! An operator in Rust may give a tensor whose memory has another order, or repeats values: dfdx permutes and broadcasts without a copy.
//! Most tensors need neither, and are copied whole: value by value, as dfdx's `as_vec` does it, takes
//! longer than many an operator.

use dfdx::{shapes::HasShape, tensor_ops::ReshapeTo};

use crate::{port::T, shape::Axes};

/// Values in row-major order, whatever the memory's.
pub(crate) trait RowMajor {
    /// All of them.
    fn row_major(&self) -> Vec<f32>;

    /// The same into a slice of their number.
    fn copy_row_major(&self, to: &mut [f32]);
}

impl<S: Axes> RowMajor for T<S> {
    fn row_major(&self) -> Vec<f32> {
        let mut values = vec![0.0; HasShape::shape(self).num_elements()];
        self.copy_row_major(&mut values);
        values
    }

    fn copy_row_major(&self, to: &mut [f32]) {
        // Shares the memory where it has the order already.
        self.clone().contiguous().copy_into(to);
    }
}

#[cfg(test)]
mod tests {
    use dfdx::{
        shapes::{Axes2, Axis},
        tensor::TensorFromVec,
        tensor_ops::{BroadcastTo, PermuteTo},
    };

    use super::*;
    use crate::tensor::host;

    #[test]
    fn values_stand_in_the_order_of_the_axes_whatever_the_memory_has() {
        let plain: T<(usize, usize)> = host().tensor_from_vec(vec![1., 2., 3., 4., 5., 6.], (2, 3));
        assert_eq!(plain.row_major(), [1., 2., 3., 4., 5., 6.]);
        let turned = plain.permute::<(usize, usize), Axes2<1, 0>>();
        assert_eq!(turned.row_major(), [1., 4., 2., 5., 3., 6.]);
        let one: T<(usize,)> = host().tensor_from_vec(vec![7., 8.], (2,));
        let repeated: T<(usize, usize)> = one.broadcast_like::<_, Axis<1>>(&(2, 3));
        assert_eq!(repeated.row_major(), [7., 7., 7., 8., 8., 8.]);
    }
}
