//! The name of a tensor in an adapter file, taken apart: prefix, module, ending.

use super::uno;
use crate::naming::Names;

/// What may stand before the name of a linear, in any combination: parts of a pipeline, PEFT's wrapper, ComfyUI's model.
const PREFIXES: [&str; 4] = ["transformer.", "base_model.model.", "diffusion_model.", "unet."];
/// The same where dots are underscores: sd-scripts, OneTrainer, LyCORIS.
const UNDERSCORED: [&str; 3] = ["lora_unet_", "lora_transformer_", "lycoris_"];

/// Endings of A and of B.
const PAIRS: [[&str; 2]; 4] = [
    // PEFT, as it saves.
    [".lora_A.weight", ".lora_B.weight"],
    KOHYA,
    // diffusers before PEFT.
    [".lora.down.weight", ".lora.up.weight"],
    // The same, when it kept factors in the attention's processor: `.processor.to_q_lora.down.weight`.
    ["_lora.down.weight", "_lora.up.weight"],
];
const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];
/// Of UNO and XLabs. Too short to say anything by themselves.
const SHORT: [&str; 2] = [".down.weight", ".up.weight"];
const ALPHA: &str = ".alpha";

/// What a tensor of an adapter file is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lora) enum Side {
    /// A, `[R, K]`.
    Down,
    /// B, `[N, R]`.
    Up,
    /// A number.
    Alpha,
}

/// A name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lora) struct TensorName<'a> {
    /// What stands before the module.
    pub prefix: &'a str,
    /// The module as the file spells it.
    pub module: &'a str,
    /// What follows the module.
    pub ending: &'a str,
    /// Which factor that is.
    pub side: Side,
}

impl<'a> TensorName<'a> {
    /// Take a name apart; nothing if it does not end as those of factors do.
    pub fn parse(names: &'static Names, name: &'a str) -> Option<Self> {
        let mut bare = name;
        while let Some(rest) = PREFIXES.iter().find_map(|p| bare.strip_prefix(p)) {
            bare = rest;
        }
        bare = UNDERSCORED.iter().find_map(|p| bare.strip_prefix(p)).unwrap_or(bare);
        let prefix = &name[..name.len() - bare.len()];
        let (module, side) = module_and_side(names, bare)?;
        Some(Self { prefix, module, ending: &bare[module.len()..], side })
    }

    /// Does PEFT name its factors so?
    pub fn is_peft(&self) -> bool {
        self.ending.starts_with(".lora_A") || self.ending.starts_with(".lora_B")
    }

    /// Do sd-scripts name their factors so?
    pub fn is_kohya(&self) -> bool {
        KOHYA.contains(&self.ending)
    }

    /// Is it a name in which dots are underscores?
    pub fn is_underscored(&self) -> bool {
        UNDERSCORED.iter().any(|p| self.prefix.ends_with(p))
    }
}

fn module_and_side<'n>(names: &'static Names, name: &'n str) -> Option<(&'n str, Side)> {
    let one_of = |pair: &[&str; 2]| {
        let sides = pair.iter().zip([Side::Down, Side::Up]);
        sides.into_iter().find_map(|(ending, side)| Some((name.strip_suffix(ending)?, side)))
    };
    let short = one_of(&SHORT);
    // `single_blocks.0.processor.qkv_lora.down.weight` is UNO's, although `_lora.down.weight` is an ending, too.
    short
        .filter(|(module, _)| uno::place(names, module).is_some())
        .or_else(|| PAIRS.iter().find_map(one_of))
        .or_else(|| with_adapter_name(name))
        .or_else(|| Some((name.strip_suffix(ALPHA)?, Side::Alpha)))
        .or_else(|| short.filter(|(module, _)| module.contains(".processor.")))
}

/// PEFT's names in memory, where every adapter has a name: `.lora_A.default.weight`.
fn with_adapter_name(name: &str) -> Option<(&str, Side)> {
    let (module, _) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let sides = [(".lora_A", Side::Down), (".lora_B", Side::Up)];
    sides.into_iter().find_map(|(ending, side)| Some((module.strip_suffix(ending)?, side)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::flux::NAMES;

    #[test]
    fn names_of_all_tools_come_apart_into_prefix_module_ending_and_side() {
        for (prefix, module, ending, side) in [
            ("transformer.", "a.0.to_q", ".lora_A.weight", Side::Down),
            ("base_model.model.transformer.", "a.0.to_q", ".lora_B.default.weight", Side::Up),
            ("transformer.base_model.model.", "a.0.to_q", ".alpha", Side::Alpha),
            ("lora_unet_", "a_0_to_q", ".lora_up.weight", Side::Up),
            ("unet.", "a.processor.to_q", "_lora.down.weight", Side::Down),
            ("", "a.to_q", ".lora.up.weight", Side::Up),
            ("diffusion_model.", "single_blocks.0.processor.qkv_lora", ".down.weight", Side::Down),
            ("", "double_blocks.0.processor.qkv_lora3", ".up.weight", Side::Up),
        ] {
            let name = format!("{prefix}{module}{ending}");
            assert_eq!(
                TensorName::parse(&NAMES, &name),
                Some(TensorName { prefix, module, ending, side }),
                "{name}"
            );
        }
        for name in ["transformer.proj_out.weight", "a.down.weight", "alpha", "a.lora_A", ""] {
            assert_eq!(TensorName::parse(&NAMES, name), None, "{name}");
        }
    }
}
