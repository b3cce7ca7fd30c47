//! Sums, activation functions and gates.

use prefgraph_nn::{
    device::{Activation, GateGrad, Kind, Queue, TokenRows, View, ViewMut},
    error::Result,
};

use crate::{
    cases::Shapes,
    place::Place,
    table::{Table, Work},
};

pub fn run<D: Place>(table: &Table<D>, shapes: &Shapes) -> Result<()> {
    for &rows in shapes.rows {
        sums(table, rows.len())?;
        gates(table, rows)?;
    }
    for &size in shapes.functions {
        functions(table, size)?;
    }
    Ok(())
}

fn moved<D: Place>(table: &Table<D>, activations: usize) -> Work {
    Work { bytes: table.bytes(activations, 0), flops: 0 }
}

fn sums<D: Place>(table: &Table<D>, len: usize) -> Result<()> {
    let shape = len.to_string();
    let (x, mut y) = (table.activations(len, 1), table.activations(len, 2));
    table.row("add_scaled", &shape, moved(table, 3 * len), |queue| {
        queue.add_scaled(1e-3, View::new(&x, len), ViewMut::new(&mut y, len), len);
    })?;
    table.row("scale", &shape, moved(table, 2 * len), |queue| {
        queue.scale(0.999, ViewMut::new(&mut y, len), len)
    })
}

fn functions<D: Place>(table: &Table<D>, size: (usize, usize)) -> Result<()> {
    let (rows, width) = size;
    let (len, shape) = (rows * width, format!("{rows}x{width}"));
    let (x, dy) = (table.activations(len, 1), table.activations(len, 2));
    let mut y = table.queue.zeros(len, Kind::Activation);
    let (x, dy) = (View::new(&x, width), View::new(&dy, width));
    use Activation::{Gelu, GeluErf, QuickGelu, Relu, Silu, Tanh};
    for f in [Silu, Gelu, GeluErf, QuickGelu, Relu, Tanh] {
        table.row(&format!("activate, {f:?}"), &shape, moved(table, 2 * len), |queue| {
            queue.activate(f, size, x, ViewMut::new(&mut y, width));
        })?;
    }
    table.row("gelu_backward", &shape, moved(table, 3 * len), |queue| {
        queue.gelu_backward(size, dy, ViewMut::new(&mut y, width));
    })?;
    table.row("multiply", &shape, moved(table, 3 * len), |queue| {
        queue.multiply(size, x, ViewMut::new(&mut y, width))
    })
}

fn gates<D: Place>(table: &Table<D>, rows: TokenRows) -> Result<()> {
    let TokenRows { batch, tokens, width } = rows;
    let (len, shape) = (rows.len(), format!("{batch}x{tokens}x{width}"));
    let (x, mut y, gate) =
        (table.activations(len, 1), table.activations(len, 2), table.activations(batch * width, 3));
    let gate = View::new(&gate, width);
    table.row("gated_add", &shape, moved(table, 3 * len), |queue| {
        queue.gated_add(&[rows], View::new(&x, width), gate, ViewMut::new(&mut y, width));
    })?;
    let view = View::new(&y, width);
    let mut dy = table.queue.take(len, Kind::Activation);
    let mut d_gate = table.queue.take(batch * width, Kind::Exact);
    for (name, with_sums, times) in [("gated_add_backward", false, 2), ("gated_add_backward, sums", true, 4)]
    {
        table.row(name, &shape, moved(table, times * len), |queue| {
            let grad = with_sums.then(|| GateGrad { y: view, d_gate: ViewMut::new(&mut d_gate, width) });
            queue.gated_add_backward(&[rows], View::new(&x, width), gate, ViewMut::new(&mut dy, width), grad);
        })?;
    }
    Ok(())
}
