//! Which linear of a network a module of an adapter file is.

use std::borrow::Cow;

use super::uno;
use crate::naming::{Names, Outside, Place};

/// How a file spells the name of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lora) enum Spelling {
    Diffusers,
    Original,
    UnderscoredOriginal,
    UnderscoredDiffusers,
    Uno,
    /// None of the network.
    Unknown,
}

impl Spelling {
    /// The same names with underscores for dots.
    pub fn underscored(self) -> Self {
        match self {
            Self::Original => Self::UnderscoredOriginal,
            Self::Diffusers => Self::UnderscoredDiffusers,
            other => other,
        }
    }
}

/// The linear that a pair of factors is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::lora) enum Linear {
    /// One of the original layout, with all the linears of diffusers' layout that are parts of it.
    Fused(Place),
    /// q, k and v of one of the original layout, which share one A, without an MLP beside them.
    SharedA(Place),
    /// One of diffusers' layout.
    Part(Place, usize),
    /// One outside the blocks, by its name in diffusers' layout or in the original one.
    Outside(&'static Outside, Spelling),
    /// One of another network, as the file names it.
    Unknown(String),
}

/// Find the linear of a module; its prefix must be off.
pub(in crate::lora) fn locate(names: &'static Names, module: &str) -> (Spelling, Linear) {
    if let Some(place) = uno::place(names, module) {
        return (Spelling::Uno, Linear::SharedA(place));
    }
    let name = without_processor(module);
    let found = TABLES.iter().find_map(|(spelling, find)| Some((*spelling, find(names, &name)?)));
    found.unwrap_or_else(|| (Spelling::Unknown, Linear::Unknown(name.into_owned())))
}

type Find = fn(&'static Names, &str) -> Option<Linear>;

/// The spellings that names of linears are compared with, in this order.
const TABLES: [(Spelling, Find); 4] = [
    (Spelling::Diffusers, |names, name| {
        let part = names.of_diffusers(name).map(|(place, part)| Linear::Part(place, part));
        part.or_else(|| outside(names, Spelling::Diffusers, |o| o.diffusers == name))
    }),
    (Spelling::Original, |names, name| {
        let fused = names.of_original(name).map(Linear::Fused);
        fused.or_else(|| outside(names, Spelling::Original, |o| o.original == name))
    }),
    (Spelling::UnderscoredOriginal, |names, name| {
        let fused = names.of_underscored_original(name).map(Linear::Fused);
        fused.or_else(|| outside(names, Spelling::Original, |o| o.original.replace('.', "_") == name))
    }),
    (Spelling::UnderscoredDiffusers, |names, name| {
        let part = names.of_underscored_diffusers(name).map(|(place, part)| Linear::Part(place, part));
        part.or_else(|| outside(names, Spelling::Diffusers, |o| o.diffusers.replace('.', "_") == name))
    }),
];

fn outside(names: &Names, spelling: Spelling, is: impl Fn(&Outside) -> bool) -> Option<Linear> {
    names.outside.iter().find(|o| is(o)).map(|o| Linear::Outside(o, spelling))
}

/// diffusers once kept factors in the attention's processor, where the linear after the attention has no number.
fn without_processor(name: &str) -> Cow<'_, str> {
    if !name.contains(".processor.") {
        return name.into();
    }
    let name = name.replace(".processor.", ".");
    if name.ends_with(".to_out") { format!("{name}.0").into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::flux::NAMES;

    #[test]
    fn every_linear_is_found_under_each_of_its_names() {
        for (stack, of_stack) in NAMES.stacks.iter().enumerate() {
            for linear in 0..of_stack.linears.len() {
                let place = NAMES.place(stack, 7, linear);
                let original = place.original();
                assert_eq!(locate(&NAMES, &original), (Spelling::Original, Linear::Fused(place)));
                let found = locate(&NAMES, &original.replace('.', "_"));
                assert_eq!(found, (Spelling::UnderscoredOriginal, Linear::Fused(place)));
                for (part, name) in place.diffusers().iter().enumerate() {
                    assert_eq!(locate(&NAMES, name), (Spelling::Diffusers, Linear::Part(place, part)));
                    let found = locate(&NAMES, &name.replace('.', "_"));
                    assert_eq!(found, (Spelling::UnderscoredDiffusers, Linear::Part(place, part)));
                }
            }
        }
        for outside in NAMES.outside {
            for (name, spelling) in
                [(outside.diffusers, Spelling::Diffusers), (outside.original, Spelling::Original)]
            {
                let expected = Linear::Outside(outside, spelling);
                assert_eq!(locate(&NAMES, name), (spelling, expected.clone()));
                assert_eq!(locate(&NAMES, &name.replace('.', "_")).1, expected, "{name}");
            }
        }
    }

    #[test]
    fn factors_in_a_processor_are_those_of_the_attention_beside_it() {
        let place = NAMES.of_diffusers("transformer_blocks.3.attn.to_out.0").unwrap();
        let found = locate(&NAMES, "transformer_blocks.3.attn.processor.to_out");
        assert_eq!(found, (Spelling::Diffusers, Linear::Part(place.0, place.1)));
        let unknown = locate(&NAMES, "mid_block.attentions.0.processor.to_q").1;
        assert_eq!(unknown, Linear::Unknown("mid_block.attentions.0.to_q".into()));
    }
}
