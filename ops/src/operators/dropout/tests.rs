//! What is drawn, and what stands in the place of what is left out.

use dfdx::shapes::HasShape;

use super::*;
use crate::{
    operators::testing::Bench,
    port::T,
    ports::{ImagePrompt, Metric, Pooled, TextTokens, TextsShape},
    settings::Nothing,
};

fn rates(image: f64, text: f64, both: f64) -> DropoutSettings {
    DropoutSettings { image, text, both }
}

/// What is left out at a step: text and pictures of each sample.
fn drawn(settings: DropoutSettings, bench: &Bench, step: u64, batch: usize) -> Vec<[bool; 2]> {
    let prompts = Texts(vec![String::new(); batch].into());
    let op = Dropout::new(settings).unwrap();
    let ((text, image, metrics), ()) = op.forward(&bench.at(step), (prompts,)).unwrap();
    let drawn: Vec<[bool; 2]> =
        text.as_vec().iter().zip(image.as_vec()).map(|(text, image)| [*text == 1.0, image == 1.0]).collect();
    let count = |which: usize| drawn.iter().filter(|gone| gone[which]).count() as f64;
    let recorded = ["without_text", "without_pictures"].map(|name| metrics.get(name).and_then(Metric::mean));
    assert_eq!(recorded, [Some(count(0)), Some(count(1))]);
    drawn
}

#[test]
fn each_of_the_three_happens_as_often_as_is_said_and_never_two_of_them() {
    let bench = Bench::new();
    let all: Vec<[bool; 2]> =
        (0..500).flat_map(|step| drawn(rates(0.05, 0.1, 0.2), &bench, step, 40)).collect();
    for (which, rate) in [([false, true], 0.05), ([true, false], 0.1), ([true, true], 0.2)] {
        let share = all.iter().filter(|gone| **gone == which).count() as f64 / all.len() as f64;
        // Four standard deviations of 20 000 draws are 0.012 at most.
        assert!((share - rate).abs() < 0.012, "{which:?}: {share}");
    }
}

#[test]
fn draws_depend_on_the_step_and_the_sample_and_are_those_of_the_order_image_text_both() {
    let bench = Bench::new();
    let of = |settings, step| drawn(settings, &bench, step, 64);
    assert_eq!(of(rates(0.3, 0.3, 0.3), 4), of(rates(0.3, 0.3, 0.3), 4));
    assert_ne!(of(rates(0.3, 0.3, 0.3), 4), of(rates(0.3, 0.3, 0.3), 5));
    // The same numbers, of which other parts are taken.
    let mut numbers = bench.at(4).random("dropout");
    let expected: Vec<[bool; 2]> = (0..64)
        .map(|_| match numbers.uniform() {
            u if u < 0.2 => [false, true],
            u if u < 0.5 => [true, false],
            u if u < 0.9 => [true, true],
            _ => [false, false],
        })
        .collect();
    assert_eq!(of(rates(0.2, 0.3, 0.4), 4), expected);
    assert!(of(rates(0.0, 0.0, 0.0), 4).iter().all(|gone| *gone == [false, false]));
    assert!(of(rates(0.0, 1.0, 0.0), 4).iter().all(|gone| *gone == [true, false]));
}

#[test]
fn rates_that_are_no_shares_are_refused_by_name() {
    let refused = |settings| Dropout::new(settings).err().unwrap().to_string();
    assert!(refused(rates(-0.1, 0.0, 0.0)).contains("image is -0.1: a share"));
    assert!(refused(rates(0.0, f64::NAN, 0.0)).contains("text is NaN"));
    assert!(refused(rates(0.5, 0.4, 0.2)).contains("their sum is at most 1"));
}

/// Values that count up from here.
fn counted<S: crate::shape::Axes>(bench: &Bench, shape: S, from: usize) -> T<S> {
    let count = shape.num_elements();
    tensor(&bench.ctx(), shape, (from..from + count).map(|v| v as f32).collect()).unwrap()
}

#[test]
fn a_prompt_that_is_left_out_becomes_the_empty_one_and_the_others_keep_their_bits() {
    let bench = Bench::new();
    let text: TextTokens = counted(&bench, (3, 2, 2), 0);
    let pooled: Pooled = counted(&bench, (3, 2), 50);
    let (empty, empty_pooled) = (counted(&bench, (1, 2, 2), 100), counted(&bench, (1, 2), 200));
    let drop = |gone: [f32; 3]| {
        let gone = tensor(&bench.ctx(), (3,), gone.to_vec()).unwrap();
        let inputs = (text.clone(), pooled.clone(), empty.clone(), empty_pooled.clone(), gone.into());
        let ((text, pooled), ()) = DropText::new(Nothing {}).unwrap().forward(&bench.ctx(), inputs).unwrap();
        (text.as_vec(), pooled.as_vec())
    };
    let (found, found_pooled) = drop([0.0, 1.0, 0.0]);
    assert_eq!(found, [0., 1., 2., 3., 100., 101., 102., 103., 8., 9., 10., 11.]);
    assert_eq!(found_pooled, [50., 51., 200., 201., 54., 55.]);
    assert_eq!(drop([0.0; 3]), (text.as_vec(), pooled.as_vec()));
}

#[test]
fn tokens_of_no_picture_take_the_place_of_those_of_every_reference() {
    let bench = Bench::new();
    let tokens = || ImagePrompt::from(counted(&bench, (2, 4, 1), 0));
    let drop = |empty: T<(usize, usize, usize)>, gone: [f32; 2]| {
        let gone = tensor(&bench.ctx(), (2,), gone.to_vec()).unwrap();
        let inputs = (tokens(), ImagePrompt::from(empty), gone.into());
        let ((found,), ()) = DropImagePrompt::new(Nothing {}).unwrap().forward(&bench.ctx(), inputs).unwrap();
        assert_eq!(*HasShape::shape(&*found), (2, 4, 1));
        found.as_vec()
    };
    // Two tokens of one picture stand for each of two references; or each sample has its own.
    assert_eq!(drop(counted(&bench, (1, 2, 1), 90), [1.0, 0.0]), [90., 91., 90., 91., 4., 5., 6., 7.]);
    assert_eq!(drop(counted(&bench, (2, 4, 1), 90), [0.0, 1.0]), [0., 1., 2., 3., 94., 95., 96., 97.]);
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_step() {
    let image = |empty, gone| DropImagePrompt.shapes(((2, 4, 8), empty, (gone,)), 0).unwrap_err().to_string();
    assert!(image((1, 4, 8), 3).contains("`drop` says of 3 samples"));
    assert!(image((1, 3, 8), 2).contains("cannot stand in the place of [2, 4, 8]"));
    assert!(image((1, 4, 7), 2).contains("must come from the same encoder"));
    assert!(image((3, 4, 8), 2).contains("with one sample or as many"));
    let text = |empty, pooled| {
        DropText.shapes(((2, 77, 8), (2, 4), empty, pooled, (2,)), 0).unwrap_err().to_string()
    };
    assert!(text((1, 7, 8), (1, 4)).contains("`empty_text` has 7 tokens 8 wide"));
    assert!(text((1, 77, 8), (1, 3)).contains("cannot stand in the place of [2, 4]"));
    let prompts = Dropout::new(rates(0.1, 0.1, 0.1)).unwrap().shapes((TextsShape { batch: 5 },), 0);
    assert_eq!(prompts.unwrap(), ((5,), (5,), MetricsShape));
}
