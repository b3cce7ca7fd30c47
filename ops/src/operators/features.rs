//! `features`: the frozen network's own tokens as picture features, in place of a vision encoder.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid, `h` `w` token grid, `F` feature width.

use dfdx::shapes::HasShape;
use prefgraph_nn::{DeviceKind, backbone::Time};

use super::{
    pass::{ConditionShapes, Conditions, Rows, forward_cost},
    tensors::tensor,
};
use crate::{
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{self, BackboneHandle, Clean, Pooled, Process, TextTokens, TimeShape, Timesteps},
    role::As,
    settings,
};

settings! {
    /// Settings of [`Features`].
    pub struct FeaturesSettings {
        /// Guidance value, for networks that take one.
        pub guidance: Option<f64> = None,
    }
}

/// Image tokens of the last block with two streams, for clean latents at time zero and without references.
pub struct Features(FeaturesSettings);

type Grid = (usize, usize, usize, usize);

impl Features {
    fn check(&self, (backbone, latents, text, pooled): &InShapes<Self>) -> Result<(), OpError> {
        let time = TimeShape { batch: latents.0, process: Process::Flow };
        let conditions = ConditionShapes {
            t: &time,
            text,
            pooled,
            references: None,
            sizes: None,
            image_prompt: None,
            guidance: self.0.guidance,
        };
        let layout = backbone.layout();
        if layout.time == Time::Step {
            return Err(OpError::new(format!(
                "features are tokens of the last block with two streams, and the {} has none: take `picture-features`, tokens of a vision encoder",
                layout.kind
            )));
        }
        conditions.check(layout, [latents.0, latents.1, latents.2, latents.3], Rows::OfSamples)
    }
}

fn cost_on(on: DeviceKind, (backbone, latents, text, _): &InShapes<Features>) -> Cost {
    let pass = backbone.0.cost(on, latents.0, (latents.2, latents.3), &[], text.1, None);
    // At most a whole pass: the blocks with one stream do not run.
    Cost { moved_bytes: 0.0, ..forward_cost(&pass) }
}

impl Operator for Features {
    const NAME: &'static str = "features";
    const DOC: &'static str = "Features of clean latents, one a token: the frozen network's own image tokens after its \
                               last block with two streams.";
    const IN: [&'static str; 4] = ["backbone", "latents", "text", "pooled"];
    const OUT: [&'static str; 1] = ["features"];
    type Settings = FeaturesSettings;
    type In = (BackboneHandle, Clean, TextTokens, Pooled);
    type Out = (ports::Features,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: FeaturesSettings) -> Result<Self, OpError> {
        Ok(Self(settings))
    }

    fn shapes(&self, inputs: InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        self.check(&inputs)?;
        let (backbone, (batch, _, height, width), ..) = inputs;
        let layout = backbone.layout();
        Ok(((batch, height / layout.patch, width / layout.patch, layout.width),))
    }

    fn cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        cost_on(DeviceKind::Cpu, inputs)
    }

    fn gpu_cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(cost_on(DeviceKind::Cuda, inputs))
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (backbone, As(_, latents), text, pooled): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let &(batch, _, height, width) = HasShape::shape(&latents);
        let t = Timesteps::new(Process::Flow, vec![0.0; batch]);
        let conditions = Conditions {
            t: &t,
            text: &text,
            pooled: &pooled,
            references: None,
            sizes: None,
            image_prompt: None,
            guidance: self.0.guidance,
        };
        let inputs = conditions.inputs(ctx, &latents)?;
        let found = backbone.0.features(&inputs)?;
        let patch = backbone.0.layout().patch;
        let shape: Grid = (batch, height / patch, width / patch, found.shape().2);
        Ok(((tensor(ctx, shape, found.into_values())?.into(),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operators::{
            backbone::{Backbone, BackboneSettings},
            testing::{Bench, case, latents},
        },
        settings::DataPath,
    };

    #[test]
    fn features_stand_on_the_token_grid_and_depend_on_the_picture() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let weights = DataPath(case("flux_uno"));
        let backbone = Backbone::new(BackboneSettings { weights, ..Default::default() }).unwrap();
        let backbone = backbone.forward(&ctx, ()).unwrap().0.0;
        let op = Features::new(FeaturesSettings::default()).unwrap();
        let run = |seed| {
            let text = tensor(&ctx, (2, 5, 24), vec![0.1; 240]).unwrap();
            let pooled = tensor(&ctx, (2, 20), vec![0.1; 40]).unwrap();
            let inputs = (backbone.clone(), latents(&ctx, (2, 16, 4, 6), seed), text, pooled);
            op.forward(&ctx, inputs).unwrap().0.0
        };
        let (a, b) = (run(1), run(2));
        assert_eq!(*HasShape::shape(&*a), (2, 2, 3, 32));
        assert_ne!(a.as_vec(), b.as_vec());
        assert_eq!(a.as_vec(), run(1).as_vec());
    }

    #[test]
    fn a_u_net_is_refused_with_what_takes_its_place() {
        use crate::operators::backbone::BackboneKind;
        let weights = DataPath(case("sdxl_ipa"));
        let settings = BackboneSettings { kind: BackboneKind::Sdxl, weights, ..Default::default() };
        let (backbone,) = Backbone::new(settings).unwrap().shapes((), 0).unwrap();
        let layout = backbone.layout().clone();
        let inputs =
            (backbone, (1, layout.channels, 8, 8), (1, 5, layout.text_width), (1, layout.pooled_width));
        let error =
            Features::new(FeaturesSettings::default()).unwrap().shapes(inputs, 0).unwrap_err().to_string();
        assert!(error.contains("take `picture-features`"), "{error}");
    }
}
