//! The parts of a preference step on a FLUX of random weights: policy pass, reference pass, backward.
//!
//! `cargo bench -p prefgraph-nn --bench flux_step [-- small|bench|large [THREADS] [bf16] [streamed] [checkpointed]]`: 144 tokens of width 96, 576 of
//! width 256, 1572 of width 1024.

use std::{path::Path, sync::Arc, time::Instant};

use prefgraph_nn::{
    Adapter, Backbone, Cpu, DeviceKind, Inputs, Probe, Tensor,
    backbone::Scoring,
    cpu::Precision,
    files::{NamedTensor, write_safetensors},
    layers::{Loading, Packing},
    lora::{AdapterLayout, Init},
    models::{Checkpointing, FluxOptions, FluxUno},
    optim::{AdamW, OptimizerState},
};

struct Size {
    name: &'static str,
    heads: usize,
    head: usize,
    double: usize,
    single: usize,
    text: usize,
    text_width: usize,
    pooled: usize,
    grid: usize,
    reference: usize,
    pairs: usize,
    rank: usize,
    axes: [usize; 3],
}

const SIZES: [Size; 3] = [
    Size {
        name: "bench",
        heads: 4,
        head: 64,
        double: 2,
        single: 4,
        text: 64,
        text_width: 128,
        pooled: 64,
        grid: 32,
        reference: 32,
        pairs: 2,
        rank: 32,
        axes: [16, 24, 24],
    },
    Size {
        name: "small",
        heads: 3,
        head: 32,
        double: 1,
        single: 2,
        text: 16,
        text_width: 48,
        pooled: 32,
        grid: 16,
        reference: 16,
        pairs: 4,
        rank: 8,
        axes: [8, 12, 12],
    },
    Size {
        name: "large",
        heads: 8,
        head: 128,
        double: 4,
        single: 8,
        text: 64,
        text_width: 1024,
        pooled: 256,
        grid: 64,
        reference: 44,
        pairs: 1,
        rank: 32,
        axes: [16, 56, 56],
    },
];

struct Numbers(u64);

impl Numbers {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
    fn values(&mut self, count: usize, scale: f64) -> Vec<f32> {
        (0..count).map(|_| ((2.0 * self.uniform() - 1.0) * scale) as f32).collect()
    }
}

fn write_model(folder: &Path, size: &Size, numbers: &mut Numbers) {
    let config = serde_json::json!({
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64,
        "num_layers": size.double, "num_single_layers": size.single, "attention_head_dim": size.head,
        "num_attention_heads": size.heads, "joint_attention_dim": size.text_width,
        "pooled_projection_dim": size.pooled, "guidance_embeds": false, "axes_dims_rope": size.axes,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let config: prefgraph_nn::models::flux::FluxConfig = serde_json::from_value(config).unwrap();
    let tensors: Vec<_> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let inputs = *shape.last().unwrap() as f64;
            let values = if name.contains("norm_") && shape.len() == 1 {
                vec![1.0; shape[0]]
            } else {
                numbers.values(shape.iter().product(), 1.0 / inputs.sqrt())
            };
            NamedTensor::f32(name, shape, &values)
        })
        .collect();
    write_safetensors(&folder.join("diffusion_pytorch_model.safetensors"), &tensors, &[]).unwrap();
}

