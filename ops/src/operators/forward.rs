//! `forward`: the policy, a frozen network with an adapter.
//!
//! Shape letters: `N` rows, `B` samples (`N` is `B`, or `2B` with winners first), `C` latent channels, `H` `W` latent
//! grid, `R` references, `T` target tokens, `h` `w` token grid of a reference.

use std::{collections::BTreeSet, marker::PhantomData, ops::Range, sync::Arc};

use dfdx::shapes::{HasShape, Shape};
use prefgraph_nn::{
    self as nn, Adapter, DeviceKind, Probe,
    backbone::{Saved, Scoring},
};

use super::{
    pass::{ConditionShapes, Conditions, Rows, check_adapter, forward_cost, prediction, reference_places},
    scores::Hooks,
    tensors::{Fixed, latents_to_nn, same, tensor},
};
use crate::{
    operator::{Cost, Ctx, InGrads, InShapes, OpError, Operator, OutGrads, OutShapes, Shared, Wanted},
    part::Part,
    ports::{
        BackboneHandle, ImagePrompt, Latents, List, ListShape, Mask, Noised, Pooled, Prediction, Scores,
        Sizes, TextTokens, Timesteps,
    },
    role::As,
    row_major::RowMajor,
    settings,
    shape::Axis,
};

settings! {
    /// Settings of [`Forward`].
    pub struct ForwardSettings {
        /// Guidance value, for networks that take one. Published DPO and UNO training use 1.
        pub guidance: Option<f64> = None,
        /// After which blocks the winners' tokens are compared with the references (FocusDPO, Eq. 3).
        pub hooks: Hooks = Hooks::Off,
        /// Of a U-Net: only cross-attentions whose pixels are so many latent cells wide; all where it is not given.
        pub hook_cells: Option<usize> = None,
    }
}

/// The policy's prediction, with a gradient into the adapter and nothing else, and the winners' scores, which carry
/// no gradient.
pub struct Forward<C = usize, H = usize, W = usize> {
    settings: ForwardSettings,
    axes: Fixed<C, H, W>,
}

/// What [`Forward`] keeps for its backward.
pub struct SavedForward {
    backbone: Arc<dyn nn::Backbone>,
    adapter: Adapter,
    saved: Saved,
}

impl<C: Axis, H: Axis, W: Axis> Forward<C, H, W> {
    fn blocks(&self, layout: &nn::BackboneLayout) -> Result<Range<usize>, OpError> {
        let blocks = self.settings.hooks.blocks(layout);
        if blocks.is_empty() && self.settings.hooks != Hooks::Off {
            return Err(OpError::new(format!(
                "hooks {}: the {} has no such block",
                self.settings.hooks.name(),
                layout.kind
            )));
        }
        if let Some(cells) = self.settings.hook_cells {
            self.check_cells(cells, layout)?;
        }
        Ok(blocks)
    }

    /// Has the network blocks whose pixels are so wide?
    fn check_cells(&self, cells: usize, layout: &nn::BackboneLayout) -> Result<(), OpError> {
        let there: BTreeSet<usize> = layout.block_cells.iter().copied().collect();
        if there.contains(&cells) {
            return Ok(());
        }
        let there: Vec<String> = there.iter().map(usize::to_string).collect();
        Err(OpError::new(match &there[..] {
            [] => format!(
                "hook_cells: all blocks of the {} have the same tokens, of which none are left out: leave it out",
                layout.kind
            ),
            there => format!(
                "hook_cells {cells}: pixels of the {}'s cross-attentions are {} latent cells wide",
                layout.kind,
                there.join(" or ")
            ),
        }))
    }

