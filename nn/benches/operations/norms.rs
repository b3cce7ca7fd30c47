//! Norms and scores.

use prefgraph_nn::{
    device::{
        GroupNorm, Kind, ModulationGrad, Norm, NormKind, NormModulate, NormModulateBackward, Queue,
        TokenRows, View, ViewMut,
    },
    error::Result,
};

use crate::{
    cases::{Groups, Scored, Shapes, numbers::numbers},
    place::Place,
    table::{Table, Work},
};

pub fn run<D: Place>(table: &Table<D>, shapes: &Shapes) -> Result<()> {
    for &rows in shapes.rows {
        modulated(table, rows)?;
    }
    for &groups in shapes.norms {
        weighted(table, groups)?;
    }
    for &scored in shapes.scores {
        scores(table, scored)?;
    }
    Ok(())
}

fn modulated<D: Place>(table: &Table<D>, rows: TokenRows) -> Result<()> {
    let TokenRows { batch, tokens, width } = rows;
    let (len, shape) = (rows.len(), format!("{batch}x{tokens}x{width}"));
    let (x, dy) = (table.activations(len, 1), table.activations(len, 2));
    let modulation = table.activations(batch * 2 * width, 3);
    let part = |i: usize| View::new(&modulation, 2 * width).skip(i * width);
    let [mut y, mut dx] = [(); 2].map(|()| table.queue.zeros(len, Kind::Activation));
    let [mut mean, mut reciprocal] = [(); 2].map(|()| table.queue.take(batch * tokens, Kind::Exact));
    let [mut d_shift, mut d_scale] = [(); 2].map(|()| table.queue.take(batch * width, Kind::Exact));
    let moved = |times: usize| Work { bytes: table.bytes(times * len, 0), flops: 0 };
    table.row("norm_modulate", &shape, moved(2), |queue| {
        queue.norm_modulate(NormModulate {
            rows: &[rows],
            x: View::new(&x, width),
            shift: part(0),
            scale: part(1),
            y: ViewMut::new(&mut y, width),
            mean: ViewMut::new(&mut mean, 1),
            reciprocal: ViewMut::new(&mut reciprocal, 1),
        });
    })?;
    for (name, with_sums, times) in
        [("norm_modulate_backward", false, 4), ("norm_modulate_backward, sums", true, 6)]
    {
        table.row(name, &shape, moved(times), |queue| {
            let modulation = with_sums.then(|| ModulationGrad {
                d_shift: ViewMut::new(&mut d_shift, width),
                d_scale: ViewMut::new(&mut d_scale, width),
            });
            queue.norm_modulate_backward(NormModulateBackward {
                rows: &[rows],
                x: View::new(&x, width),
                mean: View::new(&mean, 1),
                reciprocal: View::new(&reciprocal, 1),
                scale: part(1),
                dy: View::new(&dy, width),
                dx: ViewMut::new(&mut dx, width),
                accumulate: true,
                modulation,
            });
        })?;
    }
    Ok(())
}

fn weighted<D: Place>(table: &Table<D>, Groups { rows, width, groups }: Groups) -> Result<()> {
    let (len, shape) = (rows * width, format!("{rows}x{width}"));
    let x = table.activations(len, 1);
    let (weight, bias) = (table.exact(width, 2), table.exact(width, 3));
    let mut y = table.queue.take(len, Kind::Activation);
    let work = Work { bytes: table.bytes(2 * len, 0), flops: 0 };
    for (name, kind) in [("norm, layer", NormKind::Layer), ("norm, RMS", NormKind::Rms)] {
        table.row(name, &shape, work, |queue| {
            let (x, to) = (View::new(&x, width), ViewMut::new(&mut y, width));
            queue.norm(Norm { rows, width, kind, eps: 1e-6, x, weight: &weight, bias: Some(&bias), y: to });
        })?;
    }
    // It is read twice: for the moments, and for the result.
    let work = Work { bytes: table.bytes(3 * len, 0), flops: 0 };
    table.row("group_norm, SiLU", &format!("{shape} by {groups}"), work, |queue| {
        let (x, to, weight, bias) = (View::new(&x, width), ViewMut::new(&mut y, width), &weight, &bias);
        queue.group_norm(GroupNorm { rows, width, groups, eps: 1e-6, silu: true, x, weight, bias, y: to });
    })
}

fn scores<D: Place>(table: &Table<D>, Scored { width, tokens, count }: Scored) -> Result<()> {
    let (rows, targets) = (table.activations(tokens * width, 1), table.activations(count * width, 2));
    let mask: Vec<f32> = numbers(tokens, 3).iter().map(|v| v.abs()).collect();
    let mut out = table.queue.take(count, Kind::Exact);
    let work = Work { bytes: table.bytes((tokens + count) * width, 0), flops: 0 };
    table.row("scores", &format!("{tokens} and {count} of {width}"), work, |queue| {
        let (rows, targets) = (View::new(&rows, width), View::new(&targets, width));
        queue.scores(width, (rows, &mask), (targets, count), ViewMut::new(&mut out, count));
    })
}
