//! Products with frozen weights and with an adapter's factors, in both directions.

use prefgraph_nn::{
    device::{Direction, Extra, Gemm, GemmTn, Kind, Queue, View, ViewMut},
    error::Result,
};

use crate::{
    cases::{Product, Shapes},
    place::Place,
    table::{Table, Work},
};

pub fn run<D: Place>(table: &Table<D>, shapes: &Shapes) -> Result<()> {
    for &product in shapes.products {
        for direction in [Direction::Forward, Direction::Backward] {
            gemm(table, product, direction)?;
        }
        // `x A^T` of an adapter: few columns, so that reading `x` is nearly all of it.
        if product.r > 0 {
            gemm(table, Product { n: product.r, r: 0, ..product }, Direction::Forward)?;
        }
    }
    if let Some(product) = shapes.products.first() {
        modulation(table, product.k)?;
    }
    for &sizes in shapes.factor_gradients {
        gemm_tn(table, sizes)?;
    }
    Ok(())
}

fn gemm<D: Place>(table: &Table<D>, Product { m, k, n, r }: Product, direction: Direction) -> Result<()> {
    let (inputs, outputs) = if direction == Direction::Forward { (k, n) } else { (n, k) };
    let weight = table.frozen(n, k, direction)?;
    let (x, h) = (table.activations(m * inputs, 2), table.activations(m * r, 3));
    let up = table.exact(outputs * r, 4);
    let shape = if direction == Direction::Forward { (outputs, r) } else { (r, outputs) };
    let up = table.queue.factor(&[View::new(&up, 0)], shape.0, shape.1, 1.0, direction);
    let mut out = table.queue.take(m * outputs, Kind::Activation);
    let ranks: &[usize] = if r > 0 { &[0, r] } else { &[0] };
    for &rank in ranks {
        let bytes = table.bytes(m * (inputs + outputs) + inputs * outputs + rank * (m + outputs), 0);
        let work = Work { bytes, flops: 2 * m * outputs * (inputs + rank) };
        let name = format!("gemm {direction:?}{}", if rank > 0 { " with a branch" } else { "" });
        table.row(&name, &format!("{m}x{inputs}x{outputs} rank {rank}"), work, |queue| {
            queue.gemm(Gemm {
                m,
                x: View::new(&x, inputs).into(),
                weight: &weight,
                direction,
                extra: (rank > 0).then_some(Extra { x: View::new(&h, r).into(), weight: &up, direction }),
                bias: None,
                accumulate: false,
                out: ViewMut::new(&mut out, outputs),
            });
        })?;
    }
    Ok(())
}

/// Shifts, scales and gates of a block with two streams, of a winner and a loser.
fn modulation<D: Place>(table: &Table<D>, width: usize) -> Result<()> {
    let (m, n) = (2, 6 * width);
    let weight = table.frozen(n, width, Direction::Forward)?;
    let x = table.activations(m * width, 2);
    let mut out = table.queue.take(m * n, Kind::Activation);
    for of_samples in [false, true] {
        let work = Work { bytes: table.bytes(m * (width + n) + n * width, 0), flops: 2 * m * n * width };
        let name = if of_samples { "gemm_of_samples" } else { "gemm Forward" };
        table.row(name, &format!("{m}x{width}x{n} rank 0"), work, |queue| {
            let call = Gemm {
                m,
                x: View::new(&x, width).into(),
                weight: &weight,
                direction: Direction::Forward,
                extra: None,
                bias: None,
                accumulate: false,
                out: ViewMut::new(&mut out, n),
            };
            if of_samples { queue.gemm_of_samples(call) } else { queue.gemm(call) }
        })?;
    }
    Ok(())
}

fn gemm_tn<D: Place>(table: &Table<D>, (m, p, q): (usize, usize, usize)) -> Result<()> {
    let (a, b) = (table.activations(m * p, 1), table.activations(m * q, 2));
    let mut out = table.queue.take(p * q, Kind::Exact);
    let work = Work { bytes: table.bytes(m * (p + q), p * q), flops: 2 * m * p * q };
    table.row("gemm_tn", &format!("{m}: {p}x{q}"), work, |queue| {
        let (a, b) = (View::new(&a, p), View::new(&b, q));
        queue.gemm_tn(GemmTn { m, p, q, a, b, scale: 1.0, out: ViewMut::new(&mut out, q) });
    })
}
