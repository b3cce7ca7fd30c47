//! The CPU kernels against plain loops in f64, on every instruction set of the machine and on one and two threads.

mod attention;
#[path = "../cases/mod.rs"]
mod cases;
mod gemm;
mod passes;
mod pictures;

use prefgraph_nn::cpu::{Cpu, Isa};

/// Numbers in [-1, 1) from a seed (SplitMix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn one(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn many(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.one()).collect()
    }
}

/// In f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Derivative of the sum of `f(x) * cotangent` by central differences in f64.
pub(crate) fn differences(x: &[f64], cotangent: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let mut x = x.to_vec();
    let mut value = |i: usize, step: f64| {
        let old = x[i];
        x[i] = old + step;
        let y: f64 = f(&x).iter().zip(cotangent).map(|(y, c)| y * c).sum();
        x[i] = old;
        y
    };
    (0..cotangent.len()).map(|i| (value(i, 1e-5) - value(i, -1e-5)) / 2e-5).collect()
}

/// Every instruction set on one thread, and on two.
pub(crate) fn devices() -> Vec<Cpu> {
    let all = Isa::available();
    assert!(all.contains(&Isa::Portable));
    let of = |threads| all.iter().map(move |isa| Cpu::with_isa(threads, *isa).expect("an available set"));
    of(1).chain(of(2)).collect()
}

/// Runs a kernel on every device: asserts that all give the same bits, and returns them.
pub(crate) fn same_on_all_devices(run: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let mut first: Option<Vec<f32>> = None;
    for cpu in devices() {
        let values = run(&cpu);
        match &first {
            None => first = Some(values),
            Some(first) => assert_same_bits(first, &values, &format!("{cpu:?}")),
        }
    }
    first.expect("at least one device")
}

#[track_caller]
pub(crate) fn assert_same_bits(left: &[f32], right: &[f32], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}");
    if let Some(i) = (0..left.len()).find(|i| left[*i].to_bits() != right[*i].to_bits()) {
        panic!("{what}: value {i} is {:e}, expected the bits of {:e}", right[i], left[i]);
    }
}

/// Asserts that every value is within `tolerance` of the largest expected value, or of 1e-3 if that is smaller.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*f) - e).abs() / largest;
        assert!(error <= tolerance, "{what}: value {i} is {f}, expected {e} (error {error:e} of {largest})");
    }
}
