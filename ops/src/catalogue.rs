//! The list of all operators that this library ships.

use crate::{
    operator::Operator,
    operators::{
        as_target::AsTarget,
        backbone::Backbone,
        benchmark::Benchmark,
        blank::Blank,
        cosine::Cosine,
        decode::Decode,
        dropout::{DropImagePrompt, DropText, Dropout},
        encode::{Encode, EncodeReferences},
        entropy::Entropy,
        export::Export,
        features::Features,
        forward::Forward,
        fuse::Fuse,
        hook_attention::HookAttention,
        image_prompt::ImagePrompts,
        log::Log,
        lora::Lora,
        lora_update::LoraUpdate,
        mask_field::MaskField,
        masked_loss::MaskedLoss,
        measure::Measure,
        moments::ZeroMoments,
        noise::Noise,
        pairs::{Pairs, Prompts},
        patch_quality::PatchQuality,
        pick::Pick,
        picture_embedding::PictureEmbedding,
        picture_features::PictureFeatures,
        pictures::Pictures,
        preview::Preview,
        prompt::Prompt,
        reference::Reference,
        refine::Refine,
        replay::Replay,
        sample::Sample,
        sizes::PictureSizes,
        stored_embedding::StoredEmbedding,
        strip::Strip,
        text_embedding::TextEmbedding,
        timestep::Timestep,
        weighted_loss::WeightedLoss,
    },
};

/// Is shown every operator, as a type.
pub trait Visit {
    /// One operator.
    fn operator<O: Operator>(&mut self);
}

/// Show every shipped operator to `v`, with all axes at run time where it has axes: the order is that of a training
/// step.
pub fn visit_all(v: &mut impl Visit) {
    // Data.
    v.operator::<Pairs>();
    v.operator::<Prompts>();
    v.operator::<Replay>();
    v.operator::<Encode>();
    v.operator::<EncodeReferences>();
    v.operator::<Decode>();
    v.operator::<Pick>();
    v.operator::<Refine>();
    v.operator::<Prompt>();
    v.operator::<ImagePrompts>();
    v.operator::<PictureSizes>();
    v.operator::<Dropout>();
    v.operator::<DropText>();
    v.operator::<DropImagePrompt>();
    // Noise.
    v.operator::<Timestep>();
    v.operator::<Noise>();
    // Networks.
    v.operator::<Backbone>();
    v.operator::<Lora>();
    v.operator::<ZeroMoments>();
    v.operator::<Forward>();
    v.operator::<Reference>();
    v.operator::<AsTarget>();
    // Where to look.
    v.operator::<HookAttention>();
    v.operator::<MaskField>();
    v.operator::<Entropy>();
    v.operator::<Fuse>();
    v.operator::<Features>();
    v.operator::<PictureFeatures>();
    v.operator::<PatchQuality>();
    // What is asked for.
    v.operator::<MaskedLoss>();
    v.operator::<WeightedLoss>();
    // After the backward.
    v.operator::<LoraUpdate>();
    v.operator::<Log>();
    v.operator::<Measure>();
    v.operator::<Preview>();
    // What the networks draw.
    v.operator::<Blank>();
    v.operator::<Sample>();
    v.operator::<Strip>();
    v.operator::<Pictures>();
    // How good pictures are.
    v.operator::<Benchmark>();
    v.operator::<PictureEmbedding>();
    v.operator::<TextEmbedding>();
    v.operator::<StoredEmbedding>();
    v.operator::<Cosine>();
    // What remains.
    v.operator::<Export>();
}
