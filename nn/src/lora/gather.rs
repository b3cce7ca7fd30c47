//! The tensors of an adapter file as pairs of factors, whatever tool named them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    sync::Arc,
};

use super::{
    factors::Factors,
    format::AdapterFormat,
    header,
    names::{
        Linear, Side, Spelling, TensorName, in_text_encoder, is_of_ip_adapter, locate, other_method,
        unknown_linear,
    },
    peft::PeftConfig,
};
use crate::{
    error::{Error, Result},
    files::TensorFiles,
    naming::Names,
};

/// What a file holds.
pub(super) struct Gathered {
    pub factors: Vec<Factors>,
    pub styles: Styles,
    /// Number of tensors of text encoders.
    pub text_encoders: usize,
}

/// A way to name the two factors of a linear.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Style {
    prefix: String,
    spelling: Spelling,
    /// Of A.
    ending: String,
    /// What diffusers calls the network in a pipeline.
    part: &'static str,
}

/// All the ways in which a file names factors; most have one.
#[derive(Debug, Default)]
pub(super) struct Styles(BTreeSet<Style>);

/// The tensors of one linear of a file.
struct Found<'a> {
    linear: Linear,
    spelling: Spelling,
    /// As the file has it, with the prefix.
    key: &'a str,
    /// Without.
    module: &'a str,
    /// A, B, alpha.
    sides: [Option<&'a str>; 3],
    /// What is not said otherwise has alpha equal to the rank.
    plain: bool,
    peft: bool,
}

/// Take the names below `under` apart, and put the factors of each linear together.
///
/// # Errors
/// If a tensor is no factor, or its linear is unknown under the names of sd-scripts; if factors are missing or there
/// twice; if scales are stated twice and differently.
pub(super) fn gather(files: &Arc<TensorFiles>, under: &str, names: &'static Names) -> Result<Gathered> {
    let fault = |message: String| Error::file(files.path(), message);
    let mut modules: BTreeMap<String, Found<'_>> = BTreeMap::new();
    let (mut styles, mut text_encoders, mut strange) = (Styles::default(), 0, None);
    for name in files.names() {
        let Some(below) = name.strip_prefix(under) else { continue };
        if in_text_encoder(below) {
            text_encoders += 1;
            continue;
        }
        if let Some(method) = other_method(below) {
            return Err(fault(format!(
                "is {method} by its `{name}`: expected a LoRA, the two factors of linears and their scale alone"
            )));
        }
        let Some(tensor) = TensorName::parse(names, below) else {
            strange.get_or_insert(name);
            continue;
        };
        let (mut spelling, linear) = locate(names, tensor.module);
        // Of a name without a dot the prefix tells whether it is spelled without dots.
        if tensor.is_underscored() {
            spelling = spelling.underscored();
        }
        let unknown = matches!(linear, Linear::Unknown(_));
        if unknown && (tensor.is_underscored() || tensor.module.contains(".processor.")) {
            return Err(fault(format!(
                "has `{name}`: `{}` {}",
                tensor.module,
                unknown_linear(names, tensor.module)
            )));
        }
        if tensor.side == Side::Down {
            let (prefix, ending) = (tensor.prefix.into(), tensor.ending.into());
            styles.0.insert(Style { prefix, spelling, ending, part: names.part });
        }
        // By the linear's name without prefix, so that factors under two prefixes are known as the same.
        let found = modules.entry(tensor.module.into()).or_insert_with(|| Found {
            linear,
            spelling,
            key: &below[..tensor.prefix.len() + tensor.module.len()],
            module: tensor.module,
            sides: [None; 3],
            plain: false,
            peft: false,
        });
        found.plain |= tensor.is_kohya() || spelling == Spelling::Uno;
        found.peft |= tensor.is_peft();
        if let Some(other) = found.sides[tensor.side as usize].replace(name) {
            return Err(fault(format!("`{name}` and `{other}` are the same factor")));
        }
    }
    match (modules.is_empty(), text_encoders, strange) {
        (false, _, None) => {}
        (false, _, Some(name)) => {
            return Err(fault(format!("`{name}` is not a factor of an adapter, unlike the others")));
        }
        (true, 0, _) => return Err(no_factors(files, under)),
        (true, ..) => {
            return Err(fault(format!(
                "is an adapter of text encoders alone ({text_encoders} tensors): expected one of the transformer"
            )));
        }
    }
    let scales = Scales::of(files, modules.values().any(|m| m.peft))?;
    scales.stated_for_all_or_none(files.path(), &modules)?;
    let one = |found: &Found<'_>| {
        let [Some(down), Some(up), _] = found.sides else {
            return Err(fault(format!("`{}` has only one of its two factors", found.key)));
        };
        let alpha = scales.alpha(files, found, down)?;
        Factors::new(files, found.key, &found.linear, [down, up], alpha)
    };
    let factors = modules.values().map(one).collect::<Result<_>>()?;
    Ok(Gathered { factors, styles, text_encoders })
}

