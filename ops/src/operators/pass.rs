//! The conditions of a pass through a backbone, checked and converted to the network's tensors.
//!
//! Shape letters: `N` rows of noised latents, `B` samples of conditions (`N` is `B` or `2B`), `C` latent channels,
//! `H` `W` latent grid, `L` text tokens, `K` image tokens, `E` text width, `P` pooled width.

use dfdx::shapes::{HasShape, Shape};
use prefgraph_nn::{
    self as nn, AdapterLayout, BackboneLayout, PassCost, backbone::Time, models::unet::IMAGE_TOKENS,
};

use super::{
    sizes::PIXELS_OF_A_CELL,
    tensors::{latents_to_nn, repeat, same, tensor},
};
use crate::{
    operator::{Cost, Ctx, OpError},
    port::{Port, T},
    ports::{ImagePrompt, Latents, List, ListShape, Pooled, Sizes, TextTokens, TimeShape, Timesteps},
    role::As,
    row_major::RowMajor,
    shape::Axis,
    words::count,
};

/// The conditions of a pass: time, text, pooled text, and references, as latents or as image tokens.
#[derive(Clone, Copy)]
pub(crate) struct Conditions<'a> {
    pub t: &'a Timesteps,
    pub text: &'a TextTokens,
    pub pooled: &'a Pooled,
    pub references: Option<&'a List<Latents>>,
    pub sizes: Option<&'a Sizes>,
    pub image_prompt: Option<&'a ImagePrompt>,
    pub guidance: Option<f64>,
}

/// The same before there are values.
#[derive(Clone, Copy)]
pub(crate) struct ConditionShapes<'a> {
    pub t: &'a TimeShape,
    pub text: &'a <TextTokens as Port>::Shape,
    pub pooled: &'a <Pooled as Port>::Shape,
    pub references: Option<&'a ListShape<<Latents as Port>::Shape>>,
    pub sizes: Option<&'a <Sizes as Port>::Shape>,
    pub image_prompt: Option<&'a <ImagePrompt as Port>::Shape>,
    pub guidance: Option<f64>,
}

/// Latent grids of the references of a pass.
pub(crate) fn reference_grids(
    references: Option<&ListShape<<Latents as Port>::Shape>>,
) -> Vec<(usize, usize)> {
    references.iter().flat_map(|r| r.0.iter()).map(|r| (r.2, r.3)).collect()
}

/// The same where references may be image tokens: a pass costs by their number.
pub(crate) fn reference_places(
    layout: &BackboneLayout,
    references: Option<&ListShape<<Latents as Port>::Shape>>,
    image_prompt: Option<&<ImagePrompt as Port>::Shape>,
) -> Vec<(usize, usize)> {
    let each = layout.pictures.map_or(IMAGE_TOKENS, |pictures| pictures.count.max(1));
    match image_prompt {
        Some((_, tokens, _)) => vec![(1, IMAGE_TOKENS); tokens.div_ceil(each)],
        None => reference_grids(references),
    }
}

/// What a node costs that runs a pass forward.
pub(crate) fn forward_cost(pass: &PassCost) -> Cost {
    Cost {
        forward_flops: pass.forward_flops,
        moved_bytes: pass.weight_bytes,
        precision: pass.precision,
        scratch_bytes: pass.scratch_bytes.saturating_add(pass.factor_bytes),
        queue_bytes: pass.queue_bytes,
        host_bytes: pass.host_bytes,
        ..Cost::default()
    }
}

/// The network must have every linear that the adapter has factors for.
pub(crate) fn check_adapter(layout: &BackboneLayout, adapter: &AdapterLayout) -> Result<(), OpError> {
    for module in adapter.modules.iter().chain(&adapter.whole) {
        if !layout
            .linears
            .iter()
            .any(|l| l.name == module.name && (l.inputs, l.outputs) == (module.inputs, module.outputs))
        {
            return Err(OpError::new(format!(
                "the adapter has `{}` ({} to {}), which this {} does not have",
                module.name, module.inputs, module.outputs, layout.kind
            )));
        }
    }
    Ok(())
}

