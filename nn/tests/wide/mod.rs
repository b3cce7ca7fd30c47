//! A FLUX of few blocks that are wide enough for its kernels to use the pool of threads.

use std::path::Path;

use prefgraph_nn::{
    files::{Dtype, NamedTensor, write_safetensors},
    models::FluxConfig,
};

/// Numbers without pattern, in +-`scale`.
pub fn numbers(count: usize, salt: u64, scale: f32) -> Vec<f32> {
    let mixed = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ (salt << 7));
    (0..count).map(|i| (((mixed(i) >> 40) & 0xFFFF) as f32 / 32768.0 - 1.0) * scale).collect()
}

/// A model of few blocks, each large enough for packing it to take the pool some time: a narrow one hides the race.
pub fn write_model(folder: &Path) {
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
