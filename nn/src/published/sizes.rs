//! The configurations of published networks: what they state of sizes, and what is needed to recognise them.

/// `config.json` of FLUX.1-dev's transformer: 19 and 38 blocks of width 3072.
pub const FLUX: &str = r#"{
  "_class_name": "FluxTransformer2DModel",
  "attention_head_dim": 128,
  "guidance_embeds": true,
  "in_channels": 64,
  "joint_attention_dim": 4096,
  "num_attention_heads": 24,
  "num_layers": 19,
  "num_single_layers": 38,
  "patch_size": 1,
  "pooled_projection_dim": 768
}
"#;

pub(super) const CLIP_L: &str = r#"{
  "architectures": ["CLIPTextModel"],
  "eos_token_id": 2,
  "hidden_act": "quick_gelu",
  "hidden_size": 768,
  "intermediate_size": 3072,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 12,
  "num_hidden_layers": 12,
  "projection_dim": 768,
  "vocab_size": 49408
}
"#;

pub(super) const CLIP_BIG_G: &str = r#"{
  "architectures": ["CLIPTextModelWithProjection"],
  "eos_token_id": 2,
  "hidden_act": "gelu",
  "hidden_size": 1280,
  "intermediate_size": 5120,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 20,
  "num_hidden_layers": 32,
  "projection_dim": 1280,
  "vocab_size": 49408
}
"#;

pub(super) const T5_XXL: &str = r#"{
  "d_ff": 10240,
  "d_kv": 64,
  "d_model": 4096,
  "dense_act_fn": "gelu_pytorch_tanh",
  "is_gated_act": true,
  "model_type": "t5",
  "num_heads": 64,
  "num_layers": 24,
  "relative_attention_num_buckets": 32,
  "vocab_size": 32128
}
"#;

pub(super) const VIT_H: &str = r#"{
  "architectures": ["CLIPVisionModelWithProjection"],
  "hidden_act": "gelu",
  "hidden_size": 1280,
  "image_size": 224,
  "intermediate_size": 5120,
  "layer_norm_eps": 1e-05,
  "model_type": "clip_vision_model",
  "num_attention_heads": 16,
  "num_channels": 3,
  "num_hidden_layers": 32,
  "patch_size": 14,
  "projection_dim": 1024
}
"#;

pub(super) const DINO_V2: &str = r#"{
  "architectures": ["Dinov2Model"],
  "hidden_act": "gelu",
  "hidden_size": 768,
  "image_size": 518,
  "layer_norm_eps": 1e-06,
  "mlp_ratio": 4,
  "model_type": "dinov2",
  "num_attention_heads": 12,
  "num_channels": 3,
  "num_hidden_layers": 12,
  "patch_size": 14,
  "qkv_bias": true,
  "use_swiglu_ffn": false
}
"#;