/// A grid of latents must be cut into whole tokens.
fn check_latents(layout: &BackboneLayout, what: &str, dims: [usize; 4]) -> Result<(), OpError> {
    let [_, channels, height, width] = dims;
    if channels != layout.channels {
        return Err(OpError::new(format!(
            "{what} has {channels} channels, the {} takes {}",
            layout.kind, layout.channels
        )));
    }
    if [height, width].iter().all(|side| *side > 0 && side.is_multiple_of(layout.whole)) {
        return Ok(());
    }
    let (kind, whole) = (&layout.kind, layout.whole);
    let why = if whole == layout.patch {
        format!(
            "a token of the {kind} is {whole} x {whole} cells, so that the sides of pictures are multiples of {} pixels",
            whole * PIXELS_OF_A_CELL
        )
    } else {
        format!(
            "the {kind} halves rows and columns on its way down and takes multiples of {whole}, which are pictures whose sides are \
             multiples of {} pixels",
            whole * PIXELS_OF_A_CELL
        )
    };
    Err(OpError::new(format!("{what} has a grid of {width} x {height} cells (width x height): {why}")))
}

/// How many rows of latents there may be of each sample of conditions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// One.
    OfSamples,
    /// One, or those of all winners and then those of all losers.
    OfPairs,
}

impl ConditionShapes<'_> {
    /// Do they fit the network and rows of latents with these axes?
    pub(crate) fn check(&self, layout: &BackboneLayout, x_t: [usize; 4], of: Rows) -> Result<(), OpError> {
        check_latents(layout, "x_t", x_t)?;
        let (rows, samples) = (x_t[0], self.text.0);
        if samples == 0 || rows != samples && (of == Rows::OfSamples || rows != 2 * samples) {
            let wanted = match of {
                Rows::OfSamples => "one row for each sample",
                Rows::OfPairs => "one row for each sample, or two, its winner's and its loser's,",
            };
            return Err(OpError::new(format!(
                "x_t has {} and text {}: {wanted} is needed",
                count(rows, "row"),
                count(samples, "sample")
            )));
        }
        if self.t.batch != rows && self.t.batch != samples {
            return Err(OpError::new(format!(
                "t has {} times: one for each of {rows} rows, or of {samples} samples, is needed",
                self.t.batch
            )));
        }
        if self.t.process.time() != layout.time {
            let time = |time| match time {
                Time::Sigma => "sigmas of a flow",
                Time::Step => "timesteps of DDPM",
            };
            let process = match layout.time {
                Time::Sigma => "`process: flow`",
                Time::Step => "`process: ddpm_eps` or `ddpm_v`",
            };
            return Err(OpError::new(format!(
                "t holds {}, but the {} takes {}: set {process} at the nodes that make its noise and its times",
                time(self.t.process.time()),
                layout.kind,
                time(layout.time)
            )));
        }
        same("the batch of pooled", self.pooled.0, "that of text", samples)?;
        let widths = (self.text.2, self.pooled.1);
        same(
            "the width of (text, pooled)",
            widths,
            "what the network takes",
            (layout.text_width, layout.pooled_width),
        )?;
        self.check_pictures(layout)?;
        for (r, &(batch, c, h, w)) in self.references.iter().flat_map(|r| r.0.iter()).enumerate() {
            check_latents(layout, &format!("reference {r}"), [batch, c, h, w])?;
            same(&format!("the batch of reference {r}"), batch, "that of text", samples)?;
        }
        match (self.guidance, layout.guidance) {
            (None, true) => {
                Err(OpError::new("the network takes a guidance value: set `guidance`, e.g. to 1.0"))
            }
            (Some(g), false) => {
                Err(OpError::new(format!("guidance is {g}, but the network takes none: leave it out")))
            }
            (Some(g), true) if !g.is_finite() => Err(OpError::new(format!("guidance {g} is not a number"))),
            _ => Ok(()),
        }
    }

    /// What a network is told of pictures besides its prompt.
    fn check_pictures(&self, layout: &BackboneLayout) -> Result<(), OpError> {
        let kind = &layout.kind;
        let refuse = |message: String| Err(OpError::new(message));
        match (self.sizes, layout.sizes) {
            (None, true) => {
                return refuse(format!(
                    "the {kind} takes the sizes of pictures: connect `sizes` (operator `sizes`)"
                ));
            }
            (Some(_), false) => return refuse(format!("`sizes` is connected, but the {kind} takes none")),
            (Some(sizes), true) => same("the batch of sizes", sizes.0, "that of text", self.text.0)?,
            (None, false) => {}
        }
        match (self.image_prompt, layout.image_tokens) {
            (None, true) => {
                return refuse(format!(
                    "the {kind} sees references as image tokens: connect `image_prompt` (operator `image-prompt`)"
                ));
            }
            (Some(_), false) => {
                return refuse(format!(
                    "`image_prompt` is connected, but the {kind} has no IP-Adapter that would read it: set `ip_adapter` on its node"
                ));
            }
            (Some(&(batch, tokens, width)), true) => {
                same("the batch of image_prompt", batch, "that of text", self.text.0)?;
                match layout.pictures {
                    None if width != layout.text_width => {
                        return refuse(format!(
                            "image_prompt is {width} wide, the {kind} takes image tokens {} wide: those of the IP-Adapter's resampler, \
                             or with `resampler: inside` on the nodes of the backbone and of `image-prompt` those of the image encoder",
                            layout.text_width
                        ));
                    }
                    Some(pictures) if width != pictures.width => {
                        return refuse(format!(
                            "image_prompt is {width} wide, the {kind} with its resampler inside takes tokens of the image encoder, {} \
                             wide: set `resampler: inside` on the node of `image-prompt`, too",
                            pictures.width
                        ));
                    }
                    Some(pictures) if !tokens.is_multiple_of(pictures.count) => {
                        return refuse(format!(
                            "image_prompt has {tokens} tokens, and `picture_tokens` of the {kind} says that the image encoder makes \
                             {} of a picture: set it to what it makes",
                            pictures.count
                        ));
                    }
                    _ => {}
                }
                if tokens == 0 {
                    return refuse("image_prompt has no tokens".into());
                }
            }
            (None, false) => {}
        }
        match self.references {
            Some(references) if layout.sizes && !references.0.is_empty() => refuse(format!(
                "`references` is connected, but the {kind} takes no references as latents: with an IP-Adapter it takes `image_prompt`"
            )),
            _ => Ok(()),
        }
    }

    /// Latent grids of the references.
    pub(crate) fn reference_grids(&self) -> Vec<(usize, usize)> {
        reference_grids(self.references)
    }
}

