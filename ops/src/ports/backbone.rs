//! A frozen network, shared by every node that reads it.

use std::{fmt, sync::Arc};

use prefgraph_nn::{Backbone, BackboneLayout};

use crate::{
    port::{NoGrad, Port},
    shape::PortShape,
};

/// A handle on a frozen backbone. Cloning is cheap.
#[derive(Clone)]
pub struct BackboneHandle(pub Arc<dyn Backbone>);

impl fmt::Debug for BackboneHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shape().describe())
    }
}

/// Shape of a [`BackboneHandle`]: the network without its weights, which can count and check but holds no values.
#[derive(Clone)]
pub struct BackboneShape(pub Arc<dyn Backbone>);

impl BackboneShape {
    /// What is known of the network.
    pub fn layout(&self) -> &BackboneLayout {
        self.0.layout()
    }
}

impl fmt::Debug for BackboneShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl PartialEq for BackboneShape {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.layout() == other.layout()
    }
}

impl PortShape for BackboneShape {
    fn describe(&self) -> String {
        let layout = self.layout();
        format!("{} {:.1}M", layout.kind, layout.parameters as f64 / 1e6)
    }
    fn bytes(&self) -> usize {
        // A handle: the weights are the resident bytes of the node that opens them.
        size_of::<usize>()
    }
}

impl Port for BackboneHandle {
    type Grad = NoGrad;
    type Shape = BackboneShape;

    fn label() -> String {
        "backbone".into()
    }
    fn shape(&self) -> BackboneShape {
        BackboneShape(self.0.clone())
    }
    fn hollow(shape: &BackboneShape) -> Option<Self> {
        Some(Self(shape.0.clone()))
    }
}
