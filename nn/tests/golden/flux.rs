//! What a pass and its backward over the network of a FLUX case take: inputs with a cotangent, and an adapter.

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, Inputs,
    backbone::{BackboneLayout, Latents},
    lora::AdapterLayout,
};

use crate::{case::Case, numbers::numbers};

/// The inputs of a case, and a cotangent for their prediction.
pub fn inputs_and_cotangent(case: &Case) -> (Inputs, Latents) {
    let inputs = case.inputs(&case.file("forward.safetensors"), "", &["x_t"]);
    let mut cotangent = inputs.x_t.clone();
    let count = cotangent.values().len();
    cotangent.values_mut().copy_from_slice(&numbers(count, 1));
    (inputs, cotangent)
}

/// An adapter of rank 3 for the linears that these patterns name, with values up to `size` in A and in B.
pub fn adapter(layout: &BackboneLayout, patterns: &[&str], size: f32) -> Adapter {
    let layout = Arc::new(AdapterLayout::matching(&layout.linears, patterns, 3, 4.5).unwrap().0);
    let values: Vec<f32> = numbers(layout.len(), 2).iter().map(|v| size * v).collect();
    Adapter { layout, values: values.into() }
}
