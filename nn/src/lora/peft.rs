//! PEFT's configuration of an adapter: `adapter_config.json` beside the file, or a string in its header, as diffusers
//! writes it. It states how the product of the factors is scaled, and whether the adapter has anything beyond factors.
//!
//! ```text
//! alpha / r                     as kept here
//! alpha / sqrt(r)  rslora       kept as alpha sqrt(r) / r, where that is exact
//! ```
//!
//! Source: `LoraConfig` and `get_pattern_key` of peft 0.21.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::header;
use crate::{
    error::{Error, Result},
    files::TensorFiles,
};

/// Name of the file that PEFT writes beside the factors.
pub(super) const BESIDE: &str = "adapter_config.json";

/// What a configuration says of scales and ranks.
#[derive(Debug)]
pub(super) struct PeftConfig {
    /// Where it stands, for errors.
    stated_in: String,
    alpha: f64,
    rank: Option<f64>,
    alphas: Patterns,
    ranks: Patterns,
    rank_stabilised: bool,
}

/// Numbers for modules whose path is the pattern, or ends with it at a dot.
type Patterns = BTreeMap<String, f64>;

/// Settings of a configuration by name, without the prefix of a part of a pipeline.
type Settings<'a> = BTreeMap<&'a str, &'a Value>;

impl PeftConfig {
    /// The configuration in the header of a file, if it has one for the transformer.
    ///
    /// # Errors
    /// As [`beside`](Self::beside).
    pub fn in_header(files: &TensorFiles) -> Result<Option<Self>> {
        let Some(text) = files.metadata().get(header::PEFT) else { return Ok(None) };
        let stated_in = format!("`{}` in the header", header::PEFT);
        Self::parse(text, stated_in).map_err(|message| Error::file(files.path(), message))
    }

    /// The file that [`beside`](Self::beside) reads, if it is there.
    pub fn file_beside(path: &Path) -> Option<PathBuf> {
        Some(path.with_file_name(BESIDE)).filter(|beside| path.is_file() && beside.is_file())
    }

    /// The configuration that lies beside a file, if there is one.
    ///
    /// # Errors
    /// If it is not JSON, or asks for something other than the product of two factors, scaled by alpha over the rank.
    pub fn beside(path: &Path) -> Result<Option<Self>> {
        let beside = path.with_file_name(BESIDE);
        match std::fs::read_to_string(&beside) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file(beside, e)),
            Ok(text) => {
                Self::parse(&text, format!("`{BESIDE}`")).map_err(|message| Error::file(beside, message))
            }
        }
    }

    fn parse(text: &str, stated_in: String) -> Result<Option<Self>, String> {
        let fault = |message: String| format!("{stated_in} {message}");
        let value: Value = serde_json::from_str(text).map_err(|e| fault(format!("is not JSON: {e}")))?;
        let all = value.as_object().ok_or_else(|| fault("is no JSON object".into()))?;
        // diffusers puts the part of its pipeline before each setting; a network that is saved alone has none.
        let part = PARTS.into_iter().find(|part| all.keys().any(|key| key.starts_with(part)));
        let settings: Settings<'_> = all
            .iter()
            .filter_map(|(key, value)| match part {
                Some(part) => Some((key.strip_prefix(part)?, value)),
                None => (!key.contains('.')).then_some((key.as_str(), value)),
            })
            .collect();
        if settings.is_empty() {
            return Ok(None);
        }
        if let Some(message) = beyond_two_factors(&settings) {
            return Err(fault(message));
        }
        let number = |key: &str| match settings.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => positive(value)
                .map(Some)
                .ok_or_else(|| fault(format!("says {key} is {value}: expected a positive number"))),
        };
        let patterns =
            |key: &str| patterns(settings.get(key).copied()).map_err(|e| fault(format!("{key} {e}")));
        Ok(Some(Self {
            alpha: number("lora_alpha")?.ok_or_else(|| fault("does not state lora_alpha".into()))?,
            rank: number("r")?,
            alphas: patterns("alpha_pattern")?,
            ranks: patterns("rank_pattern")?,
            rank_stabilised: settings.get("use_rslora").and_then(|v| v.as_bool()) == Some(true),
            stated_in,
        }))
    }

    /// Where it stands.
    pub fn stated_in(&self) -> &str {
        &self.stated_in
    }

    /// Alpha of a module whose factors have this rank, such that alpha / rank scales their product.
    ///
    /// # Errors
    /// If the configuration states another rank, or a scale that is no such alpha.
    pub fn alpha(&self, module: &str, rank: usize) -> Result<f32, String> {
        let stated = self.for_module("rank_pattern", &self.ranks, module)?.or(self.rank);
        if let Some(stated) = stated.filter(|stated| *stated != rank as f64) {
            return Err(format!(
                "{} says rank {stated} for `{module}`, its factors have rank {rank}: they are not of one adapter",
                self.stated_in
            ));
        }
        let alpha = self.for_module("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        if !self.rank_stabilised {
            return Ok(alpha as f32);
        }
        let root = rank.isqrt();
        let product = alpha * root as f64;
        if root * root == rank && f64::from(product as f32) == product {
            return Ok(product as f32);
        }
        Err(format!(
            "{} scales by alpha / sqrt(rank) (use_rslora), {alpha} / sqrt({rank}), which is no alpha / rank that can be \
             stated exactly: merge it, or train without use_rslora",
            self.stated_in
        ))
    }

    fn for_module(&self, key: &str, patterns: &Patterns, module: &str) -> Result<Option<f64>, String> {
        let mut found = patterns.iter().filter(|(pattern, _)| names(pattern, module));
        let Some((first, value)) = found.next() else { return Ok(None) };
        match found.find(|(_, other)| *other != value) {
            None => Ok(Some(*value)),
            Some((other, _)) => Err(format!(
                "{}: `{first}` and `{other}` of {key} both name `{module}`, with different numbers",
                self.stated_in
            )),
        }
    }
}

