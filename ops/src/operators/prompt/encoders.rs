//! What every pair of published text encoders does for the operator.

use std::path::PathBuf;

use prefgraph_nn as nn;

use crate::operator::{Cost, Ctx, OpError};

/// Text tokens `[B, L, E]` and pooled vectors `[B, P]`.
pub(super) type Encoded = (nn::Tensor<(usize, usize, usize)>, nn::Tensor<(usize, usize)>);

/// Two text encoders with their tokenisers: one or both for the tokens, one for the pooled vector.
pub(super) trait TextEncoders: std::fmt::Debug + Send + Sync {
    /// Where encoders and tokenisers are read from, by setting.
    fn paths(&self) -> &[(&'static str, PathBuf)];

    /// `L`, `E` and `P`.
    fn shape(&self) -> (usize, usize, usize);

    /// The settings of the encoders that the tokens and the pooled vector come from.
    fn sources(&self) -> [&'static str; 2];

    /// What encoding so many prompts takes.
    fn cost(&self, batch: usize) -> Cost;

    /// A line for people.
    fn note(&self) -> String;

    /// Encode prompts of which none is equal to another.
    fn encode(&self, ctx: &Ctx<'_>, prompts: &[&String]) -> Result<Encoded, OpError>;
}

/// Encode prompts; equal ones once.
pub(super) fn encode_distinct(
    encoders: &dyn TextEncoders,
    ctx: &Ctx<'_>,
    prompts: &[String],
) -> Result<Encoded, OpError> {
    let mut different: Vec<&String> = Vec::new();
    let place = |prompt| {
        different.iter().position(|p| *p == prompt).unwrap_or_else(|| {
            different.push(prompt);
            different.len() - 1
        })
    };
    let places: Vec<usize> = prompts.iter().map(place).collect();
    let (tokens, pooled) = encoders.encode(ctx, &different)?;
    let (length, width, pooled_width) = encoders.shape();
    let (text, all) = ((prompts.len(), length, width), (prompts.len(), pooled_width));
    Ok((
        nn::Tensor::new(ctx.cpu, text, chosen(tokens.values(), length * width, &places))?,
        nn::Tensor::new(ctx.cpu, all, chosen(pooled.values(), pooled_width, &places))?,
    ))
}

/// The rows at these places.
fn chosen(values: &[f32], size: usize, places: &[usize]) -> Vec<f32> {
    places.iter().flat_map(|p| &values[p * size..(p + 1) * size]).copied().collect()
}

/// The ids of all prompts, one after the other.
pub(super) fn ids(
    prompts: &[&String],
    encode: impl Fn(&str) -> nn::error::Result<Vec<u32>>,
) -> Result<Vec<u32>, OpError> {
    let all = prompts.iter().map(|prompt| encode(prompt)).collect::<Result<Vec<_>, _>>()?;
    Ok(all.concat())
}

/// An error about what a setting leads to.
pub(super) fn of(setting: &str) -> impl Fn(nn::Error) -> OpError {
    move |e| OpError::new(format!("{setting}: {e}"))
}
