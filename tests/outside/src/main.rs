//! The whole command with an operator of one's own, its settings and its choices, and a graph with a closure.

use std::process::ExitCode;

use prefgraph::{Graph, Registry, Wire, cli};
use prefgraph_ops::{
    Ctx, OpError, Operator, Scalar, choices,
    dfdx::tensor_ops::MeanTo,
    operator::{InShapes, OutShapes},
    ports::{Clean, Latents, Prediction, Target},
    settings,
};

choices! {
    /// Which way.
    pub enum Way {
        /// Smaller.
        Down = "down",
        /// Larger.
        Up = "up",
    }
}

settings! {
    /// Settings of [`Step`].
    pub struct StepSettings {
        /// Which way.
        pub way: Way = Way::Up,
        /// How far.
        pub by: f32 = 1.0,
        /// At most, where there is a limit.
        pub limit: Option<f32> = None,
    }
}

/// Adds a constant to latents.
pub struct Step(f32);

impl Operator for Step {
    const NAME: &'static str = "step";
    const DOC: &'static str = "Add a constant to latents.";
    const IN: [&'static str; 1] = ["latents"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = StepSettings;
    type In = (Clean,);
    type Out = (Clean,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: StepSettings) -> Result<Self, OpError> {
        let by = if settings.way == Way::Up { settings.by } else { -settings.by };
        Ok(Self(settings.limit.map_or(by, |limit| by.min(limit))))
    }

    fn shapes(&self, (latents,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((latents,))
    }

    fn forward(&self, _: &Ctx<'_>, (latents,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let moved: Latents = latents.1 + self.0;
        Ok(((moved.into(),), ()))
    }
}

/// The mean squared error.
pub fn loss(graph: &mut Graph, policy: Wire<Prediction>, target: Wire<Target>) -> Wire<Scalar> {
    graph.op("error", (policy, target), |policy, target| (policy - target).square().mean())
}

fn main() -> ExitCode {
    let mut registry = Registry::standard();
    registry.register::<Step>();
    cli::main_with(registry)
}
