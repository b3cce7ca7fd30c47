//! Which linear of a FLUX transformer a module of an adapter file is.

use std::borrow::Cow;

use super::uno;
use crate::naming::{Outside, Place};

/// How a file spells the name of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lora) enum Spelling {
    Diffusers,
    Original,
    UnderscoredOriginal,
    UnderscoredDiffusers,
    Uno,
    /// None of a FLUX transformer.
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
pub(in crate::lora) fn locate(module: &str) -> (Spelling, Linear) {
    if let Some(place) = uno::place(module) {
        return (Spelling::Uno, Linear::SharedA(place));
    }
    let name = without_processor(module);
    let found = TABLES.iter().find_map(|(spelling, find)| Some((*spelling, find(&name)?)));
    found.unwrap_or_else(|| (Spelling::Unknown, Linear::Unknown(name.into_owned())))
}

type Find = fn(&str) -> Option<Linear>;

/// The spellings that names of linears are compared with, in this order.
const TABLES: [(Spelling, Find); 4] = [
    (Spelling::Diffusers, |name| {
        let part = Place::of_diffusers(name).map(|(place, part)| Linear::Part(place, part));
        part.or_else(|| outside(Spelling::Diffusers, |o| o.diffusers == name))
    }),
    (Spelling::Original, |name| {
        let fused = Place::of_original(name).map(Linear::Fused);
        fused.or_else(|| outside(Spelling::Original, |o| o.original == name))
    }),
    (Spelling::UnderscoredOriginal, |name| {
        let fused = Place::of_underscored_original(name).map(Linear::Fused);
        fused.or_else(|| outside(Spelling::Original, |o| o.original.replace('.', "_") == name))
    }),
    (Spelling::UnderscoredDiffusers, |name| {
        let part = Place::of_underscored_diffusers(name).map(|(place, part)| Linear::Part(place, part));
        part.or_else(|| outside(Spelling::Diffusers, |o| o.diffusers.replace('.', "_") == name))
    }),
];

fn outside(spelling: Spelling, is: impl Fn(&Outside) -> bool) -> Option<Linear> {
    Outside::ALL.iter().find(|o| is(o)).map(|o| Linear::Outside(o, spelling))
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
    use crate::naming::Stack;

    #[test]
    fn every_linear_is_found_under_each_of_its_names() {
        for stack in Stack::ALL {
            for linear in 0..stack.linears().len() {
                let place = Place { stack, block: 7, linear };
                let original = place.original();
                assert_eq!(locate(&original), (Spelling::Original, Linear::Fused(place)));
                let found = locate(&original.replace('.', "_"));
                assert_eq!(found, (Spelling::UnderscoredOriginal, Linear::Fused(place)));
                for (part, name) in place.diffusers().iter().enumerate() {
                    assert_eq!(locate(name), (Spelling::Diffusers, Linear::Part(place, part)));
                    let found = locate(&name.replace('.', "_"));
                    assert_eq!(found, (Spelling::UnderscoredDiffusers, Linear::Part(place, part)));
                }
            }
        }
        for outside in &Outside::ALL {
            for (name, spelling) in
                [(outside.diffusers, Spelling::Diffusers), (outside.original, Spelling::Original)]
            {
                let expected = Linear::Outside(outside, spelling);
                assert_eq!(locate(name), (spelling, expected.clone()));
                assert_eq!(locate(&name.replace('.', "_")).1, expected, "{name}");
            }
        }
    }

    #[test]
    fn factors_in_a_processor_are_those_of_the_attention_beside_it() {
        let place = Place::of_diffusers("transformer_blocks.3.attn.to_out.0").unwrap();
        let found = locate("transformer_blocks.3.attn.processor.to_out");
        assert_eq!(found, (Spelling::Diffusers, Linear::Part(place.0, place.1)));
        let unknown = locate("mid_block.attentions.0.processor.to_q").1;
        assert_eq!(unknown, Linear::Unknown("mid_block.attentions.0.to_q".into()));
    }
}
