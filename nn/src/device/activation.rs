//! Functions of one value.

/// Which function of each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The tanh form of GELU, `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    Gelu,
    /// GELU by its definition, `x / 2 (1 + erf(x / sqrt(2)))`.
    GeluErf,
    /// GELU as CLIP has it, `x / (1 + exp(-1.702 x))`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `tanh(x)`.
    Tanh,
}