#[expect(clippy::print_stdout, reason = "a bench reports")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let (words, arguments): (Vec<String>, Vec<String>) =
        arguments.into_iter().partition(|a| ["bf16", "streamed", "checkpointed"].contains(&a.as_str()));
    let said = |word: &str| words.iter().any(|w| w == word);
    let options = FluxOptions {
        loading: Loading {
            precision: if said("bf16") { Precision::Bf16 } else { Precision::F32 },
            packing: if said("streamed") { Packing::Streamed } else { Packing::Resident },
        },
        checkpointing: if said("checkpointed") { Checkpointing::Blocks } else { Checkpointing::None },
        adapter: None,
    };
    let wanted = arguments.first().map_or("bench", String::as_str);
    let threads = arguments.get(1).map_or(0, |t| t.parse().unwrap());
    let size = SIZES.iter().find(|s| s.name == wanted).expect("small, bench or large");
    let mut numbers = Numbers(1);
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), size, &mut numbers);

    let device = Cpu::new(threads).unwrap();
    let started = Instant::now();
    let model = FluxUno::open_with(device.clone(), folder.path(), options).unwrap();
    let opened = started.elapsed();
    model.load().unwrap();
    println!("{wanted}: opened in {opened:.1?}, loaded in {:.1?}", started.elapsed());

    let n = 2 * size.pairs;
    let mut tensor = |c, h| Tensor::new(&device, (n, c, h, h), numbers.values(n * c * h * h, 1.7)).unwrap();
    let (x_t, reference) = (tensor(16, size.grid), tensor(16, size.reference));
    let inputs = Inputs {
        x_t,
        t: (0..n).map(|i| (i as f32 + 0.5) / n as f32).collect(),
        text: Tensor::new(
            &device,
            (n, size.text, size.text_width),
            numbers.values(n * size.text * size.text_width, 1.7),
        )
        .unwrap(),
        pooled: Tensor::new(&device, (n, size.pooled), numbers.values(n * size.pooled, 1.7)).unwrap(),
        references: vec![reference],
        guidance: None,
        sizes: Vec::new(),
        image_tokens: None,
        image_scale: None,
    };
    let targets: Vec<String> =
        model.layout().linears.iter().map(|l| l.name.clone()).filter(|n| !n.contains("norm")).collect();
    let (layout, _) =
        AdapterLayout::matching(&model.layout().linears, &targets, size.rank, size.rank as f32).unwrap();
    let layout = Arc::new(layout);
    let mut adapter = Adapter::new(Arc::clone(&layout), Init::KaimingUniform, |_| {
        let mut numbers = Numbers(7);
        move || numbers.uniform()
    });
    let mut state = OptimizerState::new(layout.len());
    let token_grid = (size.grid, size.grid);
    let cost = model.cost(
        DeviceKind::Cpu,
        n,
        token_grid,
        &[(size.reference, size.reference)],
        size.text,
        Some(&layout),
    );

    // As a graph with focus masks scores the winners.
    let tokens = n * (size.reference / 2) * (size.reference / 2);
    let masks = [vec![1.0; tokens]];
    let scoring =
        Scoring { blocks: 0..model.layout().blocks, cells: None, samples: size.pairs, masks: &masks };
    let looks = Probe { scores: Some(scoring), ..Probe::NOTHING };

    const STEPS: usize = 9;
    let mut times = vec![Vec::new(); 5];
    for step in 0..STEPS + 2 {
        let started = Instant::now();
        let mut marks = vec![started];
        let (policy, saved) = model.predict_saving(&inputs, &adapter, &looks).unwrap();
        marks.push(Instant::now());
        let reference = model.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
        marks.push(Instant::now());
        let mut cotangent = policy.latents;
        for (c, r) in cotangent.values_mut().iter_mut().zip(reference.values()) {
            *c = *c - r + 1e-3;
        }
        let gradient = model.backward(saved, &adapter, &cotangent).unwrap();
        marks.push(Instant::now());
        state.step(&device, &AdamW::default(), &mut adapter, &gradient).unwrap();
        marks.push(Instant::now());
        if step >= 2 {
            for (list, pair) in times.iter_mut().zip(marks.windows(2)) {
                list.push((pair[1] - pair[0]).as_secs_f64());
            }
            times[4].push(started.elapsed().as_secs_f64());
        }
    }
    let frozen =
        model.cost(DeviceKind::Cpu, n, token_grid, &[(size.reference, size.reference)], size.text, None);
    let flops = [cost.forward_flops, frozen.forward_flops, cost.backward_flops];
    for (i, (name, list)) in
        ["policy", "reference", "backward", "update", "all"].iter().zip(&mut times).enumerate()
    {
        list.sort_by(f64::total_cmp);
        let median = list[list.len() / 2];
        let rate = flops
            .get(i)
            .map_or(String::new(), |f| format!(", {:.1} GFLOP, {:.0} GFLOP/s", f / 1e9, f / median / 1e9));
        println!("{name:>9}: median {:.1} ms, least {:.1} ms{rate}", median * 1e3, list[0] * 1e3);
    }
}
