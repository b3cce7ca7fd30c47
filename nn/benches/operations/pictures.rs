//! The windows of convolutions.

use prefgraph_nn::{
    device::{ConvWindow, Kind, Queue, View, ViewMut, Windows},
    error::Result,
};

use crate::{
    cases::{Picture, Shapes},
    place::Place,
    table::{Table, Work},
};

pub fn run<D: Place>(table: &Table<D>, shapes: &Shapes) -> Result<()> {
    use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
    for &Picture { height, width, channels } in shapes.pictures {
        let x = table.activations(height * width * channels, 1);
        for window in [One, Three, ThreeOfDoubled, ThreeHalving, ThreeHalvingCentred] {
            // Of the doubled picture only as many as the picture itself has: layers take a part at a time, too.
            let count = (window.output(height) * window.output(width)).min(height * width);
            let len = count * window.side() * window.side() * channels;
            let mut out = table.queue.take(len, Kind::Activation);
            let seen = height * width * channels / if window == ThreeOfDoubled { 4 } else { 1 };
            let work = Work { bytes: table.bytes(seen + len, 0), flops: 0 };
            let shape = format!("{height}x{width}x{channels}");
            table.row(&format!("windows, {window:?}"), &shape, work, |queue| {
                let (size, x, out) = ((height, width), View::new(&x, channels), ViewMut::new(&mut out, 1));
                queue.windows(Windows { window, size, channels, pixels: 0..count, x, out });
            })?;
        }
    }
    Ok(())
}
