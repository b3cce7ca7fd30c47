//! Every operation of a device on the GPU against the processor, in both precisions. Skipped, and said so, where there is no GPU.
//!
//! The same cases run on a GPU and on the stand-in: `scripts/standin.sh cargo test -p prefgraph-nn --test devices`.

mod alignment;
mod attention;
#[path = "../cases/mod.rs"]
mod cases;
mod factors;
mod norms;
mod optimizer;
mod pictures;
mod pointwise;
mod products;
mod state;

use prefgraph_nn::{
    Cpu,
    cuda::{Cuda, is_there},
    device::{Device, Precision, Queue},
};

/// Both precisions of products.
pub const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// The processor and the first GPU, or nothing where there is none.
pub fn devices() -> Option<(Cpu, Cuda)> {
    match is_there() {
        Ok(()) => Some((Cpu::new(2).expect("two threads"), Cuda::open(0).expect("the first GPU"))),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// Values of buffers, from their beginnings.
pub fn read<D: Device>(queue: &D::Queue, buffers: &[(&D::Buffer, usize)]) -> Vec<Vec<f32>> {
    buffers.iter().map(|(b, len)| queue.download(b, 0, *len).unwrap()).collect()
}

/// Largest difference, relative to the largest expected value.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-20f32, |m, v| m.max(v.abs()));
    let difference = found
        .iter()
        .zip(expected)
        .fold(0.0f32, |m, (f, e)| if (f - e).is_finite() { m.max((f - e).abs()) } else { f32::INFINITY });
    difference / largest
}

/// Run a case on both devices, in both precisions: each of its results must be within the bound of its precision.
///
/// A case is a function `fn<D: Device>(&D, Precision, ..) -> Vec<Vec<f32>>`.
#[macro_export]
macro_rules! agree {
    ($devices:expr, $bounds:expr, $case:ident($($argument:expr),*)) => {{
        let (cpu, cuda) = &$devices;
        for (precision, bound) in $crate::PRECISIONS.into_iter().zip($bounds) {
            let expected = $case(cpu, precision, $($argument),*);
            let found = $case(cuda, precision, $($argument),*);
            assert_eq!(found.len(), expected.len());
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let off = $crate::difference(found, expected);
                let what = concat!(stringify!($case), stringify!(($($argument),*)));
                assert!(off <= bound, "{what} in {precision:?}, result {i}: off by {off:e}, at most {bound:e}");
            }
        }
    }};
}
