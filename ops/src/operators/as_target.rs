//! `as-target`: a prediction in the role of a target, for distillation.
//!
//! Shape letters: `N` rows, `C` latent channels, `H` `W` latent grid.

use super::tensors::Fixed;
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Prediction, Target},
    role::As,
    settings::Nothing,
    shape::Axis,
};

/// What one network predicts, `[N, C, H, W]`, as what another is to predict.
pub struct AsTarget<C = usize, H = usize, W = usize>(Fixed<C, H, W>);

impl<C: Axis, H: Axis, W: Axis> Operator for AsTarget<C, H, W> {
    const NAME: &'static str = "as-target";
    const DOC: &'static str = "Take a prediction as a target: distillation. A target is a constant: no gradient crosses \
                               this node.";
    const IN: [&'static str; 1] = ["prediction"];
    const OUT: [&'static str; 1] = ["target"];
    type Settings = Nothing;
    type In = (Prediction<C, H, W>,);
    type Out = (Target<C, H, W>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self(Fixed::default()))
    }

    fn shapes(&self, (prediction,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((prediction,))
    }

    fn forward(&self, _: &Ctx<'_>, (As(_, prediction),): Self::In) -> Result<(Self::Out, ()), OpError> {
        Ok(((prediction.into(),), ()))
    }
}
