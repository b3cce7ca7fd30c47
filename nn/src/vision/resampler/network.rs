//! The frozen weights of a resampler, and the names of its linears.
//!
//! The letters are those of the module above.

use std::ops::Range;

use super::sizes::{PREFIX, ResamplerSizes};
use crate::{
    device::{Device, NormKind},
    encoders::weights::PrefixedFiles,
    error::Result,
    files::TensorView,
    layers::{Attention, Context, Linear, Loading, Norm},
    linears::LinearLayout,
};

/// Added to the variance in norms.
const EPS: f64 = 1e-5;
/// What diffusers calls the resampler of the first IP-Adapter inside its U-Net.
const MODULE: &str = "encoder_hid_proj.image_projection_layers.0";

/// A resampler on a device.
#[derive(Debug)]
pub(crate) struct ResamplerNetwork<D: Device> {
    pub(super) sizes: ResamplerSizes,
    /// `[Q, E]`.
    pub(super) queries: Vec<f32>,
    pub(super) first: Linear<D>,
    pub(super) layers: Vec<Layer<D>>,
    pub(super) last: Linear<D>,
    pub(super) norm: Norm<D>,
}

#[derive(Debug)]
pub(super) struct Layer<D: Device> {
    pub picture_norm: Norm<D>,
    pub query_norm: Norm<D>,
    pub attention: Attention<D>,
    pub mlp_norm: Norm<D>,
    pub up: Linear<D>,
    pub down: Linear<D>,
}

impl ResamplerSizes {
    /// Its linears under diffusers' names, in the order of a pass.
    pub(crate) fn linears(&self) -> Vec<LinearLayout> {
        let (e, inner) = (self.width, self.inner);
        let linear = |name: String, inputs, outputs| LinearLayout {
            name: format!("{MODULE}.{name}"),
            inputs,
            outputs,
            window: None,
        };
        let mut all = vec![linear("proj_in".into(), self.input, e)];
        for layer in 0..self.depth {
            let at = |part: &str| format!("layers.{layer}.{part}");
            all.extend([
                linear(at("attn.to_q"), e, inner),
                linear(at("attn.to_k"), e, inner),
                linear(at("attn.to_v"), e, inner),
                linear(at("attn.to_out.0"), inner, e),
                linear(at("ff.1.net.0.proj"), e, self.mlp),
                linear(at("ff.1.net.2"), self.mlp, e),
            ]);
        }
        all.push(linear("proj_out".into(), e, self.output));
        all
    }
}

impl ResamplerSizes {
    /// Where its linears stand in the file.
    pub(crate) fn places(&self) -> impl Iterator<Item = (String, (String, Range<usize>))> {
        // Keys stand above values in one matrix.
        let file_name = |name: &str| {
            let name = name.replace("attn.to_k", "0.to_kv").replace("attn.to_v", "0.to_kv");
            let name = name.replace("attn.to_q", "0.to_q").replace("attn.to_out.0", "0.to_out");
            name.replace("ff.1.net.0.proj", "1.1").replace("ff.1.net.2", "1.3")
        };
        self.linears().into_iter().map(move |linear| {
            let first = if linear.name.ends_with(".to_v") { linear.outputs } else { 0 };
            let inside = linear.name.strip_prefix(MODULE).unwrap_or(&linear.name);
            let tensor = format!("{}{}.weight", PREFIX.trim_end_matches('.'), file_name(inside));
            (linear.name, (tensor, first..first + linear.outputs))
        })
    }
}

impl<D: Device> ResamplerNetwork<D> {
    /// Read norms, biases and queries, and pack matrices where they are to be resident. With `numbered`, its linears have the numbers from
    /// there on among those that an adapter may have factors for.
    pub(super) fn read(
        device: &D,
        sizes: &ResamplerSizes,
        source: &PrefixedFiles,
        loading: Loading,
        numbered: Option<usize>,
    ) -> Result<Self> {
        let s = sizes;
        let mut layouts = s.linears().into_iter().enumerate();
        // In the order of the names.
        let mut linear = |weight: TensorView, bias: Option<TensorView>| {
            let (at, layout) = layouts.next().unwrap_or_else(|| unreachable!("as many as there are names"));
            let index = numbered.map(|first| first + at);
            Linear::new(device, (weight, bias), &layout, index, None, None, loading)
        };
        let norm = |name: &str, width| source.norm(device, NormKind::Layer, name, width, EPS);
        let weight = |name: &str| source.view(&format!("{name}.weight"));
        let bias = |name: &str| source.view(&format!("{name}.bias"));

        let first = linear(weight("proj_in")?, Some(bias("proj_in")?))?;
        let mut layers = Vec::with_capacity(s.depth);
        for number in 0..s.depth {
            let at = |part: &str| format!("layers.{number}.{part}");
            // Keys stand above values in one matrix.
            let keys_and_values = weight(&at("0.to_kv"))?;
            layers.push(Layer {
                picture_norm: norm(&at("0.norm1"), s.width)?,
                query_norm: norm(&at("0.norm2"), s.width)?,
                attention: Attention {
                    heads: s.heads(),
                    q: linear(weight(&at("0.to_q"))?, None)?,
                    k: linear(keys_and_values.rows(0..s.inner)?, None)?,
                    v: linear(keys_and_values.rows(s.inner..2 * s.inner)?, None)?,
                    out: linear(weight(&at("0.to_out"))?, None)?,
                },
                mlp_norm: norm(&at("1.0"), s.width)?,
                up: linear(weight(&at("1.1"))?, None)?,
                down: linear(weight(&at("1.3"))?, None)?,
            });
        }
        let last = linear(weight("proj_out")?, Some(bias("proj_out")?))?;
        Ok(Self {
            queries: source.values("latents", &[1, s.queries, s.width])?,
            first,
            layers,
            last,
            norm: norm("norm_out", s.output)?,
            sizes: s.clone(),
        })
    }

    /// Search the values of its matrices, if that was not done yet.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn check(&self) -> Result<()> {
        self.linears().try_for_each(Linear::check)
    }

    /// Has one of its linears factors?
    pub fn adapted(&self, ctx: Context<'_, D>) -> bool {
        self.linears().any(|linear| ctx.adapts(linear))
    }

    fn linears(&self) -> impl Iterator<Item = &Linear<D>> {
        let layers = self.layers.iter().flat_map(|layer| {
            let Attention { q, k, v, out, .. } = &layer.attention;
            [q, k, v, out, &layer.up, &layer.down]
        });
        std::iter::once(&self.first).chain(layers).chain([&self.last])
    }
}
