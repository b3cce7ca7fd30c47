//! Products with frozen matrices and with an adapter's factors.
//!
//! `M` rows, `K` inputs, `N` outputs, `R` rank.

use prefgraph_nn::device::{
    Device, Direction, Extra, FactorParts, Gemm, GemmTn, Kind, Left, Matrix, Merge, Precision, Queue, View,
    ViewMut,
};

use crate::{
    agree,
    cases::{
        Product, SMALL,
        numbers::{activations, exact, numbers},
    },
    devices,
};

/// Products that have a low-rank branch.
fn with_branches() -> impl Iterator<Item = Product> {
    SMALL.products.iter().copied().filter(|p| p.r > 0)
}

/// `out = x weight`
fn plain<'a, D: Device>(
    m: usize,
    x: impl Into<Left<'a, D>>,
    (weight, direction): (&'a D::Matrix, Direction),
    out: ViewMut<'a, D>,
) -> Gemm<'a, D> {
    Gemm { m, x: x.into(), weight, direction, extra: None, bias: None, accumulate: false, out }
}

/// Both directions of a linear with its low-rank branch, in rows with gaps.
fn linear<D: Device>(
    device: &D,
    precision: Precision,
    Product { m, k, n, r }: Product,
    into_exact: bool,
    with_bias: bool,
    fresh: bool,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let weight = numbers(n * k, 1);
    let adapter = exact::<D>(&queue, r * (n + k), 2);
    let (a, b) = (View::new(&adapter, 0), View::new(&adapter, 0).skip(r * k));
    let bias = device.upload(&numbers(n, 3), Kind::Activation, precision).unwrap();
    let mut results = Vec::new();
    for direction in [Direction::Forward, Direction::Backward] {
        let frozen = device.frozen(&Matrix::of(&weight, n, k), None, direction, precision, false).unwrap();
        let first = queue.factor(&[a], r, k, 1.0, direction);
        let second = queue.factor(&[b], n, r, 0.5, direction);
        let (inputs, outputs) = if direction == Direction::Forward { (k, n) } else { (n, k) };
        let (into, from) =
            if direction == Direction::Forward { (&first, &second) } else { (&second, &first) };
        let x = activations::<D>(&queue, m * (inputs + 8), 4);
        let x = View::new(&x, inputs + 8);
        let mut h = queue.zeros(m * r, Kind::Activation);
        queue.gemm(plain(m, x, (into, direction), ViewMut::new(&mut h, r)));
        let kind = if into_exact { Kind::Exact } else { Kind::Activation };
        let mut y = queue.upload(&numbers(m * (outputs + 4), 5), kind);
        let extra = Extra { x: View::new(&h, r).into(), weight: from, direction };
        let biased = with_bias && direction == Direction::Forward;
        queue.gemm(Gemm {
            extra: Some(extra),
            bias: biased.then_some(&bias),
            accumulate: !biased && !fresh,
            ..plain(m, x, (&frozen, direction), ViewMut::new(&mut y, outputs + 4))
        });
        results.push(queue.download(&h, 0, m * r).unwrap());
        results.push(queue.download(&y, 0, m * (outputs + 4)).unwrap());
    }
    results
}

#[test]
fn a_linear_with_its_branch_agrees_in_both_directions() {
    let Some(devices) = devices() else { return };
    for sizes in with_branches() {
        for (into_exact, with_bias) in [(false, true), (true, true), (false, false), (true, false)] {
            for fresh in [false, true] {
                agree!(devices, [5e-6, 1.2e-2], linear(sizes, into_exact, with_bias, fresh));
            }
        }
    }
    // Few columns of long rows, which are summed in parts.
    let narrow = Product { m: 5, k: 3080, n: 40, r: 3 };
    agree!(devices, [1e-5, 1.2e-2], linear(narrow, false, false, true));
}

/// `x A^T` of an adapter, and its cotangent's way back, with long rows: `K` columns of `x`, `R` of the result.
fn narrow<D: Device>(device: &D, precision: Precision, (m, k, r): (usize, usize, usize)) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let x = activations::<D>(&queue, m * (k + 8), 1);
    let (down, up) = (exact::<D>(&queue, r * k, 2), exact::<D>(&queue, k * r, 3));
    let factors = [(&down, (r, k), Direction::Forward), (&up, (k, r), Direction::Backward)];
    let products = factors.map(|(values, (rows, columns), direction)| {
        let factor = queue.factor(&[View::new(values, columns)], rows, columns, 0.5, direction);
        let mut y = queue.zeros(m * r, Kind::Activation);
        let x = View::new(&x, k + 8).skip(8);
        queue.gemm(plain(m, x, (&factor, direction), ViewMut::new(&mut y, r)));
        queue.download(&y, 0, m * r).unwrap()
    });
    products.to_vec()
}

