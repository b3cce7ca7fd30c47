//! The layout of OpenCLIP, which checkpoints of SDXL in one file have for ViT-bigG: queries, keys and values are one matrix.

use crate::encoders::weights::Place;

/// Where such a file has what transformers calls `name`.
pub(super) fn place(name: &str) -> Place {
    let whole = |name: String| Place { name, third: None };
    let Some(rest) = name.strip_prefix("encoder.layers.") else {
        return whole(match name {
            "embeddings.position_embedding.weight" => "positional_embedding".into(),
            other => other
                .replace("embeddings.token_embedding", "token_embedding")
                .replace("final_layer_norm", "ln_final"),
        });
    };
    let (number, part) = rest.split_once('.').unwrap_or((rest, ""));
    let at = |part: String| format!("transformer.resblocks.{number}.{part}");
    let thirds = ["self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."];
    for (third, linear) in thirds.iter().enumerate() {
        if let Some(kind) = part.strip_prefix(linear) {
            return Place { name: at(format!("attn.in_proj_{kind}")), third: Some(third) };
        }
    }
    let pairs = [
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    whole(at(pairs.iter().fold(part.to_owned(), |part, (from, to)| part.replace(from, to))))
}