    /// Token weights of every reference: its mask, or ones.
    fn masks(
        references: &List<Latents>,
        masks: Option<List<Mask>>,
        patch: usize,
    ) -> Result<Vec<Vec<f32>>, OpError> {
        let Some(masks) = masks else {
            let tokens = |r: &Latents| {
                let &(batch, _, h, w) = HasShape::shape(r);
                batch * (h / patch) * (w / patch)
            };
            return Ok(references.0.iter().map(|r| vec![1.0; tokens(r)]).collect());
        };
        let mut out = Vec::with_capacity(masks.0.len());
        for (r, mask) in masks.0.iter().enumerate() {
            let &(_, _, h, w) = HasShape::shape(mask);
            let values = mask.row_major();
            if let Some(b) = values.chunks_exact(h * w).position(|m| !m.iter().any(|v| *v > 0.0)) {
                return Err(OpError::new(format!(
                    "sample {b}: the mask of reference {r} is empty: there is nothing to look for"
                )));
            }
            out.push(values);
        }
        Ok(out)
    }
}

/// References that share out image tokens, and the tokens of each: as many as there are masks, which have no other use there, since image tokens stand for no place
/// in a picture. Each must have all that the resampler makes of a picture: averaged ones are of no reference alone.
fn shares(
    layout: &nn::BackboneLayout,
    given: usize,
    masks: Option<usize>,
) -> Result<(usize, usize), OpError> {
    let count = masks.unwrap_or(1).max(1);
    let tokens = layout.prompt_tokens(given).unwrap_or(given);
    if !tokens.is_multiple_of(count) {
        return Err(OpError::new(format!(
            "image_prompt has {tokens} tokens, which {count} references (those of reference_masks) cannot share equally"
        )));
    }
    let each = tokens / count;
    match layout.queries {
        Some(queries) if count > 1 && queries != each => Err(OpError::new(format!(
            "image_prompt has {tokens} tokens for {count} references (those of reference_masks), and the IP-Adapter makes {queries} of each picture: \
             scores need the tokens of every reference, `together: concatenated` at the node that makes them"
        ))),
        _ => Ok((count, each)),
    }
}

fn cost_on<C: Axis, H: Axis, W: Axis>(
    on: DeviceKind,
    (backbone, adapter, x_t, _, text, _, references, _, _, image_prompt): &InShapes<Forward<C, H, W>>,
) -> Cost {
    let grids = reference_places(backbone.layout(), references.as_ref(), image_prompt.as_ref());
    let size = (x_t.2.size(), x_t.3.size());
    let pass = backbone.0.cost(on, x_t.0, size, &grids, text.1, Some(&adapter.0));
    // The weights once more, where a backward reads a copy of its own.
    let weights = |adapter| backbone.0.resident_bytes(on, adapter);
    let backward_weights = weights(Some(&adapter.0)) - weights(None);
    Cost {
        backward_flops: pass.backward_flops,
        saved_bytes: pass.saved_bytes.saturating_add(pass.factor_bytes),
        scratch_bytes: pass.scratch_bytes,
        backward_scratch_bytes: pass.backward_scratch_bytes,
        alone_bytes: Some(forward_cost(&pass).scratch_bytes),
        shared: Some(Shared { input: 0, bytes: backward_weights }),
        urgent: true,
        ..forward_cost(&pass)
    }
}