/// A GPU sums them in parts: one is enough, two and five of one length, a last one that is shorter, columns that are no multiple of what a
/// thread reads.
#[test]
fn products_of_long_rows_with_few_columns_agree() {
    let Some(devices) = devices() else { return };
    for sizes in [(5, 3072, 8), (3, 6144, 16), (7, 15360, 32), (19, 6216, 24), (4, 6144, 3)] {
        agree!(devices, [5e-6, 1.2e-2], narrow(sizes));
    }
}

/// Products with factors of an adapter's values: on a GPU with those that are made at once, elsewhere one by one.
fn with_factors<D: Device>(device: &D, precision: Precision) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let values = exact::<D>(&queue, 4004 + 130 * 517, 1);
    let part = |starts: &[usize], rows, columns, scale| FactorParts {
        starts: starts.to_vec(),
        rows,
        columns,
        scale,
    };
    // At even and at odd places, of whole sixteen bytes and not, one below the other and alone.
    let wanted = [
        part(&[0, 640, 64], 8, 8, 1.0),
        part(&[3], 5, 7, 0.5),
        part(&[1000, 701], 3, 16, 1.0),
        part(&[16], 120, 33, 0.25),
        part(&[8], 1, 1, 2.0),
        // Longer than all blocks take at once, and no multiple of that.
        part(&[4004], 130, 517, 0.5),
    ];
    assert_eq!(
        queue.factors(&values, &wanted).is_some(),
        D::ONE_COPY,
        "factors for both directions are made at once"
    );
    let mut results = Vec::new();
    for direction in [Direction::Forward, Direction::Backward] {
        let one_by_one = || {
            let factor = |w: &FactorParts| {
                let parts: Vec<_> = w.starts.iter().map(|s| View::new(&values, 0).skip(*s)).collect();
                queue.factor(&parts, w.rows, w.columns, w.scale, direction)
            };
            wanted.iter().map(factor).collect()
        };
        let factors = queue.factors(&values, &wanted).unwrap_or_else(one_by_one);
        for (factor, w) in factors.iter().zip(&wanted) {
            let rows = w.rows * w.starts.len();
            let (k, n) = if direction == Direction::Forward { (w.columns, rows) } else { (rows, w.columns) };
            let x = activations::<D>(&queue, 4 * k, 2);
            let mut y = queue.zeros(4 * n, Kind::Exact);
            queue.gemm(plain(4, View::new(&x, k), (factor, direction), ViewMut::new(&mut y, n)));
            results.push(queue.download(&y, 0, 4 * n).unwrap());
        }
    }
    results
}

#[test]
fn factors_that_are_made_at_once_agree_with_those_made_one_by_one() {
    let Some(devices) = devices() else { return };
    agree!(devices, [5e-6, 5e-6], with_factors());
}

fn factor_gradient<D: Device>(
    device: &D,
    precision: Precision,
    (m, p, q): (usize, usize, usize),
    from_exact: bool,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let kind = if from_exact { Kind::Exact } else { Kind::Activation };
    let a = queue.upload(&numbers(m * p, 1), kind);
    let b = activations::<D>(&queue, m * (q + 8), 2);
    let mut out = exact::<D>(&queue, p * q + 3, 3);
    let (a, b) = (View::new(&a, p), View::new(&b, q + 8).skip(8));
    // Begins at an odd place, as factors in the values of an adapter do.
    queue.gemm_tn(GemmTn { m, p, q, a, b, scale: 0.5, out: ViewMut::new(&mut out, q).skip(3) });
    vec![queue.download(&out, 0, p * q + 3).unwrap()]
}

#[test]
fn gradients_of_factors_agree_and_stay_in_their_place() {
    let Some(devices) = devices() else { return };
    // The last one has few columns and so many rows that a GPU splits the sum.
    for sizes in SMALL.factor_gradients.iter().copied().chain([(4100, 16, 40)]) {
        for from_exact in [false, true] {
            agree!(devices, [5e-6, 5e-6], factor_gradient(sizes, from_exact));
        }
    }
}

