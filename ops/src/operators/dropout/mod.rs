//! Conditions that are left out at random in training, so that a network can be guided away from none of them.
//!
//! ```text
//! dropout            which samples go without their prompt, their reference pictures, or both
//! drop-text          prompts, with the empty prompt in the place of those
//! drop-image-prompt  image tokens, with those of no picture in the place of those
//! ```
//!
//! The encoders stand before, so that what they make can be cached: of a sample it is the same in every step, left out or not.
//!
//! Source: IP-Adapter's `tutorial_train_plus.py`, whose order of events PatchDPO's trainer has, too. Shape letters: `B` samples.

mod image_prompt;
mod rows;
#[cfg(test)]
mod tests;
mod text;

pub use image_prompt::DropImagePrompt;
pub use text::DropText;

use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{ImageDrop, MetricDoc, Metrics, MetricsShape, TextDrop, Texts},
    settings,
};

use super::tensors::tensor;

settings! {
    /// Settings of [`Dropout`].
    pub struct DropoutSettings {
        /// How often a sample goes without its reference pictures alone; IP-Adapter and PatchDPO have 0.05.
        pub image: f64 = 0.0,
        /// How often without its prompt alone; IP-Adapter and PatchDPO have 0.05, Diffusion-DPO 0.2.
        pub text: f64 = 0.0,
        /// How often without both; IP-Adapter and PatchDPO have 0.05.
        pub both: f64 = 0.0,
    }
}

/// One uniform number a sample: below `image` its pictures go, from there up to `text` more its prompt, and up to `both` more both.
pub struct Dropout(DropoutSettings);

impl Dropout {
    /// Whether text and pictures go.
    fn gone(&self, drawn: f64) -> [bool; 2] {
        let DropoutSettings { image, text, both } = self.0;
        if drawn < image {
            [false, true]
        } else if drawn < image + text {
            [true, false]
        } else {
            [drawn < image + text + both; 2]
        }
    }
}

impl Operator for Dropout {
    const NAME: &'static str = "dropout";
    const DOC: &'static str = "Draw which samples are trained without their prompt, without their reference pictures, or \
                               without both, as IP-Adapters are: 1 where it is left out, for drop-text and drop-image-prompt.";
    const IN: [&'static str; 1] = ["prompts"];
    const OUT: [&'static str; 3] = ["text", "image", "metrics"];
    const METRICS: &'static [MetricDoc] = &[
        MetricDoc::number("without_text", "Samples of the batch that are trained without their prompt."),
        MetricDoc::number(
            "without_pictures",
            "Samples of the batch that are trained without their reference pictures. One that lacks both is counted in each.",
        ),
    ];
    type Settings = DropoutSettings;
    type In = (Texts,);
    type Out = (TextDrop, ImageDrop, Metrics);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: DropoutSettings) -> Result<Self, OpError> {
        let DropoutSettings { image, text, both } = settings;
        let rates = [("image", image), ("text", text), ("both", both)];
        if let Some((name, rate)) = rates.into_iter().find(|(_, rate)| !(0.0..=1.0).contains(rate)) {
            return Err(OpError::new(format!(
                "{name} is {rate}: a share of the samples is needed, from 0 to 1"
            )));
        }
        if image + text + both > 1.0 {
            return Err(OpError::new(format!(
                "image, text and both are {image}, {text} and {both}: of the three only one happens to a sample, so that their sum \
                 is at most 1"
            )));
        }
        Ok(Self(settings))
    }

    fn shapes(&self, (prompts,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((prompts.batch,), (prompts.batch,), MetricsShape))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        let DropoutSettings { image, text, both } = self.0;
        let percent = |rate: f64| 100.0 * rate;
        vec![format!(
            "{} % of samples without pictures, {} % without a prompt, {} % without both",
            percent(image),
            percent(text),
            percent(both)
        )]
    }

    fn random(&self) -> Option<String> {
        Some("it draws what is left out of every sample".into())
    }

    fn forward(&self, ctx: &Ctx<'_>, (prompts,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let batch = prompts.0.len();
        let mut random = ctx.random("dropout");
        let gone: Vec<[bool; 2]> = (0..batch).map(|_| self.gone(random.uniform())).collect();
        let of = |which: usize| {
            let values = gone.iter().map(|gone| f32::from(u8::from(gone[which]))).collect();
            tensor(ctx, (batch,), values)
        };
        let count = |which: usize| gone.iter().filter(|gone| gone[which]).count() as f64;
        let mut metrics = Metrics::default();
        metrics.number("without_text", count(0));
        metrics.number("without_pictures", count(1));
        Ok(((of(0)?.into(), of(1)?.into(), metrics), ()))
    }
}
