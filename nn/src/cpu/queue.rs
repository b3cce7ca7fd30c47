//! The operations of the processor: each runs at once, on the pool, by the kernel of its name.

use super::{Buffer, Cpu, Packed};
use crate::{
    cpu,
    device::{
        Activation, Attention, AttentionBackward, CopyTokens, DeviceVec, Direction, GateGrad, Gemm, GemmTn,
        GroupNorm, GroupNormBackward, HeadLayout, Kind, Left, Matrix, Norm, NormBackward, NormKind,
        NormModulate, NormModulateBackward, NormRotary, Precision, Queue, Scores, SplitHeads,
        SplitHeadsBackward, TokenRows, Values, View, ViewMut, WindowRows, Windows, WindowsBackward,
    },
    error::Result,
};

/// The queue of the processor.
#[derive(Clone, Debug)]
pub struct CpuQueue {
    cpu: Cpu,
    precision: Precision,
}

impl CpuQueue {
    pub(super) fn new(cpu: Cpu, precision: Precision) -> Self {
        Self { cpu, precision }
    }
}

impl<'a> View<'a, Cpu> {
    /// All values from the start on.
    fn values(self) -> &'a [f32] {
        &self.buffer[self.start..]
    }
}

impl<'a> Left<'a, Cpu> {
    fn values(self) -> cpu::Left<'a> {
        match self {
            Self::Rows(x) => cpu::Left::Rows(x.values(), x.stride),
            Self::Windows(WindowRows { window, size, channels, x }) => {
                cpu::Left::Windows(cpu::Pictures { window, size, channels, values: x.values() })
            }
        }
    }
}

impl<'a> ViewMut<'a, Cpu> {
    /// All values from the start on.
    fn values(self) -> &'a mut [f32] {
        &mut self.buffer[self.start..]
    }
}

impl Queue<Cpu> for CpuQueue {
    fn take(&self, len: usize, _: Kind) -> Buffer {
        self.cpu.buffers().take(len)
    }

    fn zeros(&self, len: usize, _: Kind) -> Buffer {
        self.cpu.buffers().zeros(len)
    }

    fn fill(&self, len: usize, kind: Kind, write: impl FnOnce(&mut [f32])) -> Buffer {
        let mut buffer = self.take(len, kind);
        write(&mut buffer);
        buffer
    }

    fn share(&self, values: &DeviceVec) -> Result<Buffer> {
        values.host().map(Buffer::shared)
    }

    fn zeros_to_keep(&self, len: usize) -> Buffer {
        Buffer::owned(vec![0.0; len])
    }

    fn keep(&self, buffer: Buffer, _: usize) -> Result<DeviceVec> {
        Ok(buffer.into_values().into())
    }

