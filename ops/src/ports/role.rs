//! The roles of the tensors that the shipped operators exchange.

use crate::role::Role;

macro_rules! roles {
    ($($(#[$doc:meta])+ $name:ident = $text:literal),* $(,)?) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name;

        impl Role for $name {
            const NAME: &'static str = $text;
        }
    )*};
}
roles! {
    /// Latents without noise, x_0.
    Clean = "clean",
    /// Latents mixed with noise, x_t.
    Noised = "noised",
    /// What was mixed in, eps.
    Noise = "noise",
    /// What a network should predict.
    Target = "target",
    /// What a network predicts, with an adapter or without.
    Prediction = "prediction",
    /// What a network sees in a picture, one vector a token.
    Features = "features",
    /// What a picture or a prompt is as a whole, for comparisons.
    Embedding = "embedding",
    /// Tokens that stand for pictures beside those of the text.
    ImagePrompt = "image-prompt",
    /// Where the subjects are, M_prior.
    Prior = "prior",
    /// What of the subjects was not found, M_s.
    Structure = "structure",
    /// Where the winner has detail, M_d.
    Detail = "detail",
    /// How well a patch was generated.
    Quality = "quality",
    /// Which samples go without their prompt.
    TextDrop = "text-drop",
    /// Which samples go without their reference pictures.
    ImageDrop = "image-drop",
}
