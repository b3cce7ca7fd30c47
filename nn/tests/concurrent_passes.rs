//! Passes from several threads over one model whose kernels use the pool: no pool thread blocks on another pass.
//!
//! The golden cases are too small for that: their kernels run on the caller's own thread.

use std::{
    path::Path,
    sync::{Arc, Barrier, mpsc},
    thread,
    time::Duration,
};

use prefgraph_nn::{
    Adapter, Backbone, Cpu, Inputs, Probe, Tensor,
    files::{Dtype, NamedTensor, write_safetensors},
    lora::AdapterLayout,
    models::{FluxUno, flux::FluxConfig},
};

const THREADS: usize = 2;
/// Models that are opened anew: a race is not lost every time.
const ROUNDS: usize = 4;
/// A round takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// Numbers without pattern, in +-`scale`.
fn numbers(count: usize, salt: u64, scale: f32) -> Vec<f32> {
    let mixed = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (salt << 7));
    (0..count).map(|i| (((mixed(i) >> 40) & 0xFFFF) as f32 / 32768.0 - 1.0) * scale).collect()
}

/// A model of few blocks, each large enough for packing it to take the pool some time: a narrow one hides the race.
fn write_model(folder: &Path) {
    let config = serde_json::json!({
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64,
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 16,
        "joint_attention_dim": 64, "pooled_projection_dim": 32, "guidance_embeds": false,
        "axes_dims_rope": [16, 24, 24],
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let config: FluxConfig = serde_json::from_value(config).unwrap();
    let tensor = |(salt, (name, shape)): (u64, (String, Vec<usize>))| {
        let count = shape.iter().product();
        let norm = shape.len() == 1 && name.contains("norm_");
        let values = if norm { vec![1.0; count] } else { numbers(count, salt, 0.05) };
        let bytes: Vec<u8> = values.iter().flat_map(|v| [v.to_le_bytes()[2], v.to_le_bytes()[3]]).collect();
        NamedTensor { name, dtype: Dtype::BF16, shape, bytes: bytes.into() }
    };
    let tensors: Vec<NamedTensor<'_>> = (0..).zip(config.tensors()).map(tensor).collect();
    write_safetensors(&folder.join("diffusion_pytorch_model.safetensors"), &tensors, &[]).unwrap();
}

fn inputs(cpu: &Cpu) -> Inputs {
    let latents = |h, w, salt| Tensor::new(cpu, (1, 16, h, w), numbers(16 * h * w, salt, 1.0)).unwrap();
    Inputs {
        x_t: latents(16, 16, 1),
        t: vec![0.5],
        text: Tensor::new(cpu, (1, 8, 64), numbers(8 * 64, 2, 1.0)).unwrap(),
        pooled: Tensor::new(cpu, (1, 32), numbers(32, 3, 1.0)).unwrap(),
        references: vec![latents(8, 8, 4)],
        guidance: None,
    }
}

fn open(folder: &Path) -> (FluxUno, Adapter) {
    let model = FluxUno::open(Cpu::new(THREADS).unwrap(), folder).unwrap();
    let layout = Arc::new(AdapterLayout::matching(&model.layout().linears, &["*"], 4, 4.0).unwrap().0);
    let values = Arc::new(numbers(layout.len(), 5, 0.05));
    (model, Adapter { layout, values })
}

/// The bits of a prediction and of a gradient.
fn pass(model: &FluxUno, adapter: &Adapter) -> (Vec<u32>, Vec<u32>) {
    let inputs = inputs(model.device());
    let (prediction, saved) = model.predict_saving(&inputs, adapter, &Probe::NOTHING).unwrap();
    let gradient = model.backward(saved, adapter, &inputs.x_t).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    (bits(prediction.latents.values()), bits(&gradient.values))
}

/// Runs `work` in a thread of its own and gives it up when it takes too long.
fn watched<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    result.recv_timeout(PATIENCE).expect("the passes wait for each other, or one of them has failed")
}

#[test]
fn passes_that_start_together_on_a_model_that_is_not_loaded_end_with_the_bits_of_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let folder = dir.path().to_owned();
    watched(move || {
        let (model, adapter) = open(&folder);
        let alone = pass(&model, &adapter);
        for _ in 0..ROUNDS {
            let (model, adapter) = open(&folder);
            let start = Barrier::new(3);
            thread::scope(|scope| {
                let run = || {
                    start.wait();
                    pass(&model, &adapter)
                };
                let passes = [(); 3].map(|()| scope.spawn(run));
                for found in passes {
                    assert!(found.join().unwrap() == alone);
                }
            });
        }
    });
}

#[test]
fn backwards_that_start_together_end_with_the_bits_of_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let folder = dir.path().to_owned();
    watched(move || {
        let (model, adapter) = open(&folder);
        let (_, alone) = pass(&model, &adapter);
        for _ in 0..ROUNDS {
            // No backward has packed a weight yet.
            let (model, adapter) = open(&folder);
            let start = Barrier::new(3);
            let inputs = inputs(model.device());
            let saved = [(); 3].map(|()| model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap().1);
            thread::scope(|scope| {
                let backwards = saved.map(|saved| {
                    scope.spawn(|| {
                        start.wait();
                        model.backward(saved, &adapter, &inputs.x_t).unwrap()
                    })
                });
                for found in backwards {
                    let gradient = found.join().unwrap();
                    assert!(gradient.values.iter().map(|v| v.to_bits()).eq(alone.iter().copied()));
                }
            });
        }
    });
}
