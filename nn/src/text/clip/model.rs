//! Which of the published text encoders is wanted, and how the others are told from it.

use crate::{device::Activation, encoders::config::activation_name};

/// A published text encoder of CLIP's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipModel {
    /// OpenAI's ViT-L/14 without its projection: that of FLUX, and the first one of SDXL.
    L,
    /// OpenCLIP's ViT-bigG/14 with its projection: the second one of SDXL.
    BigG,
    /// The text half of any `CLIPModel` with its projection: what compares texts with pictures.
    Pair,
}

impl ClipModel {
    /// The model in messages, with an article.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::L => "the CLIP text encoder",
            Self::BigG => "the text encoder of OpenCLIP ViT-bigG",
            Self::Pair => "a CLIP model",
        }
    }

    /// Its folder in a checkpoint of diffusers.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Self::L | Self::Pair => "text_encoder",
            Self::BigG => "text_encoder_2",
        }
    }

    /// A single file that it is published as.
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::L => "clip_l.safetensors",
            Self::BigG => "clip_g.safetensors",
            Self::Pair => "model.safetensors",
        }
    }

    /// Its activation, where all that are meant have one.
    pub(super) fn activation(self) -> Option<Activation> {
        match self {
            Self::L => Some(Activation::QuickGelu),
            Self::BigG => Some(Activation::GeluErf),
            Self::Pair => None,
        }
    }

    /// Does a projection follow the token that ends a text?
    pub(super) fn is_projected(self) -> bool {
        self != Self::L
    }

    /// Refuse the width of another published encoder, which is all that tells a single file of one from that of another.
    pub(super) fn check_width(self, width: usize) -> Result<(), String> {
        let (expected, found) = match (self, width) {
            (Self::L, 1024 | 1280) => ("CLIP-L, 768 wide", "an OpenCLIP text encoder"),
            (Self::BigG, 768) => ("OpenCLIP ViT-bigG, 1280 wide", "CLIP-L"),
            (Self::BigG, 1024) => ("OpenCLIP ViT-bigG, 1280 wide", "OpenCLIP ViT-H"),
            _ => return Ok(()),
        };
        Err(format!("is {found} by its width, {width}: expected {expected} (`{}`)", self.file()))
    }

    /// Refuse the activation of another one: a configuration states it.
    pub(super) fn check_activation(self, found: Activation) -> Result<(), String> {
        let (expected, other) = match self {
            Self::L => (Activation::QuickGelu, "CLIP-L has it; OpenCLIP's encoders have another"),
            Self::BigG => (Activation::GeluErf, "OpenCLIP ViT-bigG has it; CLIP-L has another"),
            Self::Pair => return Ok(()),
        };
        if found == expected {
            return Ok(());
        }
        let [found, expected] = [found, expected].map(activation_name);
        Err(format!("hidden_act is {found}: expected {expected}, as {other}"))
    }
}
