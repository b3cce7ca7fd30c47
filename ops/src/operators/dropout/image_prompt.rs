//! `drop-image-prompt`: image tokens of references, of which some are left out.
//!
//! Shape letters: `B` samples, `K` image tokens, `E` their width.

use dfdx::shapes::Shape;

use super::rows::{fits, replaced};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{ImageDrop, ImagePrompt},
    role::As,
    settings::Nothing,
};

/// Image tokens `[B, K, E]`, with those of no picture in the place of the samples that `drop` names.
pub struct DropImagePrompt;

impl Operator for DropImagePrompt {
    const NAME: &'static str = "drop-image-prompt";
    const DOC: &'static str = "Put image tokens of no picture (`image-prompt` with `negative: true`) in the place of those that a \
                               dropout leaves out.";
    const IN: [&'static str; 3] = ["image_prompt", "empty", "drop"];
    const OUT: [&'static str; 1] = ["image_prompt"];
    type Settings = Nothing;
    type In = (ImagePrompt, ImagePrompt, ImageDrop);
    type Out = (ImagePrompt,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(&self, (tokens, empty, drop): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        fits("image prompt", &tokens.concrete(), &empty.concrete(), drop.0)?;
        Ok((tokens,))
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (As(_, tokens), As(_, empty), As(_, drop)): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        Ok(((replaced(ctx, tokens, &empty, &drop)?.into(),), ()))
    }
}
