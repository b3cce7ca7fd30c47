//! `pick`: one reference out of several.

use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Clean, Latents, List},
    settings,
    words::count,
};

settings! {
    /// Settings of [`Pick`].
    pub struct PickSettings {
        /// Which one, from zero.
        pub index: usize = 0,
    }
}

/// The latents of one reference.
pub struct Pick(PickSettings);

impl Operator for Pick {
    const NAME: &'static str = "pick";
    const DOC: &'static str = "Take the latents of one reference out of the list of all.";
    const IN: [&'static str; 1] = ["references"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = PickSettings;
    type In = (List<Latents>,);
    type Out = (Clean,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PickSettings) -> Result<Self, OpError> {
        Ok(Self(settings))
    }

    fn shapes(&self, (references,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((*reference(&references.0, self.0.index)?,))
    }

    fn forward(&self, _: &Ctx<'_>, (references,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let found = references.0.get(self.0.index).cloned();
        let found = found.ok_or_else(|| OpError::internal("fewer references than the plan knew"))?;
        Ok(((found.into(),), ()))
    }
}

/// The reference of this number among those that all samples have.
pub(super) fn reference<S>(references: &[S], index: usize) -> Result<&S, OpError> {
    references.get(index).ok_or_else(|| {
        OpError::new(format!(
            "reference {index} is asked for (the first is 0), and there are samples with {}: leave such samples out \
             with `reference_counts` on the node that reads them",
            count(references.len(), "reference")
        ))
    })
}
