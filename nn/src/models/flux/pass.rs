//! A whole pass: from latents to the prediction, and from its cotangent to the gradient of the adapter.
//!
//! `N` batch, `D` width, `M` rows of all tokens, `G` rows of the targets.

use std::sync::Arc;

use super::{
    Checkpointing, FluxUno,
    block::{Modulation, Normed, Pass, RowMoments, normed, normed_backward},
    config::PATCH,
    double::{self, DoubleSaved},
    embed::{embed, sinusoid},
    rope::RotaryTables,
    sequence::{ALL, IMAGE, Sequence, TARGETS, TEXT},
    single::{self, SingleSaved},
    tokens,
    weights::Weights,
};
use crate::{
    backbone::{BlockTokens, Inputs, Latents, Visitor},
    cpu,
    error::{Error, Result},
    layers::{Branches, Buffer, Context, Input, InputGrad, Output, linears, linears_backward},
    lora::{Adapter, AdapterGrad},
    tensor::Tensor,
};

/// Chunks of the last modulation; scale stands before shift here.
const FINAL: (usize, usize) = (1, 0);

/// What a backward needs of its pass.
pub(super) struct SavedPass {
    adapter: Adapter,
    sequence: Sequence,
    rotary: Arc<RotaryTables>,
    condition: Buffer,
    /// From the first block that an adapter or a derivative reaches.
    double: Vec<Option<Kept<DoubleSaved>>>,
    single: Vec<Option<Kept<SingleSaved>>>,
    end: EndSaved,
    grid: (usize, usize, usize, usize),
}

/// What was kept of a block.
enum Kept<S> {
    /// All that its backward needs.
    All(S),
    /// Its input, from which the backward runs it again.
    Input(Buffer),
}

impl<S> Kept<S> {
    /// What the backward needs, from `run` if it was not kept.
    fn saved(self, run: impl FnOnce(&mut Buffer) -> Option<S>) -> Option<S> {
        match self {
            Self::All(saved) => Some(saved),
            Self::Input(mut x) => run(&mut x),
        }
    }
}

