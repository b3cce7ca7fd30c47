//! `reference`: a pass of the frozen network, without the trained adapter.
//!
//! Shape letters: `N` rows, `B` samples, `C` latent channels, `H` `W` latent grid.

use std::marker::PhantomData;

use dfdx::shapes::{HasShape, Shape};

use prefgraph_nn::Probe;

use super::{
    pass::{ConditionShapes, Conditions, prediction},
    tensors::Fixed,
};
use crate::{
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    part::Part,
    ports::{BackboneHandle, Latents, List, Noised, Pooled, Prediction, TextTokens, Timesteps},
    role::As,
    settings,
    shape::Axis,
};

settings! {
    /// Settings of [`Reference`].
    pub struct ReferenceSettings {
        /// Guidance value, for networks that take one; the same as the policy's.
        pub guidance: Option<f64> = None,
    }
}

/// The reference of preference optimisation: the policy's own kernels with the adapter off. No gradient crosses it,
/// and no cell reaches it, so that it may run ahead.
pub struct Reference<C = usize, H = usize, W = usize> {
    settings: ReferenceSettings,
    axes: Fixed<C, H, W>,
}

impl<C: Axis, H: Axis, W: Axis> Operator for Reference<C, H, W> {
    const NAME: &'static str = "reference";
    const DOC: &'static str = "Predict without the adapter: the frozen reference of DPO.";
    const IN: [&'static str; 6] = ["backbone", "x_t", "t", "text", "pooled", "references"];
    const OUT: [&'static str; 1] = ["prediction"];
    type Settings = ReferenceSettings;
    type In = (BackboneHandle, Noised<C, H, W>, Timesteps, TextTokens, Pooled, Option<List<Latents>>);
    type Out = (Prediction<C, H, W>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: ReferenceSettings) -> Result<Self, OpError> {
        Ok(Self { settings, axes: PhantomData })
    }

    fn shapes(
        &self,
        (backbone, x_t, t, text, pooled, references): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let conditions = ConditionShapes {
            t: &t,
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            guidance: self.settings.guidance,
        };
        conditions.check(backbone.layout(), x_t.concrete())?;
        Ok((x_t,))
    }

    fn part(&self) -> Part {
        Part::Pass { guidance: self.settings.guidance }
    }

    fn cost(&self, (backbone, x_t, _, text, _, references): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        let grids: Vec<_> = references.iter().flat_map(|r| &r.0).map(|r| (r.2, r.3)).collect();
        let pass = backbone.0.cost(x_t.0, (x_t.2.size(), x_t.3.size()), &grids, text.1, None);
        Cost {
            forward_flops: pass.forward_flops,
            moved_bytes: (backbone.layout().parameters * size_of::<f32>()) as f64,
            precision: pass.precision,
            scratch_bytes: pass.scratch_bytes,
            ..Cost::default()
        }
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (backbone, As(_, x_t), t, text, pooled, references): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let conditions = Conditions {
            t: &t,
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            guidance: self.settings.guidance,
        };
        let inputs = conditions.inputs(ctx, &x_t)?;
        let found = backbone.0.predict(&inputs, None, &Probe::NOTHING)?.latents;
        Ok(((prediction(ctx, *HasShape::shape(&x_t), found)?.into(),), ()))
    }
}
