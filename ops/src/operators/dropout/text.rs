//! `drop-text`: prompts, of which some are left out.
//!
//! Shape letters: `B` samples, `L` text tokens, `E` text width, `P` pooled width.

use dfdx::shapes::Shape;

use super::rows::{fits, replaced};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Pooled, TextDrop, TextTokens},
    role::As,
    settings::Nothing,
};

/// Text `[B, L, E]` and pooled text `[B, P]`, with those of the empty prompt in the place of the samples that `drop` names.
pub struct DropText;

impl Operator for DropText {
    const NAME: &'static str = "drop-text";
    const DOC: &'static str = "Put the empty prompt in the place of those that a dropout leaves out.";
    const IN: [&'static str; 5] = ["text", "pooled", "empty_text", "empty_pooled", "drop"];
    const OUT: [&'static str; 2] = ["text", "pooled"];
    type Settings = Nothing;
    type In = (TextTokens, Pooled, TextTokens, Pooled, TextDrop);
    type Out = (TextTokens, Pooled);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(
        &self,
        (text, pooled, empty_text, empty_pooled, drop): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        // A prompt has its number of tokens: it is none that is repeated.
        if (text.1, text.2) != (empty_text.1, empty_text.2) {
            return Err(OpError::new(format!(
                "`empty_text` has {} tokens {} wide, and `text` {} tokens {} wide: both must come from the same encoders",
                empty_text.1, empty_text.2, text.1, text.2
            )));
        }
        fits("text", &text.concrete(), &empty_text.concrete(), drop.0)?;
        fits("pooled text", &pooled.concrete(), &empty_pooled.concrete(), drop.0)?;
        Ok((text, pooled))
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (text, pooled, empty_text, empty_pooled, As(_, drop)): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let text = replaced(ctx, text, &empty_text, &drop)?;
        Ok(((text, replaced(ctx, pooled, &empty_pooled, &drop)?), ()))
    }
}
