//! Checks of the inputs that every backbone takes.

use crate::{
    backbone::{BackboneLayout, Inputs},
    error::{Error, Result},
};

/// Refuse what is not good, with what was expected and what was found.
pub(super) fn expect(what: &str, good: bool, expected: String, found: String) -> Result<()> {
    if good { Ok(()) } else { Err(Error::Shape { what: what.into(), expected, found }) }
}

/// Whether there is a time and text for each of `n` samples.
pub(super) fn check_conditions(layout: &BackboneLayout, n: usize, inputs: &Inputs) -> Result<()> {
    expect("t", inputs.t.len() == n, format!("{n} values"), format!("{}", inputs.t.len()))?;
    let (text_n, text, text_width) = inputs.text.shape();
    expect(
        "text",
        text_n > 0 && n.is_multiple_of(text_n) && text > 0 && text_width == layout.text_width,
        format!("[B, L, {}] with L > 0 and B a divisor of {n}", layout.text_width),
        format!("{:?}", inputs.text.dims()),
    )?;
    expect(
        "pooled text",
        inputs.pooled.shape() == (n, layout.pooled_width),
        format!("[{n}, {}]", layout.pooled_width),
        format!("{:?}", inputs.pooled.dims()),
    )
}

/// Whether there is a guidance value just where the model takes one.
pub(super) fn check_guidance(layout: &BackboneLayout, inputs: &Inputs) -> Result<()> {
    match (layout.guidance, inputs.guidance) {
        (true, None) => Err(Error::Setting("the model takes a guidance value, and none was given".into())),
        (false, Some(g)) => {
            Err(Error::Setting(format!("the model takes no guidance value, but {g} was given")))
        }
        _ => Ok(()),
    }
}
