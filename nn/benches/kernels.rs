//! Rates of the CPU kernels against the peak of the multiply-add units, both measured in this run.
//!
//! ```text
//! cargo bench -p prefgraph-nn --bench kernels [-- [gemm|tn|attention|passes] [bf16] [threads=N]]
//! ```
//! With `bf16`, operands of products are rounded to it; shares are still those of the f32 peak, since few processors have an
//! instruction whose peak could be measured. Rates are of the best of many runs; where the machine is shared, the share of the peak by processor time
//! (operations in a second of one core's time, against the peak of one core) is the steadier figure.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

#[path = "../tests/cases/mod.rs"]
mod cases;

use std::{hint::black_box, time::Instant};

use prefgraph_nn::cpu::{
    AdamW, Attention, AttentionBackward, AttentionShape, Cpu, Gemm, GemmTn, Left, Matrix, Memory, NormRotary,
    Packed, Precision, SubMatrix, Update, Values, adamw, attention, attention_backward, cosine_scores,
    gated_add, gelu, gelu_backward, gemm, gemm_tn, norm_modulate, norm_modulate_backward, split_heads,
    split_heads_backward,
};
use pulp::{Simd, WithSimd};

use self::cases::{BENCH, Product};

fn values(n: usize, seed: usize) -> Memory {
    let mut values = Memory::zeros(n);
    for (i, value) in values.iter_mut().enumerate() {
        *value = ((i.wrapping_mul(7919) + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
    }
    values
}

/// Processor time of all threads of this process so far in seconds, or `None` where the system does not tell.
fn processor_seconds() -> Option<f64> {
    let mut total = 0.0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        total += text.split(' ').next()?.parse::<f64>().ok()? / 1e9;
    }
    Some(total)
}

/// Times of a call in seconds: the best of at least 5 calls over 0.5 s, and the mean of the processor time.
fn times(mut call: impl FnMut()) -> (f64, Option<f64>) {
    call();
    let (begun, busy) = (Instant::now(), processor_seconds());
    let (mut best, mut runs) = (f64::MAX, 0);
    while runs < 5 || begun.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    (best, processor_seconds().zip(busy).map(|(end, start)| (end - start) / f64::from(runs)))
}

/// A loop of nothing but multiply-adds.
struct Peak;

const CHAINS: usize = 10;
const STEPS: usize = 200_000;

impl WithSimd for Peak {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (a, b) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut chains = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, a, b);
            }
        }
        for chain in chains {
            black_box(simd.reduce_sum_f32s(chain));
        }
    }
}

/// Values in a register.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// Peak of so many threads in GF/s, from one: the best, and the mean by processor time.
fn peak(threads: usize) -> (f64, Option<f64>) {
    let lanes = pulp::Arch::new().dispatch(Lanes);
    let operations = 2.0 * (CHAINS * STEPS * threads * lanes) as f64 / 1e9;
    let (best, busy) = times(|| pulp::Arch::new().dispatch(Peak));
    (operations / best, busy.map(|busy| operations / busy))
}

fn main() {
    let filter = std::env::args()
        .nth(1)
        .filter(|a| !a.starts_with('-') && !a.contains('=') && a != "bf16")
        .unwrap_or_default();
    let threads = std::env::args().find_map(|a| a.strip_prefix("threads=")?.parse().ok()).unwrap_or(0);
    let bf16 = std::env::args().any(|a| a == "bf16");
    let cpu = Cpu::new(threads).expect("threads");
    let (peak, steady) = peak(cpu.threads());
    println!("{cpu:?}: {peak:.0} GF/s at the peak; {:.0} by processor time", steady.unwrap_or(f64::NAN));
    let report = |name: String, operations: f64, (best, busy): (f64, Option<f64>)| {
        let rate = operations / best / 1e9;
        print!("{name:<40} {:9.3} ms {rate:6.0} GF/s {:4.0} %", best * 1e3, 100.0 * rate / peak);
        if let Some(busy) = busy {
            print!(
                "  by processor time {:4.0} %",
                100.0 * operations / busy / 1e9 / (peak / cpu.threads() as f64)
            );
        }
        println!();
    };
    let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
    if "gemm".contains(&filter) {
        for &Product { m, k, n, r } in BENCH.products {
            let pack = |values: &[f32], k| Packed::from_matrix(&cpu, precision, &Matrix::of(values, k, n));
            let (x, w) = (values(m * k, 1), pack(&values(k * n, 2), k));
            let (h, up) = (values(m * r, 3), pack(&values(r * n, 4), r));
            let mut out = Memory::zeros(m * n);
            let seconds = times(|| {
                let extra = (r > 0).then_some((Left::Rows(&h, r), &up));
                gemm(
                    &cpu,
                    Gemm {
                        m,
                        x: Left::Rows(&x, k),
                        weight: &w,
                        extra,
                        bias: None,
                        accumulate: false,
                        out: &mut out,
                        out_stride: n,
                    },
                );
            });
            report(format!("gemm {m}x{k}x{n} lora {r}"), 2.0 * (m * n * (k + r)) as f64, seconds);
        }
    }
    if "tn".contains(&filter) {
        for &(m, p, q) in BENCH.factor_gradients {
            let (a, b, mut out) = (values(m * p, 1), values(m * q, 2), Memory::zeros(p * q));
            let seconds = times(|| {
                gemm_tn(
                    &cpu,
                    GemmTn {
                        m,
                        p,
                        q,
                        a: &a,
                        a_stride: p,
                        b: &b,
                        b_stride: q,
                        accumulate: false,
                        out: &mut out,
                    },
                );
            });
            report(format!("gemm_tn {m}: {p}x{q}"), 2.0 * (m * p * q) as f64, seconds);
        }
    }
    if "attention".contains(&filter) {
        for &shape in BENCH.attention {
            let AttentionShape { batch, heads, tokens, dim, .. } = shape;
            let all = batch * heads * tokens * dim;
            let [q, k, v, d_out] = [1, 2, 3, 4].map(|seed| values(all, seed));
            let (mut out, mut lse) = (Memory::zeros(all), Memory::zeros(batch * heads * tokens));
            let [mut dq, mut dk, mut dv] = [(); 3].map(|()| Memory::zeros(all));
            let seconds = times(|| {
                attention(
                    &cpu,
                    Attention {
                        shape,
                        precision,
                        query_rows: 0..tokens,
                        q: &q,
                        k: &k,
                        v: &v,
                        out: &mut out,
                        out_stride: heads * dim,
                        lse: &mut lse,
                    },
                );
            });
            let product = 2.0 * (all * tokens) as f64;
            report(format!("attention {batch}x{heads}x{tokens}x{dim}"), 2.0 * product, seconds);
            let seconds = times(|| {
                attention_backward(
                    &cpu,
                    AttentionBackward {
                        shape,
                        precision,
                        query_rows: 0..tokens,
                        q: &q,
                        k: &k,
                        v: &v,
                        out: &out,
                        out_stride: heads * dim,
                        lse: &lse,
                        d_out: &d_out,
                        d_out_stride: heads * dim,
                        dq: &mut dq,
                        dk: &mut dk,
                        dv: &mut dv,
                    },
                );
            });
            report(format!("  backward {batch}x{heads}x{tokens}x{dim}"), 5.0 * product, seconds);
        }
    }
    if "passes".contains(&filter) {
        passes(&cpu);
    }
}

