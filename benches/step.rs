//! One FocusDPO step as `benches/peers` time it, on weights that the peer wrote: prints one line of JSON.
//!
//! `cargo bench --bench step -- CONFIG WEIGHTS [THREADS] [LANES] [STEPS] [bf16] [streamed] [checkpointed]`, where CONFIG is
//! `small`, `bench` or `large` and WEIGHTS a diffusers transformer folder.
//!
//! Shape letters: `B` pairs, `G` `G` latent grid, `r` `r` latent grid of the reference, `L` text tokens.

use std::{error::Error, io::Write, sync::Arc};

use dfdx::{shapes::Const, tensor::TensorFromVec};
use prefgraph::{Graph, Plan, PlanOptions, RunOptions, Runner};
use prefgraph_nn::Cpu;
use prefgraph_ops::{
    Ctx, DataPath, Nothing, OpError, Operator,
    operator::{InShapes, OutShapes},
    operators::{
        backbone::{Backbone, BackboneSettings, Checkpointing, Compute, Packing},
        entropy::Entropy,
        forward::{Forward, ForwardSettings},
        fuse::Fuse,
        hook_attention::HookAttention,
        lora::{Lora, LoraSettings},
        lora_update::{LoraUpdate, LoraUpdateSettings},
        mask_field::MaskField,
        masked_loss::MaskedLoss,
        moments::ZeroMoments,
        noise::Noise,
        reference::Reference,
        scores::Hooks,
    },
    ports::{
        ImageShape, Images, Latents, List, ListShape, Mask, Pooled, Process, TextTokens, TimeShape, Timesteps,
    },
};

/// Sizes of a batch; those of the network come with the weights.
#[derive(Clone, Copy)]
struct Size {
    name: &'static str,
    batch: usize,
    grid: usize,
    reference: usize,
    text: (usize, usize),
    pooled: usize,
    rank: usize,
}

const SIZES: [Size; 3] = [
    Size { name: "small", batch: 4, grid: 16, reference: 16, text: (16, 48), pooled: 32, rank: 8 },
    Size { name: "bench", batch: 2, grid: 32, reference: 32, text: (64, 128), pooled: 64, rank: 32 },
    Size { name: "large", batch: 1, grid: 64, reference: 44, text: (64, 1024), pooled: 256, rank: 32 },
];

/// Draws a batch inside the timed step, as the peer does.
struct Draw(Size);

impl Operator for Draw {
    const NAME: &'static str = "draw";
    const DOC: &'static str = "A random batch.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 8] = ["x0_w", "x0_l", "references", "t", "text", "pooled", "winner", "priors"];
    type Settings = Nothing;
    type In = ();
    type Out = (Latents, Latents, List<Latents>, Timesteps, TextTokens, Pooled, Images, List<Mask>);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self(SIZES[0]))
    }

    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let Size { batch, grid, reference, text, pooled, .. } = self.0;
        let latents = (batch, 16, grid, grid);
        Ok((
            latents,
            latents,
            ListShape(vec![(batch, 16, reference, reference)]),
            TimeShape { batch, process: Process::Flow },
            (batch, text.0, text.1),
            (batch, pooled),
            ImageShape { batch, height: 8 * grid, width: 8 * grid },
            ListShape(vec![(batch, Const, grid / 2, grid / 2)]),
        ))
    }

    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<(Self::Out, ()), OpError> {
        let shapes = Operator::shapes(self, (), 0)?;
        let Size { batch, grid, .. } = self.0;
        let mut random = ctx.random("batch");
        let mut normals = |dims: &[usize]| random.normals(dims.iter().product());
        let (c, g) = (16, grid);
        let x0_w = normals(&[batch, c, g, g]);
        let off = normals(&[batch, c, g, g]);
        let x0_l = x0_w.iter().zip(off).map(|(w, o)| w + 0.1 * o).collect();
        let r = shapes.2.0[0];
        let reference = normals(&[r.0, r.1, r.2, r.3]);
        let text = normals(&[shapes.4.0, shapes.4.1, shapes.4.2]);
        let pooled = normals(&[shapes.5.0, shapes.5.1]);
        let t = (0..batch).map(|_| random.uniform() as f32).collect();
        let pixels = batch * 64 * g * g * 3;
        let rgb = (0..pixels.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).take(pixels).collect();
        let tokens = g * g / 4;
        let prior = (0..batch * tokens).map(|i| f32::from(u8::from(i % tokens < tokens / 3))).collect();
        let host = ctx.host;
        Ok((
            (
                host.tensor_from_vec(x0_w, shapes.0),
                host.tensor_from_vec(x0_l, shapes.1),
                List(vec![host.tensor_from_vec(reference, r)]),
                Timesteps::new(Process::Flow, t),
                host.tensor_from_vec(text, shapes.4),
                host.tensor_from_vec(pooled, shapes.5),
                Images { batch, height: 8 * g, width: 8 * g, rgb: Arc::new(rgb) },
                List(vec![host.tensor_from_vec(prior, shapes.7.0[0])]),
            ),
            (),
        ))
    }
}