/// Run a block and keep what is asked for: nothing, all that its backward needs, or its input.
fn keeping<S>(
    pass: Pass<'_>,
    checkpointing: Checkpointing,
    x: &mut Buffer,
    run: impl FnOnce(Pass<'_>, &mut Buffer) -> Option<S>,
) -> Option<Kept<S>> {
    if pass.saving && checkpointing == Checkpointing::Blocks {
        let input = pass.ctx.copy(x);
        run(Pass { saving: false, ..pass }, x);
        return Some(Kept::Input(input));
    }
    run(pass, x).map(Kept::All)
}

/// What the backward of the last norm and linear needs.
struct EndSaved {
    /// `[G, D]`.
    x: Buffer,
    moments: RowMoments,
    modulation: Modulation,
}

/// Shapes of a pass, checked.
struct Shapes {
    grid: (usize, usize, usize, usize),
    references: Vec<(usize, usize)>,
    text: usize,
}

impl FluxUno {
    fn context<'a>(&'a self, branches: Option<&'a Branches<'a>>) -> Context<'a> {
        let precision = self.options.loading.precision;
        Context { device: &self.device, buffers: &self.buffers, branches, precision }
    }

    fn shapes(&self, inputs: &Inputs) -> Result<Shapes> {
        let layout = &self.layout;
        let (n, c, h, w) = inputs.x_t.shape();
        let expect = |what: &str, good: bool, expected: String, found: String| {
            if good { Ok(()) } else { Err(Error::Shape { what: what.into(), expected, found }) }
        };
        let even = |h: usize, w: usize| h > 0 && w > 0 && h.is_multiple_of(PATCH) && w.is_multiple_of(PATCH);
        expect(
            "x_t",
            n > 0 && c == layout.channels && even(h, w),
            format!("[N, {}, H, W] with N > 0 and even H and W", layout.channels),
            format!("{:?}", inputs.x_t.dims()),
        )?;
        expect("t", inputs.t.len() == n, format!("{n} values"), format!("{}", inputs.t.len()))?;
        let (text_n, text, text_width) = inputs.text.shape();
        expect(
            "text",
            text_n == n && text > 0 && text_width == layout.text_width,
            format!("[{n}, L, {}] with L > 0", layout.text_width),
            format!("{:?}", inputs.text.dims()),
        )?;
        expect(
            "pooled text",
            inputs.pooled.shape() == (n, layout.pooled_width),
            format!("[{n}, {}]", layout.pooled_width),
            format!("{:?}", inputs.pooled.dims()),
        )?;
        for (i, reference) in inputs.references.iter().enumerate() {
            let (rn, rc, rh, rw) = reference.shape();
            expect(
                &format!("reference {i}"),
                rn == n && rc == layout.channels && even(rh, rw),
                format!("[{n}, {}, H, W] with even H and W", layout.channels),
                format!("{:?}", reference.dims()),
            )?;
        }
        match (layout.guidance, inputs.guidance) {
            (true, None) => {
                return Err(Error::Setting("the model takes a guidance value, and none was given".into()));
            }
            (false, Some(g)) => {
                return Err(Error::Setting(format!("the model takes no guidance value, but {g} was given")));
            }
            _ => {}
        }
        let references =
            inputs.references.iter().map(|r| (r.shape().2 / PATCH, r.shape().3 / PATCH)).collect();
        Ok(Shapes { grid: (n, c, h, w), references, text })
    }

    /// The prediction, and with `saving` what the backward needs.
    pub(super) fn forward(
        &self,
        weights: &Weights,
        inputs: &Inputs,
        adapter: Option<&Adapter>,
        visitor: &mut dyn Visitor,
        saving: bool,
    ) -> Result<(Latents, Option<SavedPass>)> {
        let shapes = self.shapes(inputs)?;
        let branches = adapter.map(|a| Branches::new(a, &self.layout.linears)).transpose()?;
        let ctx = self.context(branches.as_ref());
        let begun = Begun::new(self, weights, ctx, inputs, &shapes);
        let Begun { sequence, rotary, condition, mut x } = begun;
        let pass = Pass {
            ctx,
            sequence: &sequence,
            rotary: &rotary,
            width: self.layout.width,
            heads: self.layout.heads,
            condition: &condition,
            saving,
        };
        let first = first_needed(weights, ctx);
        let mut double = Vec::new();
        let mut single = Vec::new();
        for (i, block) in weights.double.iter().enumerate() {
            let pass = Pass { saving: saving && i >= first, ..pass };
            weights.will_need(i + 1)?;
            weights.check(i)?;
            let run = |pass: Pass<'_>, x: &mut Buffer| double::forward(pass, block, x);
            double.push(keeping(pass, self.options.checkpointing, &mut x, run));
            show(pass, visitor, i, &x);
        }
        for (i, block) in weights.single.iter().enumerate() {
            let number = weights.double.len() + i;
            let span = match (i + 1 == weights.single.len(), visitor.looks()) {
                (false, _) => ALL,
                (true, true) => IMAGE,
                (true, false) => TARGETS,
            };
            weights.will_need(number + 1)?;
            weights.check(number)?;
            let pass = Pass { saving: saving && number >= first, ..pass };
            let run = |pass: Pass<'_>, x: &mut Buffer| single::forward(pass, block, span, x);
            single.push(keeping(pass, self.options.checkpointing, &mut x, run));
            show(pass, visitor, number, &x);
        }
        let (prediction, end) = finish(pass, weights, &x, shapes.grid);
        drop(x);
        let prediction = Tensor::new(&self.device, shapes.grid, prediction)?;
        let saved = match (saving, adapter) {
            (true, Some(adapter)) => Some(SavedPass {
                adapter: adapter.clone(),
                double,
                single,
                end,
                grid: shapes.grid,
                condition,
                rotary,
                sequence,
            }),
            _ => None,
        };
        Ok((prediction, saved))
    }

    pub(super) fn double_features(
        &self,
        weights: &Weights,
        inputs: &Inputs,
    ) -> Result<Tensor<(usize, usize, usize)>> {
        let shapes = self.shapes(inputs)?;
        if weights.double.is_empty() {
            return Err(Error::Setting(
                "features are tokens of the last double block, and the model has none".into(),
            ));
        }
        let ctx = self.context(None);
        let Begun { sequence, rotary, condition, mut x } = Begun::new(self, weights, ctx, inputs, &shapes);
        let width = self.layout.width;
        let pass = Pass {
            ctx,
            sequence: &sequence,
            rotary: &rotary,
            width,
            heads: self.layout.heads,
            condition: &condition,
            saving: false,
        };
        for (i, block) in weights.double.iter().enumerate() {
            if i + 1 < weights.double.len() {
                weights.will_need(i + 1)?;
            }
            weights.check(i)?;
            double::forward(pass, block, &mut x);
        }
        let rows = sequence.span_rows(TARGETS);
        let shape = (sequence.batch, rows.len() / sequence.batch, width);
        Tensor::new(&self.device, shape, x[rows.start * width..rows.end * width].to_vec())
    }

    pub(super) fn backward_pass(
        &self,
        weights: &Weights,
        saved: SavedPass,
        adapter: &Adapter,
        cotangent: &Latents,
    ) -> Result<AdapterGrad> {
        let SavedPass { adapter: used, sequence, rotary, condition, mut double, mut single, end, grid } =
            saved;
        if cotangent.shape() != grid {
            return Err(Error::shape("derivative by the prediction", grid, cotangent.shape()));
        }
        let same = Arc::ptr_eq(&used.values, &adapter.values) || used.values == adapter.values;
        if used.layout != adapter.layout || !same {
            return Err(Error::Setting(
                "the backward of a pass was asked for with another adapter than the pass ran with".into(),
            ));
        }
        let branches = Branches::new(adapter, &self.layout.linears)?;
        let ctx = self.context(Some(&branches));
        let width = self.layout.width;
        let pass = Pass {
            ctx,
            sequence: &sequence,
            rotary: &rotary,
            width,
            heads: self.layout.heads,
            condition: &condition,
            saving: false,
        };
        // Of blocks that run again.
        let saving = Pass { saving: true, ..pass };
        let mut grads = vec![0.0; adapter.values.len()];
        let mut dx = if weights.single.is_empty() {
            // The last block has two streams: it takes the derivative of all rows, of which most are zero.
            ctx.buffers.zeros(sequence.rows() * width)
        } else {
            ctx.buffers.take(sequence.rows() * width)
        };
        let targets = sequence.span_rows(TARGETS);
        end_backward(
            pass,
            weights,
            &end,
            cotangent,
            &mut dx[targets.start * width..targets.end * width],
            &mut grads,
        )?;
        drop(end);
        let first = first_needed(weights, ctx);
        let count = weights.double.len();
        let gone = || Error::Internal("a block kept nothing for its backward".into());
        for (i, block) in weights.single.iter().enumerate().rev() {
            if count + i < first {
                break;
            }
            if count + i > first {
                weights.will_need(count + i - 1)?;
            }
            let kept = single.pop().flatten().ok_or_else(gone)?;
            let span = if i + 1 == weights.single.len() { TARGETS } else { ALL };
            let again = |x: &mut Buffer| single::forward(saving, block, span.clone(), x);
            let saved = kept.saved(again).ok_or_else(gone)?;
            single::backward(pass, block, saved, span, count + i > first, &mut dx, &mut grads)?;
        }
        for (i, block) in weights.double.iter().enumerate().rev() {
            if i < first {
                break;
            }
            if i > first {
                weights.will_need(i - 1)?;
            }
            let kept = double.pop().flatten().ok_or_else(gone)?;
            let saved = kept.saved(|x| double::forward(saving, block, x)).ok_or_else(gone)?;
            double::backward(pass, block, saved, i > first, &mut dx, &mut grads)?;
        }
        Ok(AdapterGrad { layout: Arc::clone(&adapter.layout), values: Arc::new(grads) })
    }
}

