//! What adapter files hold besides the two factors of a network's linears, and what to call it.

use crate::naming::Names;

/// Names of text encoders begin so: sd-scripts and OneTrainer, diffusers, ComfyUI.
const TEXT_ENCODERS: [&str; 4] = ["lora_te", "text_encoder", "clip_l.", "t5xxl."];

/// Ends of names that other methods have, and what a file is then called.
const METHODS: [(&str, &str); 18] = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".lora_magnitude_vector.weight", "DoRA"),
    (".lora_mid.weight", "a LoRA of a convolution with a third factor (LoCon)"),
    (".hada_w1_a", "LoHa"),
    (".hada_w2_a", "LoHa"),
    (".lokr_w1", "LoKr"),
    (".lokr_w1_a", "LoKr"),
    (".lokr_w2", "LoKr"),
    (".lokr_w2_a", "LoKr"),
    (".oft_blocks", "OFT"),
    (".oft_R.weight", "OFT"),
    (".diff", "a change of whole weights"),
    (".diff_b", "a change of biases"),
    (".lora_B.bias", "a LoRA with biases"),
    (".lora_up.bias", "a LoRA with biases"),
    (".set_weight", "a control adapter"),
    (".reshape_weight", "a control adapter"),
];

/// Is this a tensor of a text encoder's adapter?
pub(in crate::lora) fn in_text_encoder(name: &str) -> bool {
    TEXT_ENCODERS.iter().any(|prefix| name.starts_with(prefix))
}

/// The method that has tensors of this name, where it is not LoRA.
pub(in crate::lora) fn other_method(name: &str) -> Option<&'static str> {
    METHODS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, method)| *method)
}

/// Is this a tensor of an IP-Adapter: of its keys and values, or of what makes its image tokens?
pub(in crate::lora) fn is_of_ip_adapter(name: &str) -> bool {
    name.starts_with("ip_adapter.") || name.starts_with("image_proj.")
}

/// Networks, by how the names of their linears begin in the layouts of diffusers and of the original releases.
const NETWORKS: [(&str, &[&str]); 2] = [
    (
        "a Stable Diffusion U-Net (SD 1.5, SDXL)",
        &["down_blocks", "up_blocks", "mid_block", "input_blocks", "middle_block", "output_blocks"],
    ),
    (
        "a FLUX transformer",
        &["transformer_blocks", "single_transformer_blocks", "double_blocks", "single_blocks"],
    ),
];

/// The network that has a linear of this name, where its beginning says so.
pub(in crate::lora) fn network_of(name: &str) -> Option<&'static str> {
    let begins = |(_, parts): &&(&str, &[&str])| parts.iter().any(|part| name.starts_with(part));
    NETWORKS.iter().find(begins).map(|(network, _)| *network)
}

/// What to say of a linear that the network with these names does not have.
pub(in crate::lora) fn unknown_linear(names: &Names, name: &str) -> String {
    let [(unet, _), (flux, _)] = NETWORKS;
    match network_of(name) {
        Some(network) if network == unet => format!("is a linear of {unet}, not of {}", names.network),
        Some(network) if network == flux && names.network != flux => {
            format!("is a linear of {flux}, not of {}", names.network)
        }
        _ => format!("is not a linear of {}", names.network),
    }
}
