//! The graph of one FocusDPO step.

use prefgraph::{Graph, Wire};
use prefgraph_nn::{Adapter, backbone::Time};
use prefgraph_ops::{
    OpError, Operator,
    operators::{
        entropy::{Entropy, EntropySettings},
        forward::{Forward, ForwardSettings},
        fuse::Fuse,
        hook_attention::HookAttention,
        lora::{Init, Lora, LoraSettings},
        lora_update::{LoraUpdate, LoraUpdateSettings},
        mask_field::MaskField,
        masked_loss::MaskedLoss,
        moments::ZeroMoments,
        noise::{Noise, NoiseSettings},
        reference::{Reference, ReferenceSettings},
        scores::Hooks,
    },
    ports::{
        ImagePrompt, Images, Latents, List, Mask, Metrics, Noised, PerSample, Pooled, Process, Target,
        TextTokens, Texts, Timesteps,
    },
};

use crate::{
    batch::{Draw, DrawImagePrompt},
    network::{Network, Open},
    shape::{CELL, Shape},
};

/// Nodes that a GPU works for, by their ids.
pub const PASSES: [&str; 3] = ["policy", "reference", "update"];

/// Guidance of networks that take it: what published DPO and UNO training use.
pub const GUIDANCE: f64 = 1.0;

/// The wires that another program needs to repeat a step.
pub struct Wires {
    pub lora: Wire<Adapter>,
    pub references: Wire<List<Latents>>,
    /// Where references are image tokens.
    pub image_prompt: Option<Wire<ImagePrompt>>,
    pub text: Wire<TextTokens>,
    pub pooled: Wire<Pooled>,
    pub winner: Wire<Images>,
    pub priors: Wire<List<Mask>>,
    pub x_t: Wire<Noised>,
    pub target: Wire<Target>,
    pub times: Wire<Timesteps>,
    pub update: Wire<Metrics>,
}

/// A step of a shape at so many pixels, with this learning rate.
pub fn step(network: &Network, shape: &Shape, pixels: usize, lr: f64) -> Result<(Graph, Wires), OpError> {
    let mut g = Graph::new("step");
    let layout = network.backbone().layout().clone();
    let (x0_w, x0_l, references, t, text, pooled, winner, priors) =
        g.add("draw", Draw::new(shape, &layout, pixels), ());
    let (sizes, image_prompt) = if layout.image_tokens {
        let (sizes, tokens) = g.add("draw_image_prompt", DrawImagePrompt::new(shape, &layout, pixels), ());
        (Some(sizes), Some(tokens))
    } else {
        (None, None)
    };
    let (backbone,) = g.add("network", Open(network.backbone()), ());
    let lora = LoraSettings {
        rank: shape.rank,
        init: Init::Kaiming,
        targets: shape.targets.clone(),
        ..Default::default()
    };
    let (lora,) = g.add("lora", Lora::new(lora)?, (backbone,));
    let (moments,) = g.add("moments", ZeroMoments, (lora,));
    let process = match layout.time {
        Time::Sigma => Process::Flow,
        Time::Step => Process::DdpmEps,
    };
    let noise = Noise::new(NoiseSettings { process, ..Default::default() })?;
    let (x_t, target, times, _) = g.add("noise", noise, (x0_w, x0_l, t, None));
    let guidance = layout.guidance.then_some(GUIDANCE);
    let listed = (!layout.image_tokens).then_some(references);
    let inputs = (backbone, x_t, times, text, pooled, listed, sizes, image_prompt);
    let (reference,) = g.add("reference", Reference::new(ReferenceSettings { guidance })?, inputs);
    let settings = ForwardSettings { guidance, hooks: Hooks::All, ..Default::default() };
    let masks = None::<Wire<List<Mask>>>;
    let inputs = (backbone, lora, x_t, times, text, pooled, listed, masks, sizes, image_prompt);
    let (policy, scores) = g.add("policy", Forward::new(settings)?, inputs);
    let (matched,) = g.add("found", HookAttention, (scores, priors));
    let (structure, prior) = g.add("structure", MaskField, (Some(matched), priors));
    let cell = Some(CELL * layout.patch);
    let entropy = Entropy::new(EntropySettings { cell, ..Default::default() })?;
    let (detail,) = g.add("detail", entropy, (winner,));
    let inputs = (Some(structure), Some(detail), prior, None::<Wire<PerSample>>);
    let (mask, ..) = g.add("fuse", Fuse::new(Default::default())?, inputs);
    let inputs = (policy, target, Some(reference), Some(mask), Some(t), None::<Wire<Texts>>);
    let (loss, _) = g.add("loss", MaskedLoss::new(Default::default())?, inputs);
    let settings = LoraUpdateSettings { lr, max_grad_norm: 0.0, ..Default::default() };
    let inputs = (lora, lora.cotangent(), moments);
    let (next, next_moments, update) = g.add("update", LoraUpdate::new(settings)?, inputs);
    g.set_loss(loss);
    g.carry(lora, next);
    g.carry(moments, next_moments);
    let wires =
        Wires { lora, references, image_prompt, text, pooled, winner, priors, x_t, target, times, update };
    Ok((g, wires))
}
