//! A few steps written down, so that a peer can repeat them: weights, adapter and inputs, and the loss and the norm of the
//! gradient that each step had.
//!
//! ```text
//!  weights.safetensors   the frozen tensors, by diffusers' names
//!  steps.safetensors     the first adapter (`lora.`); text, pooled, reference or image_prompt, winner, prior; x_t, target, t of each step
//!  record.json           shape, learning rate, losses, norms
//! ```

use std::{error::Error, path::Path};

use prefgraph::{Runner, StepOutput, Wire};
use prefgraph_nn::files::{Dtype, NamedTensor, write_atomically, write_safetensors};
use prefgraph_ops::{Carried, Port, T, dfdx::shapes::Shape};
use serde_json::json;

use crate::graph::Wires;

/// Steps that are written down.
const STEPS: usize = 3;

/// Run the first steps, and write them into a folder.
pub fn write(
    folder: &Path,
    about: serde_json::Value,
    frozen: &[NamedTensor<'_>],
    runner: &mut Runner,
    wires: &Wires,
) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    write_safetensors(&folder.join("weights.safetensors"), frozen, &[])?;

    let Wires { lora, references, image_prompt, text, pooled, winner, priors, x_t, target, times, update } =
        wires;
    for at in [
        lora.endpoint(),
        references.endpoint(),
        text.endpoint(),
        pooled.endpoint(),
        winner.endpoint(),
        priors.endpoint(),
        x_t.endpoint(),
        target.endpoint(),
        times.endpoint(),
        update.endpoint(),
    ] {
        runner.keep(at)?;
    }
    if let Some(tokens) = image_prompt {
        runner.keep(tokens.endpoint())?;
    }
    let (mut tensors, mut losses, mut norms) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..STEPS {
        let output = runner.step()?;
        if step == 0 {
            for factor in kept(&output, *lora)?.save()?.tensors {
                let name = format!("lora.{}", factor.name);
                tensors.push(NamedTensor::f32(name, factor.dims, &factor.values));
            }
            tensors.push(tensor("text", &kept(&output, *text)?));
            tensors.push(tensor("pooled", &kept(&output, *pooled)?));
            // As latents or as image tokens.
            let references = kept(&output, *references)?.0;
            tensors.extend(references.first().map(|reference| tensor("reference", reference)));
            if let Some(tokens) = image_prompt {
                tensors.push(tensor("image_prompt", &kept(&output, *tokens)?.1));
            }
            tensors.push(tensor("prior", &kept(&output, *priors)?.0[0]));
            let winner = kept(&output, *winner)?;
            tensors.push(NamedTensor {
                name: "winner".into(),
                dtype: Dtype::U8,
                shape: vec![winner.batch, winner.height, winner.width, 3],
                bytes: winner.rgb.to_vec().into(),
            });
        }
        tensors.push(tensor(&format!("x_t.{step}"), &kept(&output, *x_t)?.1));
        tensors.push(tensor(&format!("target.{step}"), &kept(&output, *target)?.1));
        let times = kept(&output, *times)?.values;
        tensors.push(NamedTensor::f32(format!("t.{step}"), vec![times.len()], &times));
        losses.push(output.loss.unwrap_or(f32::NAN));
        norms.push(kept(&output, *update)?.get("grad_norm").and_then(|m| m.mean()).unwrap_or(f64::NAN));
    }
    write_safetensors(&folder.join("steps.safetensors"), &tensors, &[])?;
    let record = json!({"about": about, "losses": losses, "grad_norms": norms});
    write_atomically(&folder.join("record.json"), serde_json::to_string_pretty(&record)?.as_bytes())?;
    Ok(())
}

fn kept<P: Port>(output: &StepOutput, wire: Wire<P>) -> Result<P, Box<dyn Error>> {
    output.value(wire).ok_or_else(|| "a step has not kept a value that was asked for".into())
}

fn tensor<S: Shape>(name: &str, values: &T<S>) -> NamedTensor<'static> {
    use prefgraph_ops::dfdx::shapes::HasShape;
    let dims = HasShape::shape(values).concrete().into_iter().collect();
    NamedTensor::f32(name, dims, &values.as_vec())
}
