//! Operators by name, and how they are built from the settings of a graph file.
//!
//! The registry is an ordinary value, filled by an ordinary function. Link-time collection would lose the
//! operators of a crate that nothing else names, and would hide from a reader where they come from.

use std::collections::BTreeMap;

use prefgraph_ops::{
    DynOperator, InputSpec, Inputs, OpError, Operator, OutputSpec, Outputs, SettingDoc, Settings,
    catalogue::{Visit, visit_all},
    ports::MetricDoc,
};

use crate::spec::text;

/// A setting of an operator, with its default as a graph file would state it.
#[derive(Clone, Debug)]
pub struct SettingEntry {
    /// Name, kind and meaning.
    pub doc: SettingDoc,
    /// The default, as RON.
    pub default: String,
}

/// An operator that graph files can name.
#[derive(Clone)]
pub struct Entry {
    /// What a graph file calls it.
    pub name: &'static str,
    /// What it computes, in a sentence.
    pub doc: &'static str,
    /// Its inputs.
    pub inputs: Vec<InputSpec>,
    /// Its outputs.
    pub outputs: Vec<OutputSpec>,
    /// Its settings.
    pub settings: Vec<SettingEntry>,
    /// What it measures.
    pub metrics: &'static [MetricDoc],
    /// Settings that change no bit of what it computes.
    pub free_settings: &'static [&'static str],
    build: fn(&str) -> Result<Built, BuildError>,
    complete: fn(&str) -> Result<String, BuildError>,
    json: fn(&str) -> Option<serde_json::Value>,
}

/// An operator built from text.
pub struct Built {
    /// The operator.
    pub op: Box<dyn DynOperator>,
    /// All its settings as RON, those that were not stated included.
    pub settings: String,
}

/// Why an operator could not be built from text.
pub enum BuildError {
    /// The text is not of the type of the operator's settings.
    Text(Box<text::TextError>),
    /// The settings are of the right type, but refused.
    Refused(OpError),
}

impl Entry {
    /// The operator with these settings, written as `(name: value, ...)` in RON.
    ///
    /// # Errors
    /// If the text is not of the settings' type, or the operator refuses what it says.
    pub fn build(&self, settings: &str) -> Result<Built, BuildError> {
        (self.build)(settings)
    }

    /// Is the text of the settings' type?
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, settings: &str) -> Result<(), BuildError> {
        self.complete(settings).map(drop)
    }

    /// All settings as a run saves them, where these are stated.
    ///
    /// # Errors
    /// If the text is not of the settings' type.
    pub(crate) fn complete(&self, settings: &str) -> Result<String, BuildError> {
        (self.complete)(settings)
    }

    /// Settings that were written as `(name: value, ...)` in RON, as JSON; `None` if they are not of the settings' type.
    pub(crate) fn json(&self, settings: &str) -> Option<serde_json::Value> {
        (self.json)(settings)
    }

    /// The setting of that name.
    pub fn setting(&self, name: &str) -> Option<&SettingEntry> {
        self.settings.iter().find(|s| s.doc.name == name)
    }

    fn of<O: Operator>() -> Self {
        Self {
            name: O::NAME,
            doc: O::DOC,
            inputs: O::In::specs(O::IN),
            outputs: O::Out::specs(O::OUT),
            settings: setting_entries::<O::Settings>(),
            metrics: O::METRICS,
            free_settings: O::FREE_SETTINGS,
            build: |settings| {
                let (settings, all) = complete::<O::Settings>(settings)?;
                let op = Box::new(O::new(settings).map_err(BuildError::Refused)?);
                Ok(Built { op, settings: all })
            },
            complete: |settings| complete::<O::Settings>(settings).map(|(_, all)| all),
            json: |settings| serde_json::to_value(text::read::<O::Settings>(settings).ok()?).ok(),
        }
    }
}

/// Settings from text, and all of them as text.
fn complete<S: Settings>(settings: &str) -> Result<(S, String), BuildError> {
    let settings = text::read::<S>(settings).map_err(BuildError::Text)?;
    let all = text::write(&settings)
        .map_err(|e| BuildError::Refused(OpError::internal(format!("settings as text: {e}"))))?;
    Ok((settings, all))
}

/// One setting as a run saves it: `8` is `8.0` where it is no whole number. A text that is not of its type stays as it is.
pub(crate) fn as_saved(name: &str, text: String, complete: impl Fn(&str) -> Option<String>) -> String {
    let all = complete(&format!("({name}:{text},)")).and_then(|all| text::fields(&all).ok());
    let own = all.and_then(|all| all.into_iter().find(|(other, _)| other == name));
    own.map_or(text, |(_, saved)| saved)
}

/// Documentation and defaults of a struct of settings.
pub(crate) fn setting_entries<S: Settings>() -> Vec<SettingEntry> {
    let defaults: BTreeMap<String, String> = text::write(&S::default())
        .and_then(|all| text::fields(&all))
        .unwrap_or_default()
        .into_iter()
        .collect();
    let default = |name: &str| defaults.get(name).cloned().unwrap_or_default();
    S::docs().into_iter().map(|doc| SettingEntry { default: default(doc.name), doc }).collect()
}

/// A set of operators.
#[derive(Clone, Default)]
pub struct Registry {
    entries: BTreeMap<&'static str, Entry>,
}

impl Registry {
    /// All operators that this library ships.
    pub fn standard() -> Self {
        struct Add(Registry);
        impl Visit for Add {
            fn operator<O: Operator>(&mut self) {
                self.0.register::<O>();
            }
        }
        let mut add = Add(Self::default());
        visit_all(&mut add);
        add.0
    }

    /// No operators.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Add `O`, in place of another operator of that name if there is one.
    pub fn register<O: Operator>(&mut self) -> &mut Self {
        self.entries.insert(O::NAME, Entry::of::<O>());
        self
    }

    /// The operator of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Every operator, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}
