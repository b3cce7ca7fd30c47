//! Prompts and names of samples.

use std::sync::Arc;

use crate::{
    batched::Batched,
    port::{NoGrad, Port},
    rows::{Digest, SampleRows, digest},
    shape::PortShape,
};

/// One text a sample, `[B]`: prompts, or the samples' ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts(pub Arc<[String]>);

/// Shape of [`Texts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextsShape {
    /// `B`.
    pub batch: usize,
}

impl PortShape for TextsShape {
    fn describe(&self) -> String {
        format!("text[{}]", self.batch)
    }
    fn bytes(&self) -> usize {
        // A guess that only a page of prose would prove wrong.
        self.batch.saturating_mul(128)
    }
}

impl Port for Texts {
    type Grad = NoGrad;
    type Shape = TextsShape;

    fn label() -> String {
        "text[_]".into()
    }
    fn shape(&self) -> TextsShape {
        TextsShape { batch: self.0.len() }
    }
    fn rows() -> Option<SampleRows> {
        Some(SampleRows::of::<Self>())
    }
}

impl Batched for Texts {
    fn digests(&self) -> Vec<Digest> {
        self.0.iter().map(|text| digest("text", &[text.len()], [text])).collect()
    }
}