impl Conditions<'_> {
    /// A network's inputs: conditions are repeated for every block of rows.
    pub(crate) fn inputs<C: Axis, H: Axis, W: Axis>(
        &self,
        ctx: &Ctx<'_>,
        x_t: &Latents<C, H, W>,
    ) -> Result<nn::Inputs, OpError> {
        let x_t = latents_to_nn(ctx, x_t)?;
        let rows = x_t.shape().0;
        let &(samples, tokens, width) = HasShape::shape(self.text);
        let &(_, pooled_width) = HasShape::shape(self.pooled);
        let references = self.references.iter().flat_map(|r| r.0.iter()).map(|reference| {
            let &(_, c, h, w) = HasShape::shape(reference);
            nn::Tensor::filled(ctx.cpu, (rows, c, h, w), |to| {
                repeat(to, rows / samples, |to| reference.copy_row_major(to))
            })
        });
        Ok(nn::Inputs {
            t: self.t.values.repeat(rows / self.t.values.len()),
            text: nn::Tensor::filled(ctx.cpu, (samples, tokens, width), |to| self.text.copy_row_major(to)),
            pooled: nn::Tensor::filled(ctx.cpu, (rows, pooled_width), |to| {
                repeat(to, rows / samples, |to| self.pooled.copy_row_major(to));
            }),
            references: references.collect(),
            guidance: self.guidance.map(|g| g as f32),
            sizes: self.sizes.map_or_else(Vec::new, |sizes| {
                let values = sizes.row_major();
                values.as_chunks::<6>().0.repeat(rows / samples)
            }),
            image_tokens: self.image_prompt.map(|As(_, tokens)| {
                let &(_, count, width) = HasShape::shape(tokens);
                nn::Tensor::filled(ctx.cpu, (rows, count, width), |to| {
                    repeat(to, rows / samples, |to| tokens.copy_row_major(to))
                })
            }),
            image_scale: None,
            x_t,
        })
    }
}

