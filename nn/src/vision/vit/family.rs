//! The families of vision transformers that are read, and what each calls its tensors in the files of transformers.

use crate::encoders::block::BlockNames;

/// Whose vision transformer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VitFamily {
    /// CLIP and OpenCLIP: a norm before the first block, no bias of the patches, a projection of the class token.
    Clip,
    /// DINO, in the layout of `ViTModel`.
    Dino,
    /// DINOv2: what a block adds is scaled.
    Dinov2,
}

impl VitFamily {
    /// What the names of tensors begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Clip => "vision_model.",
            Self::Dino | Self::Dinov2 => "",
        }
    }

    /// The class token.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Clip => "embeddings.class_embedding",
            Self::Dino | Self::Dinov2 => "embeddings.cls_token",
        }
    }

    /// The convolution of the patches, without `.weight`.
    pub(super) fn patches(self) -> &'static str {
        match self {
            Self::Clip => "embeddings.patch_embedding",
            Self::Dino | Self::Dinov2 => "embeddings.patch_embeddings.projection",
        }
    }

    /// Has that convolution a bias?
    pub(super) fn patches_have_bias(self) -> bool {
        self != Self::Clip
    }

    /// The embeddings of positions.
    pub(super) fn positions(self) -> &'static str {
        match self {
            Self::Clip => "embeddings.position_embedding.weight",
            Self::Dino | Self::Dinov2 => "embeddings.position_embeddings",
        }
    }

    /// Are positions interpolated for pictures of another size?
    pub(super) fn interpolates(self) -> bool {
        self != Self::Clip
    }

    /// The norm before the first block, in the spelling of the files.
    pub(super) fn first_norm(self) -> Option<&'static str> {
        (self == Self::Clip).then_some("pre_layrnorm")
    }

    /// The norm after the last block.
    pub(super) fn last_norm(self) -> &'static str {
        match self {
            Self::Clip => "post_layernorm",
            Self::Dino | Self::Dinov2 => "layernorm",
        }
    }

    /// What all the tensors of blocks begin with.
    pub(super) fn blocks(self) -> &'static str {
        match self {
            Self::Clip => "encoder.layers.",
            Self::Dino | Self::Dinov2 => "encoder.layer.",
        }
    }

    /// The names of a block.
    pub(super) fn block(self, number: usize) -> BlockNames {
        let at = |part: &str| format!("encoder.layer.{number}.{part}");
        let [q, k, v] = ["query", "key", "value"].map(|l| at(&format!("attention.attention.{l}")));
        let attention = [q, k, v, at("attention.output.dense")];
        match self {
            Self::Clip => BlockNames::clip(number),
            Self::Dino => BlockNames {
                norms: [at("layernorm_before"), at("layernorm_after")],
                attention,
                mlp: [at("intermediate.dense"), at("output.dense")],
                scales: None,
            },
            Self::Dinov2 => BlockNames {
                norms: [at("norm1"), at("norm2")],
                attention,
                mlp: [at("mlp.fc1"), at("mlp.fc2")],
                scales: Some([at("layer_scale1.lambda1"), at("layer_scale2.lambda1")]),
            },
        }
    }
}
