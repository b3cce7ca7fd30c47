//! Lanes whose passes meet in the pool: a network large enough for its kernels to use it.

use std::{path::Path, sync::Arc, sync::mpsc, thread, time::Duration};

use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::{
    Cpu,
    files::{Dtype, NamedTensor, write_safetensors},
    models::FluxConfig,
};

/// Two steps take some seconds.
const PATIENCE: Duration = Duration::from_secs(240);

/// Numbers without pattern, in +-`scale`.
fn numbers(count: usize, salt: u64, scale: f32) -> Vec<f32> {
    let mixed = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (salt << 7));
    (0..count).map(|i| (((mixed(i) >> 40) & 0xFFFF) as f32 / 32768.0 - 1.0) * scale).collect()
}

fn write_backbone(folder: &Path) {
    let config = serde_json::json!({
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64,
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 16,
        "joint_attention_dim": 64, "pooled_projection_dim": 32, "guidance_embeds": false,
        "axes_dims_rope": [16, 24, 24],
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a configuration");
    let config: FluxConfig = serde_json::from_value(config).expect("a configuration");
    let tensor = |(salt, (name, shape)): (u64, (String, Vec<usize>))| {
        let count = shape.iter().product();
        let norm = shape.len() == 1 && name.contains("norm_");
        let values = if norm { vec![1.0; count] } else { numbers(count, salt, 0.05) };
        let bytes: Vec<u8> = values.iter().flat_map(|v| [v.to_le_bytes()[2], v.to_le_bytes()[3]]).collect();
        NamedTensor { name, dtype: Dtype::BF16, shape, bytes: bytes.into() }
    };
    let tensors: Vec<NamedTensor<'_>> = (0..).zip(config.tensors()).map(tensor).collect();
    write_safetensors(&folder.join("diffusion_pytorch_model.safetensors"), &tensors, &[]).expect("weights");
}

/// The losses of two steps of a recipe.
fn losses(recipe: &Path, weights: &Path, lanes: usize) -> Vec<f32> {
    let sets = [
        format!("backbone.weights={}", weights.display()),
        "pairs.height=64".into(),
        "pairs.width=64".into(),
        "pairs.reference_height=32".into(),
        "pairs.reference_width=32".into(),
        "pairs.batch=2".into(),
    ];
    let graph = spec::load(recipe, &sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}")).graph;
    let plan = Plan::new(&graph, &PlanOptions { lanes, ..PlanOptions::default() }).expect("a plan");
    let options = RunOptions { last: Some(1), ..RunOptions::new(0, Cpu::new(2).expect("threads")) };
    let mut runner = Runner::new(Arc::new(graph), plan, options).expect("a runner");
    (0..2).map(|_| runner.step().unwrap_or_else(|e| panic!("{e}")).loss.expect("a loss")).collect()
}

#[test]
fn two_lanes_whose_passes_meet_in_the_pool_end_with_the_losses_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    write_backbone(folder.path());
    for recipe in ["patchdpo", "focusdpo"] {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("graphs/{recipe}.ron"));
        let weights = folder.path().to_owned();
        let (done, result) = mpsc::channel();
        let name = recipe.display().to_string();
        thread::spawn(move || {
            let one = losses(&recipe, &weights, 1);
            for _ in 0..3 {
                assert_eq!(losses(&recipe, &weights, 2), one);
            }
            let _ = done.send(());
        });
        result.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{name}: lanes wait for each other: {e}"));
    }
}
