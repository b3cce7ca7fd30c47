//! Error messages about settings.

use ron::error::Error as Ron;

use super::{
    nearest::advice,
    parse::{NodeText, Stated},
    resolve::Found,
    source::{At, Sources, Span, SpecError},
    text::TextError,
};
use crate::registry::{Entry, SettingEntry};

/// Is the error about a field that was not stated, rather than about the one that was?
pub(super) fn is_about_another(e: &TextError) -> bool {
    matches!(e.0.code, Ron::MissingStructField { .. })
}

/// A setting, stated at `value` and found as `found`, is not of its type.
pub(super) fn mistyped(
    sources: &Sources,
    owner: &str,
    setting: &SettingEntry,
    value: &At<String>,
    found: &Found,
    e: &TextError,
) -> Box<SpecError> {
    let name = setting.doc.name;
    let mut shown: String = found.text.chars().take(60).collect();
    if shown.len() < found.text.len() {
        shown += "...";
    }
    let message = format!("`{name}` of `{owner}` cannot be `{shown}`");
    let kind = &setting.doc.kind;
    let error = sources.error(message, value.span, format!("takes {kind}"));
    let error = match found.stated {
        Some(origin) if origin != value.span => sources.also(error, origin, "the value comes from here"),
        _ => error,
    };
    let doc = one_line(setting.doc.doc);
    let help = match &e.0.code {
        Ron::NoSuchEnumVariant { expected, found, .. } => advice("choices", found, expected.iter().copied()),
        Ron::NoSuchStructField { expected, found, .. } => advice("fields", found, expected.iter().copied()),
        other => {
            let mut why = match other {
                Ron::IntegerOutOfBounds => other.to_string(),
                // `ron` reads 4 of 4.5, and misses a comma.
                _ if kind == "whole number" => "a whole number is expected".to_owned(),
                _ => other.to_string(),
            };
            why.truncate(why.find(" in enum").unwrap_or(why.len()));
            // A list of words that a bare word was compared with, which `ron` reports as a missing quote.
            match kind.split(" | ").collect::<Vec<_>>() {
                words if words.len() > 1 && words.iter().all(|w| is_choice(w)) => {
                    advice("choices", found_word(&shown), words)
                }
                _ => format!("{} ({doc}; default {})", sentence(&why), setting.default),
            }
        }
    };
    error.help(help)
}

/// One of the words of a choice, rather than the name of a kind of value.
fn is_choice(text: &str) -> bool {
    let kinds = ["number", "text", "path", "None"];
    !text.is_empty()
        && !kinds.contains(&text)
        && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

fn found_word(text: &str) -> &str {
    text.trim_matches('"')
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// A doc comment on one line.
pub(crate) fn one_line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
}

/// The settings of `node` that the command line states.
pub(super) fn from_command_line<'a>(
    sources: &'a Sources,
    node: &'a NodeText,
) -> impl Iterator<Item = &'a Stated> {
    node.settings.iter().filter(|(key, _)| sources.is_command_line(key.span.file))
}

/// The operator of `node` refused its settings. Marked are those that it names; of the command line's and the file's those of
/// the command line, since the file may have been right without them. `origins` are the values that refer to others, with the places
/// of those, where the mistake may be.
pub(super) fn refused(
    sources: &Sources,
    node: &NodeText,
    entry: &Entry,
    why: &str,
    origins: &[(Span, Span)],
) -> Box<SpecError> {
    let quoted: Vec<&str> = why.split('`').skip(1).step_by(2).collect();
    let words: Vec<&str> = why.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let place = |(key, value): &Stated| (value.span, format!("`{}`", key.value));
    let named = |names: &[&str]| -> Vec<(Span, String)> {
        node.settings.iter().filter(|(key, _)| names.contains(&key.value.as_str())).map(place).collect()
    };
    let set: Vec<_> = from_command_line(sources, node).map(place).collect();
    let mut places =
        [named(&quoted), named(&words), set].into_iter().find(|p| !p.is_empty()).unwrap_or_default();
    if places.iter().any(|(span, _)| sources.is_command_line(span.file)) {
        places.retain(|(span, _)| sources.is_command_line(span.file));
    }
    if places.is_empty() {
        let op = node.op.as_ref().map_or(node.id.span, |op| op.span);
        places.push((node.with.unwrap_or(op), "these settings".into()));
    }
    let message = format!("node `{}` (`{}`) refuses its settings: {why}", node.id.value, entry.name);
    let (first, label) = places.remove(0);
    let origin = |at: Span| origins.iter().find(|(value, _)| *value == at).map(|(_, origin)| *origin);
    let from: Vec<Span> =
        std::iter::once(first).chain(places.iter().map(|(span, _)| *span)).filter_map(origin).collect();
    let mut error = sources.error(message, first, label);
    for (span, label) in places {
        error = sources.also(error, span, label);
    }
    for span in from {
        error = sources.also(error, span, "the value comes from here");
    }
    error.help(format!("`graph-run ops {}` shows its settings", entry.name))
}
