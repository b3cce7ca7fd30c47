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

/// What to say of a linear that the network with these names does not have.
pub(in crate::lora) fn unknown_linear(names: &Names, name: &str) -> String {
    const UNET: [&str; 6] =
        ["down_blocks", "up_blocks", "mid_block", "input_blocks", "middle_block", "output_blocks"];
    if UNET.iter().any(|part| name.starts_with(part)) {
        format!("is a linear of a Stable Diffusion U-Net (SD 1.5, SDXL), not of {}", names.network)
    } else {
        format!("is not a linear of {}", names.network)
    }
}
