//! A custom operator in graph files: `main_with` builds the whole command around it.
//!
//!     cargo run --release --example custom_operator -- ops scale-latents
//!
//! In a graph file: `(id: "scaled", op: "scale-latents", in: (latents: "winner"), with: (factor: 0.9))`.

use std::process::ExitCode;

use prefgraph::{Registry, cli};
use prefgraph_ops::{
    Ctx, OpError, Operator, Wanted,
    operator::{InGrads, InShapes, OutGrads, OutShapes},
    ports::Latents,
    settings,
};

settings! {
    /// Settings of [`ScaleLatents`].
    pub struct ScaleSettings {
        /// What every value is multiplied by.
        pub factor: f32 = 1.0,
    }
}

/// Multiplies latents by a constant.
pub struct ScaleLatents(ScaleSettings);

impl Operator for ScaleLatents {
    const NAME: &'static str = "scale-latents";
    const DOC: &'static str = "Multiply latents by a constant.";
    const IN: [&'static str; 1] = ["latents"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = ScaleSettings;
    type In = (Latents,);
    type Out = (Latents,);
    type Saved = ();
    const DIFFERENTIABLE: bool = true;

    fn new(settings: ScaleSettings) -> Result<Self, OpError> {
        if !settings.factor.is_finite() {
            return Err(OpError::new(format!("factor {}: a finite number is needed", settings.factor)));
        }
        Ok(Self(settings))
    }

    fn shapes(&self, (latents,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((latents,))
    }

    fn forward(&self, _: &Ctx<'_>, (latents,): Self::In) -> Result<(Self::Out, ()), OpError> {
        Ok(((latents * self.0.factor,), ()))
    }

    fn backward(
        &self,
        _: &Ctx<'_>,
        wanted: Wanted<'_>,
        (): (),
        (grad,): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        Ok((grad.filter(|_| wanted[0]).map(|g| g * self.0.factor),))
    }
}

fn main() -> ExitCode {
    let mut registry = Registry::standard();
    registry.register::<ScaleLatents>();
    cli::main_with(registry)
}