/// Number of the first block with an adapted linear: nothing below it needs a derivative.
fn first_needed(weights: &Weights, ctx: Context<'_>) -> usize {
    let count = weights.double.len() + weights.single.len();
    (0..count).find(|n| weights.block(*n).into_iter().any(|l| ctx.adapts(l))).unwrap_or(count)
}

/// What stands before the first block.
struct Begun {
    sequence: Sequence,
    rotary: Arc<RotaryTables>,
    condition: Buffer,
    /// `[M, D]`.
    x: Buffer,
}

impl Begun {
    fn new(model: &FluxUno, weights: &Weights, ctx: Context<'_>, inputs: &Inputs, shapes: &Shapes) -> Self {
        let (n, c, h, w) = shapes.grid;
        let target = (h / PATCH, w / PATCH);
        let rotary = model.rotary((shapes.text, target, shapes.references.clone()));
        let counts: Vec<usize> = shapes.references.iter().map(|(h, w)| h * w).collect();
        let sequence = Sequence::new(n, shapes.text, target.0 * target.1, counts);

        let width = model.layout.width;
        let mut x = ctx.buffers.take(sequence.rows() * width);
        let text = sequence.span_rows(TEXT);
        linears(
            ctx,
            text.len(),
            Input(inputs.text.values(), model.layout.text_width),
            &mut [Output(&weights.text_in, &mut x[..text.end * width], width)],
        );
        let image = sequence.span_rows(IMAGE);
        let token = c * PATCH * PATCH;
        let mut packed = ctx.buffers.take(image.len() * token);
        let (targets, references) = packed.split_at_mut(sequence.span_rows(TARGETS).len() * token);
        tokens::pack(inputs.x_t.values(), shapes.grid, targets, target.0 * target.1, 0);
        let stride: usize = sequence.reference_tokens.iter().sum();
        let mut offset = 0;
        for (reference, count) in inputs.references.iter().zip(&sequence.reference_tokens) {
            tokens::pack(reference.values(), reference.shape(), references, stride, offset);
            offset += count;
        }
        linears(
            ctx,
            image.len(),
            Input(&packed, token),
            &mut [Output(&weights.image_in, &mut x[image.start * width..], width)],
        );
        Self { condition: condition(weights, ctx, inputs), sequence, rotary, x }
    }
}