fn step(size: Size, weights: &str, words: &[String]) -> Result<Graph, OpError> {
    let mut g = Graph::new("step");
    let (x0_w, x0_l, references, t, text, pooled, winner, priors) = g.add("draw", Draw(size), ());
    let said = |word: &str| words.iter().any(|w| w == word);
    let weights = BackboneSettings {
        weights: DataPath(weights.into()),
        compute: if said("bf16") { Compute::Bf16 } else { Compute::F32 },
        packing: if said("streamed") { Packing::Streamed } else { Packing::Resident },
        checkpointing: if said("checkpointed") { Checkpointing::Blocks } else { Checkpointing::None },
        ..Default::default()
    };
    let (backbone,) = g.add("backbone", Backbone::new(weights)?, ());
    let lora = LoraSettings { rank: size.rank, ..Default::default() };
    let (lora,) = g.add("lora", Lora::new(lora)?, (backbone,));
    let (moments,) = g.add("moments", ZeroMoments, (lora,));
    let (x_t, target, times, _) = g.add("noise", Noise::new(Default::default())?, (x0_w, x0_l, t, None));
    let hooks = ForwardSettings { hooks: Hooks::All, ..Default::default() };
    let none = None::<prefgraph::Wire<List<Mask>>>;
    let inputs = (backbone, lora, x_t, times, text, pooled, Some(references), none);
    let (policy, scores) = g.add("policy", Forward::new(hooks)?, inputs);
    let inputs = (backbone, x_t, times, text, pooled, Some(references));
    let (reference,) = g.add("reference", Reference::new(Default::default())?, inputs);
    let (matched,) = g.add("found", HookAttention, (scores, priors));
    let (structure, prior) = g.add("structure", MaskField, (Some(matched), priors));
    let (detail,) = g.add("detail", Entropy::new(Default::default())?, (winner,));
    let no_flags = None::<prefgraph::Wire<prefgraph_ops::ports::PerSample>>;
    let (mask, ..) =
        g.add("fuse", Fuse::new(Default::default())?, (Some(structure), Some(detail), prior, no_flags));
    let no_ids = None::<prefgraph::Wire<prefgraph_ops::ports::Texts>>;
    let inputs = (policy, target, Some(reference), Some(mask), Some(t), no_ids);
    let (loss, _) = g.add("loss", MaskedLoss::new(Default::default())?, inputs);
    let update = LoraUpdateSettings { max_grad_norm: 0.0, ..Default::default() };
    let (next, next_moments, _) =
        g.add("update", LoraUpdate::new(update)?, (lora, lora.cotangent(), moments));
    g.set_loss(loss);
    g.carry(lora, next);
    g.carry(moments, next_moments);
    Ok(g)
}

/// The largest resident set of this process so far.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let (words, arguments): (Vec<String>, Vec<String>) =
        arguments.into_iter().partition(|a| ["bf16", "streamed", "checkpointed"].contains(&a.as_str()));
    let [config, weights, rest @ ..] = &arguments[..] else {
        // `cargo bench` without arguments runs every bench; this one needs weights.
        eprintln!(
            "skipped: cargo bench --bench step -- small|bench|large WEIGHTS [THREADS] [LANES] [STEPS] [bf16]"
        );
        return Ok(());
    };
    let number = |at: usize, default: usize| rest.get(at).map_or(Ok(default), |n| n.parse());
    let (threads, lanes, steps) = (number(0, 2)?, number(1, 1)?, number(2, 7)?);
    let size = *SIZES.iter().find(|s| s.name == config).ok_or("the config is small, bench or large")?;
    let graph = step(size, weights, &words)?;
    let dtype = if words.iter().any(|w| w == "bf16") { "bf16" } else { "f32" };
    let plan = Plan::new(&graph, &PlanOptions { lanes, ahead: lanes - 1, ..Default::default() })?;
    let mut runner = Runner::new(Arc::new(graph), plan, RunOptions::new(0, Cpu::new(threads)?))?;
    let mut seconds = Vec::new();
    let mut loss = f32::NAN;
    for warm in 0..steps + 2 {
        let started = std::time::Instant::now();
        let out = runner.step()?;
        if warm >= 2 {
            seconds.push(started.elapsed().as_secs_f64());
        }
        loss = out.loss.unwrap_or(f32::NAN);
    }
    seconds.sort_by(f64::total_cmp);
    let (min, median, max) = (seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    writeln!(
        std::io::stdout(),
        r#"{{"config": "{config}", "threads": {threads}, "lanes": {lanes}, "dtype": "{dtype}", "loss": {loss}, "median_s": {median}, "min_s": {min}, "max_s": {max}, "peak_bytes": {}}}"#,
        peak_bytes()
    )?;
    Ok(())
}
