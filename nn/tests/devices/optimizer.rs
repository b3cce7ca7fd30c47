//! AdamW, and what is asked of a gradient before.

use prefgraph_nn::{
    cpu::{self, AdamW, Update},
    cuda::Cuda,
    device::{Device, Kind, Precision, Queue, View, ViewMut},
};

use crate::{cases::numbers::numbers, devices};

/// Less than a block, a whole part, and more parts than a block has threads.
const LENGTHS: [usize; 6] = [1, 255, 4096, 4097, 10_000, 257 * 4096 + 3];

#[test]
fn adamw_has_the_bits_of_the_processor() {
    let Some((cpu, cuda)) = devices() else { return };
    let queue = cuda.queue(Precision::Bf16).unwrap();
    let settings = AdamW { lr: 0.01, weight_decay: 0.1, ..AdamW::default() };
    for len in [1, 255, 10_000] {
        // One value more: it is left alone.
        let mut all = [1, 2, 3].map(|seed| numbers(len + 1, seed));
        all[1].fill(0.0);
        all[2].fill(0.0);
        let [mut values, mut first, mut second] = all.clone().map(|v| queue.upload(&v, Kind::Exact));
        for (step, factor) in (1..).zip([1.0, 0.7, 1e-3]) {
            // Small gradients beside large ones, down to squares that are nothing.
            let scale = |(i, g): (usize, f32)| if i % 7 == 0 { g * 1e-21 } else { g };
            let gradient: Vec<f32> = numbers(len, 3 + step).into_iter().enumerate().map(scale).collect();
            let [parameters, moment, square] = &mut all;
            let update = Update { settings, number: step, factor };
            cpu::adamw(
                &cpu,
                &update,
                &mut parameters[..len],
                &gradient,
                &mut moment[..len],
                &mut square[..len],
            );
            let gradient = queue.upload(&gradient, Kind::Exact);
            queue.adamw(&update, len, (&mut values, &gradient), (&mut first, &mut second));
        }
        for (found, expected) in [&values, &first, &second].into_iter().zip(&all) {
            let found = queue.download(found, 0, len + 1).unwrap();
            let place = found.iter().zip(expected).position(|(f, e)| f.to_bits() != e.to_bits());
            assert_eq!(place, None, "{len} values");
        }
    }
}

#[test]
fn sums_of_squares_agree_and_have_the_same_bits_twice() {
    let Some((cpu, cuda)) = devices() else { return };
    let queue = cuda.queue(Precision::Bf16).unwrap();
    for len in LENGTHS {
        let values = numbers(len + 2, 1);
        let buffer = queue.upload(&values, Kind::Exact);
        let sum = || queue.sum_of_squares(View::new(&buffer, 1).skip(1), len).unwrap();
        let (found, expected) = (sum(), cpu::sum_of_squares(&cpu, &values[1..=len]));
        assert!((found - expected).abs() <= 1e-12 * expected, "{len} values: {found} {expected}");
        assert_eq!(found.to_bits(), sum().to_bits());
    }
    let nothing = queue.zeros(1, Kind::Exact);
    assert_eq!(queue.sum_of_squares(View::new(&nothing, 1), 0).unwrap(), 0.0);
}

#[test]
fn the_first_value_that_is_not_finite_is_found() {
    let Some((_, cuda)) = devices() else { return };
    let queue = cuda.queue(Precision::F32).unwrap();
    for len in LENGTHS {
        let mut values = numbers(len + 1, 1);
        values[len] = f32::NAN;
        values[len / 3] = f32::MAX;
        let found = |values: &[f32]| {
            let buffer = queue.upload(values, Kind::Exact);
            queue.find_not_finite(View::new(&buffer, 1), len).unwrap()
        };
        assert_eq!(found(&values), None, "{len} values");
        for (place, value) in
            [(len - 1, f32::NAN), (len / 2, f32::INFINITY), (len / 5, f32::NEG_INFINITY), (0, -f32::NAN)]
        {
            values[place] = value;
            assert_eq!(found(&values), Some(place), "{value} of {len} values");
        }
    }
    let nothing = queue.zeros(1, Kind::Exact);
    assert_eq!(queue.find_not_finite(View::new(&nothing, 1), 0).unwrap(), None);
}

#[test]
fn gradients_are_accumulated() {
    let Some((_, cuda)) = devices() else { return };
    let queue = cuda.queue(Precision::Bf16).unwrap();
    for (len, start) in [(1, 0), (130, 0), (1027, 1)] {
        let (x, y) = (numbers(len + 2, 1), numbers(len + 2, 2));
        let from = queue.upload(&x, Kind::Exact);
        let mut to = queue.upload(&y, Kind::Exact);
        queue.add_into(View::new(&from, 1).skip(start), &ViewMut::<Cuda>::new(&mut to, 1).skip(start), len);
        let added = |i: usize| if (start..start + len).contains(&i) { x[i] + y[i] } else { y[i] };
        let expected: Vec<f32> = (0..len + 2).map(added).collect();
        assert_eq!(queue.download(&to, 0, len + 2).unwrap(), expected);
    }
}

#[test]
fn activations_are_no_values_of_an_optimizer() {
    let Some((_, cuda)) = devices() else { return };
    let queue = cuda.queue(Precision::Bf16).unwrap();
    let activations = queue.zeros(8, Kind::Activation);
    let error = queue.sum_of_squares(View::new(&activations, 1), 8).unwrap_err().to_string();
    assert!(error.contains("f32 values only"), "{error}");
}
