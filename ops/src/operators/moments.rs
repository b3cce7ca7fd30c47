//! `moments`: the state of the optimiser before the first step.

use prefgraph_nn::{Adapter, device::DeviceVec};

use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Moments, MomentsShape},
    settings::Nothing,
};

/// Zero moments for an adapter: a cell, whose later values come from `lora-update`.
pub struct ZeroMoments;

impl Operator for ZeroMoments {
    const NAME: &'static str = "moments";
    const DOC: &'static str = "What AdamW and accumulation remember, before the first step. It is a cell: carry the \
                               moments of lora-update into it.";
    const IN: [&'static str; 1] = ["adapter"];
    const OUT: [&'static str; 1] = ["moments"];
    type Settings = Nothing;
    type In = (Adapter,);
    type Out = (Moments,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(&self, (adapter,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((MomentsShape(adapter.0),))
    }

    fn forward(&self, _: &Ctx<'_>, (adapter,): Self::In) -> Result<(Self::Out, ()), OpError> {
        // They move to the device of the first gradient.
        let zeros = DeviceVec::from(vec![0.0; adapter.values.len()]);
        let moments = Moments {
            layout: adapter.layout,
            m: zeros.clone(),
            v: zeros,
            pending: DeviceVec::default(),
            micro_batches: 0,
            updates: 0,
            travel: 0.0,
        };
        Ok(((moments,), ()))
    }
}
