//! Effects: files that an operator asks for, which the run writes once the step has finished.

use std::sync::Arc;

use prefgraph_nn::{Adapter, lora::AdapterFormat};

use crate::{
    port::{NoGrad, Port},
    ports::{measured::Measurement, metrics::Metrics},
    shape::PortShape,
};

/// An 8-bit RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Row-major, channels last.
    pub rgb: Arc<Vec<u8>>,
}

/// One thing to be done after the step.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A line of `metrics.jsonl`.
    Record(Metrics),
    /// A file of the `preview` folder; the name has no suffix.
    Preview(String, Picture),
    /// Files of an adapter, one in each format.
    Export(Adapter, Vec<AdapterFormat>),
    /// A part of a measurement, which is summed up over several steps.
    Measure(Measurement),
}

/// Things to be done after the step. Their node never runs ahead.
#[derive(Clone, Debug, Default)]
pub struct Effects(pub Vec<Effect>);

/// Shape of [`Effects`]. All are alike: the bytes are a prediction, which a value does not have to keep.
#[derive(Clone, Debug, Default)]
pub struct EffectsShape {
    /// Bytes held until the end of the step.
    pub bytes: usize,
}

impl PartialEq for EffectsShape {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl PortShape for EffectsShape {
    fn describe(&self) -> String {
        "effects".into()
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Port for Effects {
    type Grad = NoGrad;
    type Shape = EffectsShape;

    fn label() -> String {
        "effects".into()
    }
    fn shape(&self) -> EffectsShape {
        EffectsShape::default()
    }
}