/// Parts of pipelines that an adapter may be of.
const PARTS: [&str; 2] = ["transformer.", "unet."];

fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|v| *v > 0.0 && v.is_finite())
}

/// Does a pattern name this module?
fn names(pattern: &str, module: &str) -> bool {
    match pattern.strip_prefix('^') {
        Some(whole) => whole == module,
        None => module.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    }
}

/// Numbers by pattern; PEFT takes patterns as regular expressions, of which names are read here.
fn patterns(value: Option<&Value>) -> Result<Patterns, String> {
    let all = match value {
        None | Some(Value::Null) => return Ok(Patterns::new()),
        Some(Value::Object(all)) => all,
        Some(other) => return Err(format!("is {other}: expected names and numbers")),
    };
    let one = |(pattern, value): (&String, &Value)| {
        let number = positive(value)
            .ok_or_else(|| format!("has {value} for `{pattern}`: expected a positive number"))?;
        let pattern = pattern.replace("\\.", ".");
        let name = pattern.strip_prefix('^').unwrap_or(&pattern);
        if name.contains(['\\', '^', '$', '*', '+', '?', '(', ')', '[', ']', '{', '}', '|']) {
            return Err(format!(
                "has the regular expression `{pattern}`: expected names of modules, or what their names end with"
            ));
        }
        Ok((pattern, number))
    };
    all.iter().map(one).collect()
}

/// What a configuration asks for that two factors and a scale cannot hold.
fn beyond_two_factors(settings: &Settings<'_>) -> Option<String> {
    let set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    let get = |key: &str| settings.get(key).copied().filter(|v| set(v));
    if let Some(kind) = get("peft_type").filter(|v| v.as_str() != Some("LORA")) {
        return Some(format!("says peft_type is {kind}: expected LORA"));
    }
    for (key, value) in settings.iter().filter(|(_, value)| set(value)) {
        let why = match *key {
            "use_rslora" => continue,
            "use_dora" => "a DoRA, whose magnitudes two factors cannot hold",
            "bias" if value.as_str() == Some("none") => continue,
            "bias" | "lora_bias" => "biases were trained, too, which an adapter here has none of",
            "modules_to_save" => "whole modules were trained, too, which an adapter here has none of",
            "fan_in_fan_out" => "for layers that keep their weights transposed, which no linear of FLUX does",
            "layer_replication"
            | "target_parameters"
            | "trainable_token_indices"
            | "alora_invocation_tokens" => "more than factors beside the linears of a network",
            "init_lora_weights" if changes_the_network(value) => {
                "the factors go with a network whose weights were changed at the start; PEFT writes them for the plain \
                 network if `save_pretrained` is given `path_initial_model_for_weight_conversion`"
            }
            // How training begins, and where factors are kept while it runs.
            "eva_config" | "corda_config" | "loftq_config" | "lora_ga_config" | "runtime_config" => continue,
            key if key.starts_with("use_") || key.ends_with("_config") => {
                "expected a plain LoRA, two factors and a scale"
            }
            _ => continue,
        };
        return Some(format!("says {key} is {value}: {why}"));
    }
    None
}

/// Ways to begin that take something out of the network's weights and put it into the factors.
fn changes_the_network(init: &Value) -> bool {
    let init = init.as_str().unwrap_or_default();
    init.starts_with("pissa") || ["olora", "loftq", "corda", "lora_ga"].contains(&init)
}