/// `silu(temb)`, `[N, D]`.
fn condition(weights: &Weights, ctx: Context<'_>, inputs: &Inputs) -> Buffer {
    let n = inputs.t.len();
    let mut sum = embed(ctx, &weights.time, n, &sinusoid(&inputs.t));
    if let (Some(embedder), Some(guidance)) = (&weights.guidance, inputs.guidance) {
        let guidance = embed(ctx, embedder, n, &sinusoid(&vec![guidance; n]));
        cpu::add_scaled(ctx.device, 1.0, &guidance, &mut sum);
    }
    let pooled = embed(ctx, &weights.pooled, n, inputs.pooled.values());
    cpu::add_scaled(ctx.device, 1.0, &pooled, &mut sum);
    let mut condition = ctx.buffers.take(sum.len());
    cpu::silu(ctx.device, &sum, &mut condition);
    condition
}

/// Call the visitor, if it looks, with the tokens after a block.
fn show(pass: Pass<'_>, visitor: &mut dyn Visitor, block: usize, x: &[f32]) {
    if !visitor.looks() {
        return;
    }
    let rows = |span| {
        let rows = pass.sequence.span_rows(span);
        &x[rows.start * pass.width..rows.end * pass.width]
    };
    let (targets, image) = (rows(TARGETS), rows(IMAGE));
    visitor.block(&BlockTokens {
        block,
        batch: pass.sequence.batch,
        width: pass.width,
        targets,
        references: &image[targets.len()..],
        reference_tokens: &pass.sequence.reference_tokens,
    });
}

/// The last norm and linear, on the targets' rows.
fn finish(
    pass: Pass<'_>,
    weights: &Weights,
    x: &[f32],
    grid: (usize, usize, usize, usize),
) -> (Vec<f32>, EndSaved) {
    let rows = pass.sequence.span_rows(TARGETS);
    let targets = pass.ctx.copy(&x[rows.start * pass.width..rows.end * pass.width]);
    let modulation = Modulation::new(pass, &weights.final_modulation);
    let Normed { values, moments } = normed(pass, TARGETS, &targets, &modulation, FINAL);
    let token = weights.out.outputs();
    let mut tokens = pass.ctx.buffers.take(rows.len() * token);
    linears(
        pass.ctx,
        rows.len(),
        Input(&values, pass.width),
        &mut [Output(&weights.out, &mut tokens, token)],
    );
    (tokens::unpack(&tokens, grid), EndSaved { x: targets, moments, modulation })
}

/// Backward of [`finish`]: `dx [G, D]` is overwritten.
fn end_backward(
    pass: Pass<'_>,
    weights: &Weights,
    end: &EndSaved,
    cotangent: &Latents,
    dx: &mut [f32],
    grads: &mut [f32],
) -> Result<()> {
    let rows = pass.sequence.span_rows(TARGETS).len();
    let token = weights.out.outputs();
    let mut d_tokens = pass.ctx.buffers.take(rows * token);
    tokens::pack(cotangent.values(), cotangent.shape(), &mut d_tokens, rows / pass.sequence.batch, 0);
    let mut dn = pass.ctx.buffers.take(rows * pass.width);
    linears_backward(
        pass.ctx,
        rows,
        None,
        None,
        &[(&weights.out, Input(&d_tokens, token))],
        Some(InputGrad { values: &mut dn, stride: pass.width, accumulate: false }),
        grads,
    )?;
    normed_backward(pass, TARGETS, TEXT, &end.x, &end.moments, &end.modulation, FINAL, &dn, dx, None);
    Ok(())
}
