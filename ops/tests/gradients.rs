//! `check_gradients` accepts a right backward, and names what is wrong with each kind of wrong one.

use dfdx::tensor::TensorFromVec;
use prefgraph_ops::{
    Ctx, OpError, Operator, T, Wanted,
    operator::{InGrads, InShapes, OutGrads, OutShapes},
    settings::Nothing,
    tensor::host,
    testing::{GradientCheck, check_gradients},
};

type Row = T<(usize,)>;

/// `x^2 y`, with a backward that is right or wrong in one way.
#[derive(Clone, Copy, PartialEq)]
enum Square {
    Right,
    /// The derivative by x lacks its factor 2.
    Half,
    /// The last component of the derivative by y is zero.
    LastForgotten,
    /// A cotangent of y comes whether or not it is wanted.
    Unasked,
    /// The cotangent of x is one component short.
    Short,
    /// `forward` depends on something that is no input.
    Impure,
}

static CALLS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

fn row(values: Vec<f32>) -> Row {
    host().tensor_from_vec(values.clone(), (values.len(),))
}

impl Operator for Square {
    const NAME: &'static str = "square";
    const DOC: &'static str = "";
    const IN: [&'static str; 2] = ["x", "y"];
    const OUT: [&'static str; 1] = ["z"];
    type Settings = Nothing;
    type In = (Row, Option<Row>);
    type Out = (Row,);
    type Saved = (Vec<f32>, Option<Vec<f32>>);
    const DIFFERENTIABLE: bool = true;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self::Right)
    }

    fn shapes(&self, (x, _): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }

    fn forward(&self, _: &Ctx<'_>, (x, y): Self::In) -> Result<(Self::Out, Self::Saved), OpError> {
        let (x, y) = (x.as_vec(), y.map(|y| y.as_vec()));
        let more = match self {
            Self::Impure => CALLS.fetch_add(1, std::sync::atomic::Ordering::SeqCst) as f32,
            _ => 0.0,
        };
        let y_at = |i: usize| y.as_ref().map_or(1.0, |y| y[i]);
        let z = x.iter().enumerate().map(|(i, x)| x * x * y_at(i) + more).collect();
        Ok(((row(z),), (x, y)))
    }

    fn backward(
        &self,
        _: &Ctx<'_>,
        wanted: Wanted<'_>,
        (x, y): Self::Saved,
        (g,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        let Some(g) = g.map(|g| g.as_vec()) else { return Ok((None, None)) };
        let factor = if *self == Self::Half { 1.0 } else { 2.0 };
        let y_at = |i: usize| y.as_ref().map_or(1.0, |y| y[i]);
        let mut by_x: Vec<f32> = (0..x.len()).map(|i| factor * x[i] * y_at(i) * g[i]).collect();
        let mut by_y: Vec<f32> = (0..x.len()).map(|i| x[i] * x[i] * g[i]).collect();
        match self {
            Self::LastForgotten => *by_y.last_mut().unwrap() = 0.0,
            Self::Short => drop(by_x.pop()),
            _ => {}
        }
        let by_y = (y.is_some() && (wanted[1] || *self == Self::Unasked)).then(|| row(by_y));
        Ok((wanted[0].then(|| row(by_x)), by_y))
    }
}

fn inputs(len: usize) -> (Row, Option<Row>) {
    let values = |phase: usize| row((0..len).map(|i| 0.3 + ((i * 7 + phase) % 11) as f32 / 5.0).collect());
    (values(0), Some(values(3)))
}

fn message(op: Square, len: usize) -> String {
    check_gradients(&op, inputs(len)).unwrap_err().to_string()
}

#[test]
fn a_right_backward_is_accepted_with_every_input_or_without_an_optional_one() {
    check_gradients(&Square::Right, inputs(5)).unwrap();
    check_gradients(&Square::Right, (inputs(5).0, None)).unwrap();
}

#[test]
fn a_wrong_factor_is_found_and_the_component_and_both_numbers_are_named() {
    let error = message(Square::Half, 5);
    assert!(error.starts_with("input `x` at [0]: backward gives "), "{error}");
    assert!(error.contains("differences of forward"), "{error}");
}

#[test]
fn one_wrong_component_of_many_is_found_though_not_every_one_is_moved_alone() {
    let error = message(Square::LastForgotten, 1000);
    assert!(error.contains("input `y` along a direction through all"), "{error}");
    assert!(message(Square::LastForgotten, 3).contains("input `y` at [2]"));
}

#[test]
fn a_broken_contract_is_named() {
    assert!(message(Square::Unasked, 3).contains("`y`: backward gives a cotangent though `wanted` does not"));
    assert!(message(Square::Short, 3).contains("`x`: backward gives a cotangent of 2 components"));
    assert!(message(Square::Impure, 3).contains("`z`: two runs of forward"));
}

#[test]
fn only_the_inputs_that_are_asked_for_are_moved_and_a_name_that_is_none_is_refused() {
    let check =
        |names: &[&str]| GradientCheck::default().inputs(names).run(&Square::LastForgotten, inputs(3));
    check(&["x"]).unwrap();
    check(&["y"]).unwrap_err();
    let error = check(&["w"]).unwrap_err().to_string();
    assert!(error.contains("no input `w`") && error.contains("x, y"), "{error}");
}

#[test]
fn a_step_too_small_for_f32_fails_and_says_so() {
    let tiny = GradientCheck::default().step(1e-7).run(&Square::Right, inputs(3));
    let error = tiny.unwrap_err().to_string();
    assert!(error.contains("take a larger step"), "{error}");
}