fn no_factors(files: &TensorFiles, under: &str) -> Error {
    if files.names().any(is_of_ip_adapter) {
        return Error::file(
            files.path(),
            "is an IP-Adapter, whose matrices are whole, and holds no factors: it is part of a network, set as `ip_adapter` of \
             its `backbone` and of its `image-prompt`",
        );
    }
    let there = files.names().next().map_or("none".into(), |n| format!("e.g. `{n}`"));
    let place = if under.is_empty() { String::new() } else { format!(" under `{under}`") };
    Error::file(
        files.path(),
        format!(
            "holds no factors{place}: expected names as diffusers, PEFT, ComfyUI, kohya or UNO write them; tensors that \
             it has: {there}"
        ),
    )
}

/// Everything beside the factors that says by what their products are scaled.
struct Scales {
    configs: Vec<PeftConfig>,
}

impl Scales {
    fn of(files: &TensorFiles, peft: bool) -> Result<Self> {
        let in_header = PeftConfig::in_header(files)?;
        // A file that was written here says all of itself, whatever it is copied beside.
        let ours = files.metadata().contains_key(header::RANK);
        let beside = if peft && !ours { PeftConfig::beside(files.path())? } else { None };
        Ok(Self { configs: in_header.into_iter().chain(beside).collect() })
    }

    /// Where some linears have an alpha and others say nothing, programs disagree on the others.
    fn stated_for_all_or_none(&self, path: &Path, modules: &BTreeMap<String, Found<'_>>) -> Result<()> {
        if !self.configs.is_empty() {
            return Ok(());
        }
        let mut open = modules.values().filter(|m| !m.plain);
        let stated = modules.values().find(|m| !m.plain && m.sides[Side::Alpha as usize].is_some());
        match (stated, open.find(|m| m.sides[Side::Alpha as usize].is_none())) {
            (Some(stated), Some(other)) => {
                let message = format!(
                    "states alpha for `{}` and none for `{}`: expected all or none",
                    stated.key, other.key
                );
                Err(Error::file(path, message))
            }
            _ => Ok(()),
        }
    }

    fn alpha(&self, files: &TensorFiles, found: &Found<'_>, down: &str) -> Result<Option<f32>> {
        let fault = |message: String| Error::file(files.path(), message);
        let rank = files.info(down).and_then(|i| i.shape.first().copied()).unwrap_or(0);
        let mut stated: Option<(f32, String)> = None;
        if let Some(name) = found.sides[Side::Alpha as usize] {
            if found.spelling == Spelling::Uno {
                return Err(fault(format!(
                    "has `{name}`, but UNO's and XLabs' factors are not scaled: expected no alpha"
                )));
            }
            stated = Some((files.read_number(name)? as f32, format!("`{name}`")));
        }
        for config in &self.configs {
            let alpha = config.alpha(found.module, rank).map_err(fault)?;
            match &stated {
                Some((other, place)) if *other != alpha => {
                    return Err(fault(format!(
                        "{place} says alpha {other}, {} says {alpha} for `{}`: they contradict each other",
                        config.stated_in(),
                        found.module
                    )));
                }
                Some(_) => {}
                None => stated = Some((alpha, config.stated_in().into())),
            }
        }
        Ok(stated.map(|(alpha, _)| alpha).or(found.plain.then_some(rank as f32)))
    }
}

impl Styles {
    /// The format that is written here whose names these are.
    pub fn format(&self) -> Option<AdapterFormat> {
        let mut found = self.0.iter().map(Style::format);
        let first = found.next()??;
        found.all(|other| other == Some(first)).then_some(first)
    }
}

impl Style {
    fn format(&self) -> Option<AdapterFormat> {
        match (self.prefix.as_str(), self.spelling, self.ending.as_str()) {
            (prefix, Spelling::Diffusers, ".lora_A.weight")
                if prefix.strip_suffix('.') == Some(self.part) =>
            {
                Some(AdapterFormat::Diffusers)
            }
            ("lora_unet_", Spelling::UnderscoredOriginal, ".lora_down.weight") => Some(AdapterFormat::Kohya),
            ("", Spelling::Uno, _) => Some(AdapterFormat::Uno),
            _ => None,
        }
    }
}

impl fmt::Display for Styles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, style) in self.0.iter().enumerate() {
            write!(f, "{}{style}", if i == 0 { "" } else { " and " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = self.format() {
            return write!(f, "{} names", format.name());
        }
        let names = match self.spelling {
            Spelling::Diffusers => "diffusers names",
            Spelling::Original => "original names",
            Spelling::UnderscoredOriginal => "original names with underscores",
            Spelling::UnderscoredDiffusers => "diffusers names with underscores",
            Spelling::Uno => "uno names",
            Spelling::Unknown => "names of another network",
        };
        let prefix = if self.prefix.is_empty() { "no prefix".into() } else { format!("`{}`", self.prefix) };
        write!(f, "{names} ({prefix}, `{}`)", self.ending)
    }
}
