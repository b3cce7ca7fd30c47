//! Settings from RON and back: the only conversion between the text of a graph file and typed settings.

use serde::{Serialize, de::DeserializeOwned};

use super::syntax;

/// Why a text is not of the wanted type; positions are relative to the text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TextError(pub(super) ron::error::SpannedError);

/// A value from RON.
///
/// # Errors
/// If the text is not RON, or not of this type.
pub fn read<V: DeserializeOwned>(text: &str) -> Result<V, Box<TextError>> {
    syntax::options().from_str(text).map_err(|e| Box::new(TextError(e)))
}

/// A value as RON, on one line.
///
/// # Errors
/// If RON cannot hold it.
pub fn write<V: Serialize>(value: &V) -> Result<String, String> {
    syntax::options().to_string(value).map_err(|e| e.to_string())
}

/// The fields of a struct in RON, as written.
///
/// # Errors
/// If the text is no struct with named fields.
pub fn fields(text: &str) -> Result<Vec<(String, String)>, String> {
    syntax::split_fields(text)
}

/// JSON as RON: what is `null` there is `None` here.
pub fn from_json(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Null => "None".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(text) => syntax::quote(text),
        Value::Array(items) => format!("[{}]", items.iter().map(from_json).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(k, v)| format!("{}: {}", syntax::quote(k), from_json(v)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}
