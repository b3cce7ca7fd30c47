//! The folder of the best adapter: its files, and `best.json`, which is written last.

use prefgraph_nn::lora::AdapterFormat;
use serde_json::{Map, Value, json};

use super::{Best, Measured, groups};
use crate::{
    cli::trained::{about, is_of_step},
    folder::{FolderError, RunFolder},
};

const STEM: &str = "adapter";
const FACTS: &str = "best.json";

/// What is known of the best measurement. JSON has no word for what is not finite.
fn facts(best: &Best) -> String {
    let figures = groups(&best.summary).into_iter().map(|(group, figures)| {
        let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value)));
        (group.to_owned(), Value::Object(figures.collect()))
    });
    let files: Vec<String> = best.formats.iter().map(|format| format.file_name(STEM)).collect();
    let facts = json!({
        "step": best.at.made, "criterion": best.criterion.name(), "value": best.at.value,
        "figures": Value::Object(figures.collect::<Map<_, _>>()), "files": files,
    });
    format!("{facts:#}\n")
}

/// Write the best adapter in its formats; without one, remove what is there.
pub(super) fn write(
    measured: &Measured,
    folder: &RunFolder,
    origin: &[(String, String)],
) -> Result<(), FolderError> {
    let place = &measured.folder;
    let Some(best) = &measured.compared.best else { return folder.clear(place, FACTS, &[]) };
    let mut about = about(origin, best.at.made);
    about.push(("prefgraph.best".into(), format!("{} {}", best.criterion.name(), best.at.value)));
    let mut files = Vec::new();
    for format in &best.formats {
        folder.write_adapter_in(place, STEM, &best.adapter, *format, &about)?;
        files.push(format.file_name(STEM));
    }
    folder.write_text_in(place, FACTS, &facts(best))?;
    folder.clear(place, "", &files)
}

/// Give the folder of a best adapter that can no longer be compared another name, if it is still there.
pub(super) fn keep_aside(measured: &Measured, folder: &RunFolder) -> Result<(), FolderError> {
    let Some(step) = measured.aside else { return Ok(()) };
    let is_of_it = |facts: &str| {
        let facts = serde_json::from_str::<Value>(facts).unwrap_or_default();
        facts.get("step").and_then(Value::as_u64) == Some(step)
    };
    match folder.text_in(&measured.folder, FACTS)? {
        Some(facts) if is_of_it(&facts) => {
            folder.rename(&measured.folder, &measured.folder_aside(step), FACTS)
        }
        _ => Ok(()),
    }
}

/// Are the files those of the best measurement?
pub(super) fn are_right(measured: &Measured, folder: &RunFolder) -> Result<bool, FolderError> {
    let path = folder.path().join(&measured.folder);
    let found = folder.text_in(&measured.folder, FACTS)?;
    let Some(best) = &measured.compared.best else { return Ok(!path.exists()) };
    let right = |format: &AdapterFormat| {
        let format_of = (*format, best.adapter.layout.names);
        is_of_step(&path.join(format.file_name(STEM)), format_of, &best.at.made.to_string())
    };
    Ok(found.is_some_and(|found| found == facts(best)) && best.formats.iter().all(right))
}
