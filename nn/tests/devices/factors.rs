//! Products whose one side is an adapter's rank, in rows that stand whole sixteen bytes apart: a GPU has kernels of its own for them in bf16.
//!
//! `M` rows, `K` inputs, `N` outputs, `R` rank.

use prefgraph_nn::device::{Device, Direction, Extra, Gemm, Matrix, Precision, Queue, View, ViewMut};

use crate::{
    agree,
    cases::numbers::{activations, exact},
    devices,
};

/// `out = h factor`, beside a frozen weight of zeros. Between rows of `out` there are values that must stay.
fn expanded<D: Device>(
    device: &D,
    precision: Precision,
    (m, n, r): (usize, usize, usize),
    direction: Direction,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let k = 8;
    let shape = |inputs| match direction {
        Direction::Forward => (n, inputs),
        Direction::Backward => (inputs, n),
    };
    let (rows, columns) = shape(k);
    let zeros = vec![0.0; rows * columns];
    let weight =
        device.frozen(&Matrix::of(&zeros, rows, columns), None, direction, precision, false).unwrap();
    let (rows, columns) = shape(r);
    let factor = exact::<D>(&queue, rows * columns, 1);
    let factor = queue.factor(&[View::new(&factor, columns)], rows, columns, 0.5, direction);
    let (x, h) = (activations::<D>(&queue, m * k, 2), activations::<D>(&queue, (m + 1) * (r + 8), 3));
    let mut out = activations::<D>(&queue, (m + 1) * (n + 8), 4);
    queue.gemm(Gemm {
        m,
        x: View::new(&x, k).into(),
        weight: &weight,
        direction,
        extra: Some(Extra { x: View::new(&h, r + 8).skip(8).into(), weight: &factor, direction }),
        bias: None,
        accumulate: false,
        out: ViewMut::new(&mut out, n + 8).skip(8),
    });
    vec![queue.download(&out, 0, (m + 1) * (n + 8)).unwrap()]
}

/// Sizes on both sides of a block's 64 rows and 128 columns, ranks on both sides of 32 and of 64, the largest, and one that has no kernel.
#[test]
fn branches_alone_agree_in_both_directions_and_stay_in_their_rows() {
    let Some(devices) = devices() else { return };
    for sizes in
        [(1, 8, 8), (64, 128, 32), (65, 136, 40), (130, 264, 24), (200, 384, 64), (7, 120, 16), (9, 32, 72)]
    {
        for direction in [Direction::Forward, Direction::Backward] {
            agree!(devices, [5e-6, 4e-3], expanded(sizes, direction));
        }
    }
}

/// A row's bits depend neither on the number of rows nor on its place among them.
#[test]
fn a_row_of_a_branch_has_the_same_bits_among_few_and_many() {
    let Some((_, cuda)) = devices() else { return };
    for direction in [Direction::Forward, Direction::Backward] {
        let many = expanded(&cuda, Precision::Bf16, (130, 136, 32), direction).remove(0);
        for rows in [1, 63, 65] {
            let few = expanded(&cuda, Precision::Bf16, (rows, 136, 32), direction).remove(0);
            let whole = rows * (136 + 8);
            assert_eq!(few[..whole], many[..whole], "{rows} rows, {direction:?}");
        }
    }
}
