//! Copies, and values on their way between host and device.

use prefgraph_nn::{
    device::{CopyTokens, Direction, Kind, Queue, TokenRows, View, ViewMut},
    error::Result,
};

use crate::{
    cases::{Product, Shapes, numbers::numbers},
    place::Place,
    table::{Table, Work},
};

pub fn run<D: Place>(table: &Table<D>, shapes: &Shapes) -> Result<()> {
    for &rows in shapes.rows {
        copies(table, rows)?;
    }
    for &product in shapes.products.iter().filter(|p| p.r > 0) {
        factors(table, product)?;
    }
    Ok(())
}

fn copies<D: Place>(table: &Table<D>, rows: TokenRows) -> Result<()> {
    let TokenRows { batch, tokens, width } = rows;
    let (len, shape) = (rows.len(), format!("{batch}x{tokens}x{width}"));
    let (x, exact) = (table.activations(len, 1), table.exact(len, 2));
    let moved = |activations, exact| Work { bytes: table.bytes(activations, exact), flops: 0 };
    for (name, from, kind, work) in [
        ("copy_to", &x, Kind::Activation, moved(2 * len, 0)),
        ("copy_to, activations to f32", &x, Kind::Exact, moved(len, len)),
        ("copy_to, f32 to activations", &exact, Kind::Activation, moved(len, len)),
    ] {
        let mut to = table.queue.take(len, kind);
        table.row(name, &shape, work, |queue| {
            queue.copy_to(View::new(from, len), len, ViewMut::new(&mut to, len));
        })?;
    }
    let mut to = table.queue.zeros(2 * len, Kind::Activation);
    table.row("copy_tokens", &shape, moved(2 * len, 0), |queue| {
        queue.copy_tokens(CopyTokens {
            rows,
            from: (View::new(&x, width), tokens),
            to: (ViewMut::new(&mut to, width), 2 * tokens),
        });
    })?;
    table.row("zeros", &shape, moved(len, 0), |queue| drop(queue.zeros(len, Kind::Activation)))?;
    let values = numbers(len, 3);
    table.row("upload", &shape, moved(0, len), |queue| drop(queue.upload(&values, Kind::Exact)))?;
    let mut failed = None;
    table.row("download", &shape, moved(0, len), |queue| {
        if let Err(error) = queue.download(&exact, 0, len) {
            failed.get_or_insert(error);
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn factors<D: Place>(table: &Table<D>, Product { k, n, r, .. }: Product) -> Result<()> {
    let adapter = table.exact(r * (k + n), 1);
    for (name, rows, columns, start) in [("factor A", r, k, 0), ("factor B", n, r, r * k)] {
        let work = Work { bytes: table.bytes(rows * columns, rows * columns), flops: 0 };
        table.row(name, &format!("{rows}x{columns}"), work, |queue| {
            let part = View::new(&adapter, 0).skip(start);
            drop(queue.factor(&[part], rows, columns, 0.5, Direction::Forward));
        })?;
    }
    Ok(())
}