impl<C: Axis, H: Axis, W: Axis> Operator for Forward<C, H, W> {
    const NAME: &'static str = "forward";
    const DOC: &'static str = "Predict with the adapter (the policy); with hooks, also score every target token of the \
                               winners by its likeness to each reference. Text, pooled text and references are \
                               repeated where x_t has winners and losers.";
    const IN: [&'static str; 10] = [
        "backbone",
        "adapter",
        "x_t",
        "t",
        "text",
        "pooled",
        "references",
        "reference_masks",
        "sizes",
        "image_prompt",
    ];
    const OUT: [&'static str; 2] = ["prediction", "scores"];
    type Settings = ForwardSettings;
    type In = (
        BackboneHandle,
        Adapter,
        Noised<C, H, W>,
        Timesteps,
        TextTokens,
        Pooled,
        Option<List<Latents>>,
        Option<List<Mask>>,
        Option<Sizes>,
        Option<ImagePrompt>,
    );
    type Out = (Prediction<C, H, W>, List<Scores>);
    type Saved = Option<SavedForward>;
    const DIFFERENTIABLE: bool = true;

    fn new(settings: ForwardSettings) -> Result<Self, OpError> {
        Ok(Self { settings, axes: PhantomData })
    }

    fn shapes(
        &self,
        (backbone, adapter, x_t, t, text, pooled, references, masks, sizes, image_prompt): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let layout = backbone.layout();
        let conditions = ConditionShapes {
            t: &t,
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            sizes: sizes.as_ref(),
            image_prompt: image_prompt.as_ref(),
            guidance: self.settings.guidance,
        };
        conditions.check(layout, x_t.concrete(), Rows::OfPairs)?;
        check_adapter(layout, &adapter.0)?;
        let grids = conditions.reference_grids();
        let count = match image_prompt {
            // What is not scored need not be shared out.
            Some(_) if self.blocks(layout)?.is_empty() => 0,
            Some(tokens) => shares(layout, tokens.1, masks.as_ref().map(|masks| masks.0.len()))?.0,
            None => grids.len(),
        };
        if let (Some(masks), None) = (&masks, image_prompt) {
            same("the number of reference masks", masks.0.len(), "the number of references", grids.len())?;
            for (r, (mask, (height, width))) in masks.0.iter().zip(&grids).enumerate() {
                let tokens = (text.0, height / layout.patch, width / layout.patch);
                same(
                    &format!("reference mask {r}"),
                    (mask.0, mask.2, mask.3),
                    "the reference's token grid",
                    tokens,
                )?;
            }
        }
        let tokens = (x_t.2.size() / layout.patch) * (x_t.3.size() / layout.patch);
        let scored = if self.blocks(layout)?.is_empty() { 0 } else { count };
        Ok((x_t, ListShape(vec![(text.0, tokens); scored])))
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

    fn notes(&self, (backbone, .., references, masks, _, image_prompt): &InShapes<Self>) -> Vec<String> {
        let given = masks.as_ref().map(|masks| masks.0.len());
        let count = match image_prompt {
            Some(_) => given.unwrap_or(1),
            None => references.as_ref().map_or(0, |r| r.0.len()),
        };
        let Ok(blocks) = self.blocks(backbone.layout()) else { return Vec::new() };
        if blocks.is_empty() || count == 0 {
            return Vec::new();
        }
        let pooled = match (image_prompt, masks) {
            (Some(_), _) => "its image tokens, as keys",
            (None, Some(_)) => "its foreground tokens",
            (None, None) => "all its tokens",
        };
        vec![format!(
            "scores: cosine with the mean of {pooled}, over blocks {} to {} of {}",
            blocks.start,
            blocks.end - 1,
            backbone.layout().blocks
        )]
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (backbone, adapter, As(_, x_t), t, text, pooled, references, masks, sizes, image_prompt): Self::In,
    ) -> Result<(Self::Out, Option<SavedForward>), OpError> {
        let layout = backbone.0.layout();
        let shape = *HasShape::shape(&x_t);
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
        let blocks = self.blocks(layout)?;
        let samples = HasShape::shape(&text).0;
        let masks = match (&references, &image_prompt) {
            _ if blocks.is_empty() => Vec::new(),
            (_, Some(As(_, tokens))) => {
                let given = HasShape::shape(tokens).1;
                let (count, each) = shares(layout, given, masks.map(|masks| masks.0.len()))?;
                vec![vec![1.0; samples * each]; count]
            }
            (Some(references), None) => Self::masks(references, masks, layout.patch)?,
            (None, None) => Vec::new(),
        };
        let tokens = (shape.2.size() / layout.patch) * (shape.3.size() / layout.patch);
        let scoring = (!masks.is_empty()).then_some(Scoring {
            blocks,
            cells: self.settings.hook_cells,
            samples,
            masks: &masks,
        });
        let probe = Probe { scores: scoring, ..Probe::NOTHING };
        let (found, saved) = if ctx.backward_follows {
            let (found, saved) = backbone.0.predict_saving(&inputs, &adapter, &probe)?;
            (found, Some(saved))
        } else {
            (backbone.0.predict(&inputs, Some(&adapter), &probe)?, None)
        };
        let scores = found
            .scores
            .into_iter()
            .map(|s| tensor(ctx, (samples, tokens), s))
            .collect::<Result<Vec<_>, _>>()?;
        let out = (prediction(ctx, shape, found.latents)?.into(), List(scores));
        let saved = saved.map(|saved| SavedForward { backbone: backbone.0, adapter, saved });
        Ok((out, saved))
    }

    fn backward(
        &self,
        ctx: &Ctx<'_>,
        wanted: Wanted<'_>,
        kept: Option<SavedForward>,
        (grad, _): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        if let Some(other) = (2..wanted.len()).find(|i| wanted[*i]) {
            return Err(OpError::new(format!(
                "a gradient into `{}` is asked for: a pass gives one into `adapter` only",
                Self::IN[other]
            )));
        }
        let adapter = match grad {
            Some(grad) if wanted[1] => {
                let kept = kept.ok_or_else(|| OpError::internal("a backward that was not announced"))?;
                let cotangent = latents_to_nn(ctx, &grad)?;
                Some(kept.backbone.backward(kept.saved, &kept.adapter, &cotangent)?)
            }
            _ => None,
        };
        Ok((None, adapter, None, None, None, None, None, None, None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operators::{
            backbone::{Backbone, BackboneKind, BackboneSettings},
            testing::case,
        },
        settings::DataPath,
    };

    fn layout(kind: BackboneKind, weights: &str, ip_adapter: &str) -> nn::BackboneLayout {
        let ip_adapter = match ip_adapter {
            "" => DataPath::default(),
            file => DataPath(case(weights).join(file)),
        };
        let settings =
            BackboneSettings { kind, weights: DataPath(case(weights)), ip_adapter, ..Default::default() };
        Backbone::new(settings).unwrap().shapes((), 0).unwrap().0.layout().clone()
    }

    #[test]
    fn cells_of_hooks_are_those_of_a_cross_attention_and_none_of_a_flux() {
        let unet = layout(BackboneKind::Sdxl, "sdxl_ipa", "ip-adapter-plus_sdxl.safetensors");
        let blocks = |layout: &nn::BackboneLayout, hook_cells| {
            let settings = ForwardSettings { hooks: Hooks::All, hook_cells, ..Default::default() };
            Forward::<usize, usize, usize>::new(settings).unwrap().blocks(layout).map_err(|e| e.to_string())
        };
        let all = blocks(&unet, None).unwrap();
        assert_eq!(all.len(), unet.block_cells.len());
        for cells in &unet.block_cells {
            assert_eq!(blocks(&unet, Some(*cells)), Ok(all.clone()));
        }
        let error = blocks(&unet, Some(3)).unwrap_err();
        assert!(error.contains("hook_cells 3") && error.contains("latent cells wide"), "{error}");
        let flux = layout(BackboneKind::FluxUno, "flux_uno", "");
        assert!(blocks(&flux, Some(2)).unwrap_err().contains("leave it out"));
    }

    #[test]
    fn image_tokens_are_shared_out_only_where_each_reference_has_those_of_a_picture() {
        let unet = layout(BackboneKind::Sdxl, "sdxl_ipa", "ip-adapter-plus_sdxl.safetensors");
        let queries = unet.queries.unwrap();
        assert_eq!(shares(&unet, 2 * queries, Some(2)).unwrap(), (2, queries));
        assert_eq!(shares(&unet, queries, Some(1)).unwrap(), (1, queries));
        // Averaged tokens of two pictures.
        let error = shares(&unet, queries, Some(2)).unwrap_err().to_string();
        assert!(error.contains("together: concatenated"), "{error}");
    }
}
