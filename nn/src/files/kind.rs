//! What a folder of a model is, by the configurations that diffusers and transformers write.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::open::read_regular;
use crate::error::{Error, Result};

/// The field that names the kind of a model, and the name: diffusers has `_class_name`, transformers `model_type`.
pub(crate) fn stated_kind(config: &Value) -> Option<(&'static str, &str)> {
    ["_class_name", "model_type"].into_iter().find_map(|field| Some((field, config.get(field)?.as_str()?)))
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// Read a configuration that describes a model of `class`, if it states a kind at all; `what` names the model for people.
///
/// # Errors
/// If the file cannot be read, states another kind of model, or is no such configuration.
pub(crate) fn read_model_config<C: DeserializeOwned>(path: &Path, class: &str, what: &str) -> Result<C> {
    model_config(path, read_json(path, what)?, class, what)
}

/// The contents of a configuration.
///
/// # Errors
/// If the file cannot be read or is no JSON.
pub(crate) fn read_json(path: &Path, what: &str) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    serde_json::from_str(&text).map_err(|e| no_config(path, what, &e))
}

/// The `config.json` beside a single file, if there is one of a kind that is `ours`: a folder of such files has those of several models,
/// and a configuration of at most one of them.
///
/// # Errors
/// If it is there and cannot be read, or is no JSON: a damaged one must not count as absent.
pub(crate) fn config_beside(file: &Path, ours: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let path = file.with_file_name("config.json");
    let bytes = match read_regular(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file(path, e)),
    };
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| {
        Error::file(&path, format!("is not JSON, and may be the configuration of the file beside it: {e}"))
    })?;
    Ok(stated_kind(&value).is_some_and(|(_, kind)| ours(kind)).then_some(path))
}

/// The same as [`read_model_config`] for contents that were read from `path`.
///
/// # Errors
/// If they state another kind of model, or are no such configuration.
pub(crate) fn model_config<C: DeserializeOwned>(
    path: &Path,
    value: Value,
    class: &str,
    what: &str,
) -> Result<C> {
    match stated_kind(&value) {
        Some((field, found)) if found != class => {
            Err(Error::file(path, format!("{field} is {found}: expected {class}")))
        }
        _ => serde_json::from_value(value).map_err(|e| no_config(path, what, &e)),
    }
}

fn no_config(path: &Path, what: &str, error: &serde_json::Error) -> Error {
    Error::file(path, format!("is not the configuration of {what}: {error}"))
}

/// The error for a path that was to lead to a model and does not: nothing is there, or something else.
pub(crate) fn no_model(path: &Path, expected: &str) -> Error {
    if !path.exists() {
        let above = path.ancestors().skip(1).find(|p| !p.as_os_str().is_empty() && p.exists());
        let above = above.and_then(|above| {
            let next = path.strip_prefix(above).ok()?.components().next()?;
            Some(format!(" (`{}` has no `{}`)", above.display(), next.as_os_str().display()))
        });
        return Error::file(
            path,
            format!("does not exist{}: expected {expected}", above.unwrap_or_default()),
        );
    }
    let kind = |name: &str| Some(stated_kind(&json(&path.join(name))?)?.1.to_owned());
    let is = match (kind("model_index.json"), kind("config.json")) {
        (Some(pipeline), _) => format!("is the folder of a pipeline, {pipeline}"),
        (None, Some(model)) => format!("is the folder of another model, {model}"),
        (None, None) if path.is_file() => "is a file".into(),
        (None, None) => "has no config.json".into(),
    };
    Error::file(path, format!("{is}: expected {expected}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_path_that_leads_to_no_model_is_called_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| no_model(path, "a model").to_string();
        let gone = said(&dir.path().join("a/b"));
        assert!(
            gone.contains("does not exist (`") && gone.ends_with("has no `a`): expected a model"),
            "{gone}"
        );
        assert!(said(dir.path()).ends_with("has no config.json: expected a model"));
        fs::write(dir.path().join("config.json"), r#"{"model_type": "t5"}"#).unwrap();
        assert!(said(dir.path()).contains("is the folder of another model, t5: expected"));
        fs::write(dir.path().join("model_index.json"), r#"{"_class_name": "StableDiffusionXLPipeline"}"#)
            .unwrap();
        assert!(
            said(dir.path()).contains("is the folder of a pipeline, StableDiffusionXLPipeline: expected")
        );
    }

    #[test]
    fn another_kind_of_model_is_named_before_its_fields_are_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            read_model_config::<Vec<u8>>(&path, "Mine", "my model").map_err(|e| e.to_string())
        };
        assert!(
            read(r#"{"_class_name": "Other"}"#).unwrap_err().contains("_class_name is Other: expected Mine")
        );
        assert!(read(r#"{"model_type": "t5"}"#).unwrap_err().contains("model_type is t5: expected Mine"));
        assert!(read("{").unwrap_err().contains("is not the configuration of my model"));
        assert_eq!(read("[1]"), Ok(vec![1]));
    }
}
