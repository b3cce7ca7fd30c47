//! `prompt`: from prompts to text tokens and a pooled vector.
//!
//! Shape letters: `B` batch, `L` text tokens, `E` text width, `P` pooled width.

use prefgraph_nn::text::hash::Hash;

use super::tensors::tensor;
use crate::{
    choices,
    identity::Identity,
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{BackboneHandle, Pooled, TextTokens, Texts},
    settings,
};

choices! {
    /// Kinds of text encoder.
    pub enum TextKind {
        /// Feature hashing of words: nothing trained.
        Hash = "hash",
    }
}

settings! {
    /// Settings of [`Prompt`].
    pub struct PromptSettings {
        /// Kind of text encoder: the one that the backbone was trained with.
        pub kind: TextKind = TextKind::Hash,
        /// Text tokens; later words are cut off.
        pub length: usize = 16,
        /// Width of a token; that of the connected backbone where it is not given.
        pub width: Option<usize> = None,
        /// Width of the pooled vector; likewise.
        pub pooled: Option<usize> = None,
    }
}

/// Encoded prompts.
pub struct Prompt(PromptSettings);

impl Prompt {
    fn encoder(&self, backbone: Option<(usize, usize)>) -> Result<Hash, OpError> {
        let of = |stated: Option<usize>, found: Option<usize>, name: &str| match (stated, found) {
            (Some(stated), Some(found)) if stated != found => {
                Err(OpError::new(format!("{name} is {stated}, but the backbone takes {found}")))
            }
            (stated, found) => stated
                .or(found)
                .ok_or_else(|| OpError::new(format!("{name} is not known: set it, or connect `backbone`"))),
        };
        let width = of(self.0.width, backbone.map(|b| b.0), "width")?;
        let pooled = of(self.0.pooled, backbone.map(|b| b.1), "pooled")?;
        Ok(Hash::new(self.0.length, width, pooled)?)
    }
}

impl Operator for Prompt {
    const NAME: &'static str = "prompt";
    const DOC: &'static str = "Encode prompts as text tokens and a pooled vector, sized for the backbone.";
    const IN: [&'static str; 2] = ["prompts", "backbone"];
    const OUT: [&'static str; 2] = ["text", "pooled"];
    type Settings = PromptSettings;
    type In = (Texts, Option<BackboneHandle>);
    type Out = (TextTokens, Pooled);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PromptSettings) -> Result<Self, OpError> {
        Ok(Self(settings))
    }

    fn shapes(&self, (prompts, backbone): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let widths = backbone.as_ref().map(|b| (b.layout().text_width, b.layout().pooled_width));
        let (length, width, pooled) = self.encoder(widths)?.shape();
        Ok(((prompts.batch, length, width), (prompts.batch, pooled)))
    }

    fn cacheable(&self) -> Option<Identity> {
        // Of the backbone only the widths are asked for, and they are the outputs' own.
        Identity::of(&self.0).ok().map(|identity| identity.shape_only("backbone"))
    }

    fn forward(&self, ctx: &Ctx<'_>, (prompts, backbone): Self::In) -> Result<(Self::Out, ()), OpError> {
        let widths = backbone.as_ref().map(|b| (b.0.layout().text_width, b.0.layout().pooled_width));
        let found = self.encoder(widths)?.encode(ctx.cpu, &prompts.0)?;
        let (text, pooled) = (found.tokens, found.pooled);
        let out = (
            tensor(ctx, text.shape(), text.into_values())?,
            tensor(ctx, pooled.shape(), pooled.into_values())?,
        );
        Ok((out, ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{operators::testing::Bench, ports::TextsShape};

    #[test]
    fn widths_come_from_the_settings_or_the_backbone_and_must_agree() {
        let free = Prompt::new(Default::default()).unwrap();
        let error = free.shapes((TextsShape { batch: 2 }, None), 0).unwrap_err().to_string();
        assert!(error.contains("connect `backbone`"), "{error}");
        let fixed = Prompt::new(PromptSettings { width: Some(64), ..Default::default() }).unwrap();
        assert_eq!(fixed.encoder(Some((64, 32))).unwrap().shape(), (16, 64, 32));
        assert!(fixed.encoder(Some((48, 32))).unwrap_err().to_string().contains("takes 48"));
    }

    #[test]
    fn equal_prompts_get_equal_text() {
        let bench = Bench::new();
        let settings = PromptSettings { width: Some(64), pooled: Some(32), length: 4, ..Default::default() };
        let op = Prompt::new(settings).unwrap();
        let prompts = ["a dog", "a cat", "a dog"].map(String::from).to_vec();
        let ((text, pooled), ()) = op.forward(&bench.ctx(), (Texts(prompts.into()), None)).unwrap();
        let (text, pooled) = (text.as_vec(), pooled.as_vec());
        let size = text.len() / 3;
        assert_eq!(text[..size], text[2 * size..]);
        assert_ne!(text[..size], text[size..2 * size]);
        assert_ne!(pooled[..32], pooled[32..64]);
    }
}
