//! Why a check of gradients failed.

use crate::error::OpError;

/// What [`check_gradients`](super::check_gradients) found.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GradientError {
    /// `backward` is not the derivative of `forward`.
    #[error(
        "input `{input}`{place}: backward gives {backward:.6e}, differences of forward {forward:.6e} (step {step}; rounding \
         of the outputs alone gives up to {rounding:.1e}: where that is as large, take a larger step)"
    )]
    Differs {
        /// Name of the input.
        input: &'static str,
        /// Which of its components.
        place: String,
        /// The derivative by `backward`.
        backward: f64,
        /// The derivative by differences.
        forward: f64,
        /// By how much the component was moved.
        step: f32,
        /// What rounding of the outputs makes of the derivative, at most.
        rounding: f64,
    },
    /// A cotangent has more or fewer components than its input.
    #[error("input `{input}`: backward gives a cotangent of {found} components, the input has {expected}")]
    Size {
        /// Name of the input.
        input: &'static str,
        /// Components of the cotangent.
        found: usize,
        /// Components of the input.
        expected: usize,
    },
    /// A cotangent that `wanted` did not ask for.
    #[error("input `{input}`: backward gives a cotangent though `wanted` does not ask for it; give `None`")]
    Unasked {
        /// Name of the input.
        input: &'static str,
    },
    /// `forward` is not a function of its inputs.
    #[error(
        "output `{output}`: two runs of forward at the same inputs differ; random numbers come from `Ctx::random` alone"
    )]
    Impure {
        /// Name of the output.
        output: &'static str,
    },
    /// An input that is not there to be moved.
    #[error("no input `{name}` is connected and has a derivative; those that do: {known}")]
    Input {
        /// As asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// An input whose port does not say what its components are.
    #[error("input `{input}`: its port has no `Port::carry`, by which its components are moved")]
    Fixed {
        /// Name of the input.
        input: &'static str,
    },
    /// There is nothing to differentiate.
    #[error("no output is a tensor: there is nothing to differentiate")]
    NoOutput,
    /// The operator refused its inputs, or failed.
    #[error(transparent)]
    Operator(#[from] OpError),
}