/// Passes that wait for memory, in bytes read and written.
fn passes(cpu: &Cpu) {
    let rows = BENCH.rows[0];
    let (count, d, len) = (rows.batch * rows.tokens, rows.width, rows.len());
    let report = |name: &str, slices: usize, (best, _): (f64, Option<f64>)| {
        let rate = (4 * slices * len) as f64 / best / 1e9;
        println!("{name:<40} {:9.3} ms {rate:6.1} GB/s", best * 1e3);
    };
    let (x, dy, modulation) = (values(len, 1), values(len, 2), values(rows.batch * 2 * d, 3));
    let (mut y, mut mean, mut rstd) = (Memory::zeros(len), Memory::zeros(count), Memory::zeros(count));
    let scale = &modulation[d..];
    let time =
        times(|| norm_modulate(cpu, rows, &x, &modulation, scale, 2 * d, &mut y, &mut mean, &mut rstd));
    report("norm and modulation", 2, time);
    let time = times(|| {
        norm_modulate_backward(cpu, rows, &x, &mean, &rstd, scale, 2 * d, &dy, &mut y, true, None);
    });
    report("  backward", 4, time);
    let layout = BENCH.heads[0];
    let (weight, angles) = (values(layout.dim, 4), values(layout.tokens * layout.dim / 2, 5));
    let norm_rotary = Some(NormRotary { weight: &weight, cos: &angles, sin: &angles });
    report("heads, norm and rotary", 2, times(|| split_heads(cpu, layout, (&x, d), norm_rotary, &mut y)));
    let time = times(|| split_heads_backward(cpu, layout, &dy, (&x, d), norm_rotary, (&mut y, d)));
    report("  backward", 3, time);
    report("gated sum", 3, times(|| gated_add(cpu, rows, &x, &modulation, 2 * d, &mut y)));
    let window = SubMatrix { rows: count, width: d };
    report("gelu", 2, times(|| gelu(cpu, window, &x, d, &mut y, d)));
    report("  backward", 3, times(|| gelu_backward(cpu, window, (&dy, d), (&mut y, d))));
    let top = |v: &f32| [v.to_le_bytes()[2], v.to_le_bytes()[3]];
    let bytes: Vec<u8> = values(8192 * 8192, 6).iter().flat_map(top).collect();
    let weight = Matrix::new(vec![Values::Bf16Bytes(&bytes)], 8192, 8192);
    for precision in [Precision::F32, Precision::Bf16] {
        let moved = bytes.len() + 8192 * 8192 * if precision == Precision::F32 { 4 } else { 2 };
        for (name, pack) in [
            ("weight", Packed::from_weight as fn(&Cpu, Precision, &Matrix<'_>) -> Packed),
            ("matrix", Packed::from_matrix),
        ] {
            let (best, _) = times(|| drop(pack(cpu, precision, &weight).passing(cpu)));
            println!(
                "{:<40} {:9.3} ms {:6.1} GB/s",
                format!("pack a bf16 {name} in {precision:?}"),
                best * 1e3,
                moved as f64 / best / 1e9
            );
        }
    }
    let mut scores = Memory::zeros(count);
    report("cosine scores", 1, times(|| cosine_scores(cpu, &x, &dy[..d], &mut scores)));
    let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let update = Update { settings, number: 3, factor: 0.9 };
    let (mut first, mut second) = (Memory::zeros(len), Memory::zeros(len));
    report("AdamW", 7, times(|| adamw(cpu, &update, &mut y, &x, &mut first, &mut second)));
}