/// A prediction as a port's tensor, with the axes of the latents it was made from.
pub(crate) fn prediction<C: Axis, H: Axis, W: Axis>(
    ctx: &Ctx<'_>,
    shape: (usize, C, H, W),
    found: nn::Tensor<(usize, usize, usize, usize)>,
) -> Result<T<(usize, C, H, W)>, OpError> {
    let dims: [usize; 4] = shape.concrete();
    if found.dims() != dims {
        return Err(OpError::internal(format!("a prediction of {:?} for latents of {dims:?}", found.dims())));
    }
    tensor(ctx, shape, found.into_values())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operator::Operator,
        operators::{
            backbone::{Backbone, BackboneSettings},
            testing::case,
        },
        settings::DataPath,
    };

    #[test]
    fn rows_are_one_for_each_sample_or_those_of_winners_and_losers() {
        let settings = BackboneSettings { weights: DataPath(case("flux_uno")), ..Default::default() };
        let (backbone,) = Backbone::new(settings).unwrap().shapes((), 0).unwrap();
        let layout = backbone.layout();
        let check = |rows: usize, samples: usize, of: Rows| {
            let time = TimeShape { batch: rows, process: crate::ports::Process::Flow };
            let conditions = ConditionShapes {
                t: &time,
                text: &(samples, 5, layout.text_width),
                pooled: &(samples, layout.pooled_width),
                references: None,
                sizes: None,
                image_prompt: None,
                guidance: layout.guidance.then_some(1.0),
            };
            conditions.check(layout, [rows, layout.channels, 4, 4], of).map_err(|e| e.to_string())
        };
        for (rows, samples, of) in [(2, 2, Rows::OfSamples), (2, 2, Rows::OfPairs), (4, 2, Rows::OfPairs)] {
            check(rows, samples, of).unwrap();
        }
        for (rows, samples, of) in [
            (4, 2, Rows::OfSamples),
            (6, 2, Rows::OfPairs),
            (8, 2, Rows::OfPairs),
            (2, 4, Rows::OfPairs),
            (3, 2, Rows::OfPairs),
        ] {
            let error = check(rows, samples, of).unwrap_err();
            assert!(error.contains(&format!("x_t has {rows} rows and text {samples} samples")), "{error}");
        }
    }

    #[test]
    fn a_grid_that_a_network_does_not_take_is_refused_with_those_that_it_takes() {
        let settings = BackboneSettings { weights: DataPath(case("flux_uno")), ..Default::default() };
        let (backbone,) = Backbone::new(settings).unwrap().shapes((), 0).unwrap();
        let flux = backbone.layout();
        let said =
            |layout: &BackboneLayout, dims| check_latents(layout, "x_t", dims).unwrap_err().to_string();
        assert!(check_latents(flux, "x_t", [1, flux.channels, 4, 6]).is_ok());
        let tokens = said(flux, [1, flux.channels, 8, 9]);
        assert!(tokens.contains("9 x 8 cells") && tokens.contains("multiples of 16 pixels"), "{tokens}");
        let channels = said(flux, [1, flux.channels + 1, 4, 4]);
        assert!(channels.contains("channels"), "{channels}");
        let halved = BackboneLayout { patch: 1, whole: 4, ..flux.clone() };
        let halved = said(&halved, [1, flux.channels, 8, 6]);
        assert!(
            halved.contains("takes multiples of 4") && halved.contains("multiples of 32 pixels"),
            "{halved}"
        );
    }
}
