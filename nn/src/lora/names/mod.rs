//! What the names in an adapter file say: which tensor is which factor of which linear.
//!
//! Tools combine a prefix, a name of the linear and an ending for the factor nearly at will, so each of the three has a
//! table of its own, and every tensor is read by itself:
//!
//! ```text
//! transformer.       transformer_blocks.0.attn.to_q              .lora_A.weight      diffusers
//! base_model.model.  transformer_blocks.0.attn.to_q              .lora_A.weight      PEFT
//! diffusion_model.   double_blocks.0.img_attn.qkv                .lora_A.weight      ComfyUI
//! lora_unet_         double_blocks_0_img_attn_qkv                .lora_down.weight   kohya
//! lora_transformer_  transformer_blocks_0_attn_to_q              .lora_down.weight   OneTrainer
//!                    double_blocks.0.processor.qkv_lora1         .down.weight        UNO, XLabs
//! ```
//!
//! ```text
//! tensor_name   a name as prefix, module and ending    linear   from a module to the linear
//! uno           the names of UNO's and XLabs' pairs    foreign  what is refused, and what to call it
//! ```

mod foreign;
mod linear;
mod tensor_name;
pub(super) mod uno;

pub(super) use foreign::{in_text_encoder, is_of_ip_adapter, network_of, other_method, unknown_linear};
pub(super) use linear::{Linear, Spelling, locate};
pub(super) use tensor_name::{Side, TensorName};
