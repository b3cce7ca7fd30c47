//! `reference`: a pass of the frozen network, without the trained adapter.
//!
//! Shape letters: `N` rows, `B` samples, `C` latent channels, `H` `W` latent grid.

use std::marker::PhantomData;

use dfdx::shapes::{HasShape, Shape};

use prefgraph_nn::{DeviceKind, Probe};

use super::{
    pass::{ConditionShapes, Conditions, Rows, forward_cost, prediction, reference_places},
    tensors::Fixed,
};
use crate::{
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    part::Part,
    ports::{
        BackboneHandle, ImagePrompt, Latents, List, Noised, Pooled, Prediction, Sizes, TextTokens, Timesteps,
    },
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

fn cost_on<C: Axis, H: Axis, W: Axis>(
    on: DeviceKind,
    (backbone, x_t, _, text, _, references, _, image_prompt): &InShapes<Reference<C, H, W>>,
) -> Cost {
    let grids = reference_places(backbone.layout(), references.as_ref(), image_prompt.as_ref());
    forward_cost(&backbone.0.cost(on, x_t.0, (x_t.2.size(), x_t.3.size()), &grids, text.1, None))
}

impl<C: Axis, H: Axis, W: Axis> Operator for Reference<C, H, W> {
    const NAME: &'static str = "reference";
    const DOC: &'static str = "Predict without the adapter: the frozen reference of DPO.";
    const IN: [&'static str; 8] =
        ["backbone", "x_t", "t", "text", "pooled", "references", "sizes", "image_prompt"];
    const OUT: [&'static str; 1] = ["prediction"];
    type Settings = ReferenceSettings;
    type In = (
        BackboneHandle,
        Noised<C, H, W>,
        Timesteps,
        TextTokens,
        Pooled,
        Option<List<Latents>>,
        Option<Sizes>,
        Option<ImagePrompt>,
    );
    type Out = (Prediction<C, H, W>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: ReferenceSettings) -> Result<Self, OpError> {
        Ok(Self { settings, axes: PhantomData })
    }

    fn shapes(
        &self,
        (backbone, x_t, t, text, pooled, references, sizes, image_prompt): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let conditions = ConditionShapes {
            t: &t,
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            sizes: sizes.as_ref(),
            image_prompt: image_prompt.as_ref(),
            guidance: self.settings.guidance,
        };
        conditions.check(backbone.layout(), x_t.concrete(), Rows::OfPairs)?;
        Ok((x_t,))
    }

    fn part(&self) -> Part {
        Part::Pass { guidance: self.settings.guidance }
    }

    fn cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        cost_on::<C, H, W>(DeviceKind::Cpu, inputs)
    }

    fn gpu_cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(cost_on::<C, H, W>(DeviceKind::Cuda, inputs))
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (backbone, As(_, x_t), t, text, pooled, references, sizes, image_prompt): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let conditions = Conditions {
            t: &t,
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            sizes: sizes.as_ref(),
            image_prompt: image_prompt.as_ref(),
            guidance: self.settings.guidance,
        };
        let inputs = conditions.inputs(ctx, &x_t)?;
        let found = backbone.0.predict(&inputs, None, &Probe::NOTHING)?.latents;
        Ok(((prediction(ctx, *HasShape::shape(&x_t), found)?.into(),), ()))
    }
}