    fn download(&self, buffer: &Buffer, start: usize, len: usize) -> Result<Vec<f32>> {
        Ok(buffer[start..start + len].to_vec())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn factor(
        &self,
        parts: &[View<'_, Cpu>],
        rows: usize,
        columns: usize,
        scale: f32,
        direction: Direction,
    ) -> Packed {
        let len = rows * columns;
        let plain = parts.iter().map(|part| &part.values()[..len]);
        let scaled: Vec<Buffer>;
        let runs = if scale == 1.0 {
            plain.map(Values::F32).collect()
        } else {
            let times = |values: &[f32]| {
                let mut scaled = self.cpu.buffers().take(len);
                scaled.iter_mut().zip(values).for_each(|(to, from)| *to = from * scale);
                scaled
            };
            scaled = plain.map(times).collect();
            scaled.iter().map(|values| Values::F32(values)).collect()
        };
        self.cpu.pack(&Matrix::new(runs, parts.len() * rows, columns), direction, self.precision, true)
    }

    fn copy_to(&self, from: View<'_, Cpu>, len: usize, to: ViewMut<'_, Cpu>) {
        cpu::copy(&self.cpu, &from.values()[..len], &mut to.values()[..len]);
    }

    fn copy_tokens(&self, call: CopyTokens<'_, Cpu>) {
        let CopyTokens { rows, from: (from, from_tokens), to: (to, to_tokens) } = call;
        let (from_stride, to_stride) = (from.stride, to.stride);
        cpu::copy_tokens(
            &self.cpu,
            rows,
            (from.values(), from_stride, from_tokens),
            (to.values(), to_stride, to_tokens),
        );
    }

    fn add_scaled(&self, a: f32, x: View<'_, Cpu>, y: ViewMut<'_, Cpu>, len: usize) {
        cpu::add_scaled(&self.cpu, a, &x.values()[..len], &mut y.values()[..len]);
    }

    fn scale(&self, a: f32, x: ViewMut<'_, Cpu>, len: usize) {
        cpu::scale(&self.cpu, a, &mut x.values()[..len]);
    }

    fn gemm(&self, call: Gemm<'_, Cpu>) {
        let Gemm { m, x, weight, direction: _, extra, bias, accumulate, out } = call;
        let out_stride = out.stride;
        cpu::gemm(
            &self.cpu,
            cpu::Gemm {
                m,
                x: x.values(),
                weight,
                extra: extra.map(|e| (e.x.values(), e.weight)),
                bias: bias.map(|b| &b[..]),
                accumulate,
                out: out.values(),
                out_stride,
            },
        );
    }

    fn gemm_tn(&self, call: GemmTn<'_, Cpu>) {
        let GemmTn { m, p, q, a, b, scale, out } = call;
        let out = &mut out.values()[..p * q];
        cpu::gemm_tn(
            &self.cpu,
            cpu::GemmTn {
                m,
                p,
                q,
                a: a.values(),
                a_stride: a.stride,
                b: b.values(),
                b_stride: b.stride,
                accumulate: false,
                out,
            },
        );
        if scale != 1.0 {
            cpu::scale(&self.cpu, scale, out);
        }
    }

    fn split_heads(&self, streams: &[HeadLayout], operands: &mut [SplitHeads<'_, Cpu>]) {
        for SplitHeads { x, norm, out } in operands {
            let mut x = *x;
            for &layout in streams {
                cpu::split_heads(&self.cpu, layout, (x.values(), x.stride), norm.map(slices), out);
                x = x.skip(layout.batch * layout.stream_tokens * x.stride);
            }
        }
    }

    fn split_heads_backward(&self, streams: &[HeadLayout], operands: &mut [SplitHeadsBackward<'_, Cpu>]) {
        for SplitHeadsBackward { d_out, norm, dx } in operands {
            let mut row = 0;
            for &layout in streams {
                let dx_stride = dx.stride;
                let dx = dx.again().skip(row * dx_stride).values();
                let x = norm.map(|(x, _)| x.skip(row * x.stride));
                let input = x.map_or((&[][..], 0), |x| (x.values(), x.stride));
                let norm_rotary = norm.map(|(_, norm)| slices(norm));
                cpu::split_heads_backward(&self.cpu, layout, d_out, input, norm_rotary, (dx, dx_stride));
                row += layout.batch * layout.stream_tokens;
            }
        }
    }

    fn attention(&self, call: Attention<'_, Cpu>) {
        let Attention { shape, query_rows, scores, q, k, v, out, lse } = call;
        let (precision, out_stride, out) = (self.precision, out.stride, out.values());
        if scores.are_plain() {
            let call = cpu::Attention { shape, precision, query_rows, q, k, v, out, out_stride, lse };
            return cpu::attention(&self.cpu, call);
        }
        let Scores { scale, bias, causal } = scores;
        let scale = scale.unwrap_or_else(|| 1.0 / (shape.dim as f32).sqrt());
        let bias = bias.map(|b| &b[..]);
        cpu::scored_attention(
            &self.cpu,
            cpu::ScoredAttention {
                shape,
                precision,
                query_rows,
                scale,
                bias,
                causal,
                q,
                k,
                v,
                out,
                out_stride,
            },
        );
    }

    fn attention_backward(&self, call: AttentionBackward<'_, Cpu>) {
        let AttentionBackward { shape, query_rows, q, k, v, out, lse, d_out, dq, dk, dv } = call;
        cpu::attention_backward(
            &self.cpu,
            cpu::AttentionBackward {
                shape,
                precision: self.precision,
                query_rows,
                q,
                k,
                v,
                out: out.values(),
                out_stride: out.stride,
                lse,
                d_out: d_out.values(),
                d_out_stride: d_out.stride,
                dq,
                dk,
                dv,
            },
        );
    }

    fn norm_modulate(&self, call: NormModulate<'_, Cpu>) {
        let NormModulate { rows, x, shift, scale, mut y, mut mean, mut reciprocal } = call;
        for (rows, first) in TokenRows::one_by_one(rows) {
            let at = first * rows.width;
            cpu::norm_modulate(
                &self.cpu,
                rows,
                x.skip(at).values(),
                shift.values(),
                scale.values(),
                scale.stride,
                y.again().skip(at).values(),
                mean.again().skip(first).values(),
                reciprocal.again().skip(first).values(),
            );
        }
    }

    fn norm_modulate_backward(&self, call: NormModulateBackward<'_, Cpu>) {
        let NormModulateBackward { rows, x, mean, reciprocal, scale, dy, mut dx, accumulate, modulation } =
            call;
        assert!(
            modulation.is_none() || rows.len() == 1,
            "the cotangent of a modulation is that of one stream"
        );
        let mut modulation = modulation.map(|m| {
            let stride = m.d_shift.stride;
            cpu::ModulationGrad { d_shift: m.d_shift.values(), d_scale: m.d_scale.values(), stride }
        });
        for (rows, first) in TokenRows::one_by_one(rows) {
            let at = first * rows.width;
            cpu::norm_modulate_backward(
                &self.cpu,
                rows,
                x.skip(at).values(),
                mean.skip(first).values(),
                reciprocal.skip(first).values(),
                scale.values(),
                scale.stride,
                dy.skip(at).values(),
                dx.again().skip(at).values(),
                accumulate,
                modulation.take(),
            );
        }
    }

    fn norm(&self, call: Norm<'_, Cpu>) {
        let Norm { rows, width, kind, eps, x, weight, bias, y } = call;
        let norm = match kind {
            NormKind::Layer => cpu::layer_norm,
            NormKind::Rms => cpu::rms_norm,
        };
        let (x, y) = (&x.values()[..rows * width], &mut y.values()[..rows * width]);
        norm(&self.cpu, x, &weight[..width], bias.map(|b| &b[..]), eps, y);
    }

    fn group_norm(&self, call: GroupNorm<'_, Cpu>) {
        let GroupNorm { rows, width, groups, eps, silu, x, weight, bias, y } = call;
        let norm = cpu::GroupNorm { groups, weight: &weight[..width], bias, eps, silu };
        cpu::group_norm(&self.cpu, &x.values()[..rows * width], norm, &mut y.values()[..rows * width]);
    }

    fn norm_backward(&self, call: NormBackward<'_, Cpu>) {
        let NormBackward { rows, width, kind, eps, x, weight, dy, dx } = call;
        let norm = match kind {
            NormKind::Layer => cpu::layer_norm_backward,
            NormKind::Rms => cpu::rms_norm_backward,
        };
        let len = rows * width;
        norm(
            &self.cpu,
            &x.values()[..len],
            &weight[..width],
            eps,
            &dy.values()[..len],
            &mut dx.values()[..len],
        );
    }

    fn group_norm_backward(&self, call: GroupNormBackward<'_, Cpu>) {
        let GroupNormBackward { rows, width, groups, eps, silu, x, weight, bias, dy, dx } = call;
        let (norm, len) =
            (cpu::GroupNorm { groups, weight: &weight[..width], bias, eps, silu }, rows * width);
        let (x, dy) = (&x.values()[..len], &dy.values()[..len]);
        cpu::group_norm_backward(&self.cpu, x, norm, dy, &mut dx.values()[..len]);
    }

    fn activate(&self, f: Activation, (rows, width): (usize, usize), x: View<'_, Cpu>, y: ViewMut<'_, Cpu>) {
        let stride = y.stride;
        let window = cpu::SubMatrix { rows, width };
        cpu::activate(&self.cpu, f, window, (x.values(), x.stride), (y.values(), stride));
    }

    fn multiply(&self, (rows, width): (usize, usize), x: View<'_, Cpu>, y: ViewMut<'_, Cpu>) {
        let stride = y.stride;
        let window = cpu::SubMatrix { rows, width };
        cpu::multiply(&self.cpu, window, (x.values(), x.stride), (y.values(), stride));
    }

    fn windows(&self, call: Windows<'_, Cpu>) {
        let Windows { window, size, channels, pixels, x, out } = call;
        cpu::windows(&self.cpu, window, size, channels, pixels, x.values(), out.values());
    }

    fn windows_backward(&self, call: WindowsBackward<'_, Cpu>) {
        let WindowsBackward { window, size, channels, pixels, dy, dx, accumulate } = call;
        let (dy, dx) = (dy.values(), dx.values());
        cpu::windows_backward(&self.cpu, window, size, channels, pixels, dy, dx, accumulate);
    }

    fn add_to_tokens(&self, rows: TokenRows, v: View<'_, Cpu>, x: ViewMut<'_, Cpu>) {
        cpu::add_to_tokens(&self.cpu, rows, (v.values(), v.stride), x.values());
    }

    fn gated_gelu(&self, (rows, width): (usize, usize), x: View<'_, Cpu>, y: ViewMut<'_, Cpu>) {
        let stride = y.stride;
        let window = cpu::SubMatrix { rows, width };
        cpu::gated_gelu(&self.cpu, window, (x.values(), x.stride), (y.values(), stride));
    }

    fn gated_gelu_backward(
        &self,
        (rows, width): (usize, usize),
        x: View<'_, Cpu>,
        dy: View<'_, Cpu>,
        dx: ViewMut<'_, Cpu>,
    ) {
        let stride = dx.stride;
        let window = cpu::SubMatrix { rows, width };
        let (x, dy) = ((x.values(), x.stride), (dy.values(), dy.stride));
        cpu::gated_gelu_backward(&self.cpu, window, x, dy, (dx.values(), stride));
    }

    fn gelu_backward(&self, (rows, width): (usize, usize), dy: View<'_, Cpu>, x: ViewMut<'_, Cpu>) {
        let stride = x.stride;
        let window = cpu::SubMatrix { rows, width };
        cpu::gelu_backward(&self.cpu, window, (dy.values(), dy.stride), (x.values(), stride));
    }

    fn gated_add(&self, rows: &[TokenRows], x: View<'_, Cpu>, gate: View<'_, Cpu>, mut y: ViewMut<'_, Cpu>) {
        for (rows, first) in TokenRows::one_by_one(rows) {
            let (x, y) = (x.skip(first * rows.width), y.again().skip(first * rows.width));
            cpu::gated_add(&self.cpu, rows, x.values(), gate.values(), gate.stride, y.values());
        }
    }

    fn gated_add_backward(
        &self,
        rows: &[TokenRows],
        dx: View<'_, Cpu>,
        gate: View<'_, Cpu>,
        mut dy: ViewMut<'_, Cpu>,
        gate_grad: Option<GateGrad<'_, Cpu>>,
    ) {
        assert!(gate_grad.is_none() || rows.len() == 1, "the cotangent of a gate is that of one stream");
        let mut gate_grad = gate_grad.map(|g| {
            let stride = g.d_gate.stride;
            cpu::GateGrad { y: g.y.values(), d_gate: g.d_gate.values(), stride }
        });
        for (rows, first) in TokenRows::one_by_one(rows) {
            let at = first * rows.width;
            cpu::gated_add_backward(
                &self.cpu,
                rows,
                dx.skip(at).values(),
                gate.values(),
                gate.stride,
                dy.again().skip(at).values(),
                gate_grad.take(),
            );
        }
    }

    fn scores(
        &self,
        width: usize,
        (rows, mask): (View<'_, Cpu>, &[f32]),
        (targets, count): (View<'_, Cpu>, usize),
        out: ViewMut<'_, Cpu>,
    ) {
        let mut mean = self.cpu.buffers().take(width);
        cpu::masked_mean(&self.cpu, rows.values(), mask, &mut mean);
        cpu::cosine_scores(&self.cpu, targets.values(), &mean, &mut out.values()[..count]);
    }
}

fn slices(of: NormRotary<'_, Cpu>) -> cpu::NormRotary<'_> {
    cpu::NormRotary { weight: of.weight, cos: of.cos, sin: of.sin }
}