fn merged<D: Device>(device: &D, precision: Precision, Product { m, k, n, r }: Product) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let (weight, down, up) = (numbers(n * k, 1), numbers(r * k, 2), numbers(n * r, 3));
    let merge = Merge { down: Matrix::of(&down, r, k), up: Matrix::of(&up, n, r), scale: 0.25 };
    let direction = Direction::Forward;
    let frozen =
        device.frozen(&Matrix::of(&weight, n, k), Some(&merge), direction, precision, false).unwrap();
    let x = activations::<D>(&queue, m * k, 4);
    let mut y = queue.zeros(m * n, Kind::Activation);
    queue.gemm(plain(m, View::new(&x, k), (&frozen, direction), ViewMut::new(&mut y, n)));
    vec![queue.download(&y, 0, m * n).unwrap()]
}

#[test]
fn merged_weights_agree() {
    let Some(devices) = devices() else { return };
    for sizes in with_branches() {
        agree!(devices, [5e-6, 1.5e-2], merged(sizes));
    }
}

/// A policy whose B is still zero predicts what the reference predicts, to the bit.
#[test]
fn a_branch_of_zeros_changes_no_bit_of_a_product() {
    let Some((_, cuda)) = devices() else { return };
    for precision in crate::PRECISIONS {
        let queue = cuda.queue(precision).unwrap();
        for Product { m, k, n, r } in with_branches() {
            let weight = numbers(n * k, 1);
            let frozen =
                cuda.frozen(&Matrix::of(&weight, n, k), None, Direction::Forward, precision, false).unwrap();
            let bias = cuda.upload(&numbers(n, 3), Kind::Activation, precision).unwrap();
            let zeros = queue.zeros(n * r, Kind::Exact);
            let up = queue.factor(&[View::new(&zeros, 0)], n, r, 1.0, Direction::Forward);
            let x = activations::<prefgraph_nn::cuda::Cuda>(&queue, m * k, 2);
            let h = activations::<prefgraph_nn::cuda::Cuda>(&queue, m * r, 4);
            let result = |branch: bool, biased: bool| {
                let mut y = queue.take(m * n, Kind::Activation);
                let x_of_branch = View::new(&h, r).into();
                queue.gemm(Gemm {
                    extra: branch.then_some(Extra {
                        x: x_of_branch,
                        weight: &up,
                        direction: Direction::Forward,
                    }),
                    bias: biased.then_some(&bias),
                    ..plain(m, View::new(&x, k), (&frozen, Direction::Forward), ViewMut::new(&mut y, n))
                });
                queue.download(&y, 0, m * n).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for biased in [false, true] {
                assert_eq!(
                    result(true, biased),
                    result(false, biased),
                    "{precision:?} {m}x{k}x{n}, bias: {biased}"
                );
            }
        }
    }
}

/// A row's bits are the same in every batch: policy and reference, winner and loser differ by nothing else.
#[test]
fn a_row_of_a_product_has_the_same_bits_whatever_the_number_of_rows() {
    let Some((_, cuda)) = devices() else { return };
    for precision in crate::PRECISIONS {
        let queue = cuda.queue(precision).unwrap();
        let (k, n) = (96, 80);
        let weight = numbers(n * k, 1);
        let frozen =
            cuda.frozen(&Matrix::of(&weight, n, k), None, Direction::Forward, precision, false).unwrap();
        let rows = |m: usize, of_samples: bool| {
            let x = activations::<prefgraph_nn::cuda::Cuda>(&queue, m * k, 2);
            let mut y = queue.zeros(m * n, Kind::Activation);
            let call = plain(m, View::new(&x, k), (&frozen, Direction::Forward), ViewMut::new(&mut y, n));
            if of_samples {
                queue.gemm_of_samples(call)
            } else {
                queue.gemm(call)
            }
            queue.download(&y, 0, m * n).unwrap()
        };
        for (of_samples, most, fewer) in
            [(false, 200, &[1, 7, 64, 129][..]), (true, 40, &[1, 2, 3, 4, 7, 8, 9, 16])]
        {
            let many = rows(most, of_samples);
            let same =
                |m: usize| rows(m, of_samples).iter().zip(&many).all(|(a, b)| a.to_bits() == b.to_bits());
            let others: Vec<usize> = fewer.iter().copied().filter(|m| !same(*m)).collect();
            assert!(
                others.is_empty(),
                "{precision:?}, of samples: {of_samples}: {others:?} of {most} rows differ"
            );
        }
    }
}
