//! Source texts of a graph, places in them, and errors that point there.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use miette::{Diagnostic, LabeledSpan};

use super::excerpt::{self, Excerpt};

/// The name of a source that is a setting of the command line.
pub(super) const COMMAND_LINE: &str = "--set";
/// The name of a source that is a list of values of the command line.
pub(super) const VARIED: &str = "--over";

/// A text that settings can come from: a graph file, or one `--set` or `--over` of the command line.
#[derive(Clone, Debug)]
pub(super) struct SourceText {
    /// Its name is shown in errors.
    pub shown: Excerpt,
    /// What relative paths in the text are relative to.
    pub folder: PathBuf,
}

/// A place in one of the [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub file: usize,
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// The part of a string's content; the whole where escapes make offsets in the content useless.
    pub fn part(self, content: &str, range: Range<usize>) -> Self {
        if self.end - self.start == content.len() {
            Self { start: self.start + range.start, end: self.start + range.end, ..self }
        } else {
            self
        }
    }
}

/// A value and the place that states it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct At<V> {
    pub value: V,
    pub span: Span,
}

/// All texts read so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources(Vec<SourceText>);

impl Sources {
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>, folder: &Path) -> usize {
        let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let (name, text): (String, String) = (name.into(), text.into());
        // What editors on Windows begin a file in UTF-8 with.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        self.0.push(SourceText { shown: Excerpt { name: name.into(), text: text.into() }, folder });
        self.0.len() - 1
    }

    pub fn text(&self, file: usize) -> &str {
        &self.0[file].shown.text
    }

    pub fn name(&self, file: usize) -> &str {
        &self.0[file].shown.name
    }

    /// Is it a setting of the command line?
    pub fn is_command_line(&self, file: usize) -> bool {
        [COMMAND_LINE, VARIED].contains(&self.name(file))
    }

    pub fn folder(&self, file: usize) -> &Path {
        &self.0[file].folder
    }

    /// An error at `span`.
    pub fn error(&self, message: impl Into<String>, span: Span, label: impl Into<String>) -> Box<SpecError> {
        Box::new(SpecError {
            message: excerpt::shortened(message.into()),
            source_code: Some(self.shown(span)),
            labels: vec![self.mark(span, label.into())],
            help: None,
            related: Vec::new(),
            file: Some(span.file),
        })
    }

    /// `error` with one more place: in the same picture if it is in the same text, else in one of its own.
    pub fn also(&self, mut error: Box<SpecError>, span: Span, label: impl Into<String>) -> Box<SpecError> {
        let label = label.into();
        if error.file == Some(span.file) {
            error.labels.push(self.mark(span, label));
        } else {
            error.related.push(Elsewhere {
                message: label.clone(),
                source_code: self.shown(span),
                labels: vec![self.mark(span, label)],
            });
        }
        error
    }

    /// `error` with one more place if that is in the same picture: another picture for each would hide what matters.
    pub fn also_there(&self, error: Box<SpecError>, span: Span, label: &str) -> Box<SpecError> {
        if error.file == Some(span.file) { self.also(error, span, label) } else { error }
    }

    fn shown(&self, span: Span) -> Excerpt {
        self.0[span.file].shown.clone()
    }

    fn mark(&self, span: Span, label: String) -> LabeledSpan {
        self.0[span.file].shown.mark(span.start..span.end, label)
    }
}

/// A graph that could not be loaded, shown with the place that is at fault.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct SpecError {
    message: String,
    #[source_code]
    source_code: Option<Excerpt>,
    #[label(collection)]
    labels: Vec<LabeledSpan>,
    #[help]
    help: Option<String>,
    #[related]
    related: Vec<Elsewhere>,
    file: Option<usize>,
}

/// A place in another text that an error is about, too.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
#[diagnostic(severity(Advice))]
struct Elsewhere {
    message: String,
    #[source_code]
    source_code: Excerpt,
    #[label(collection)]
    labels: Vec<LabeledSpan>,
}

impl SpecError {
    /// An error that no text is at fault for.
    pub(super) fn nowhere(message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            message: message.into(),
            source_code: None,
            labels: Vec::new(),
            help: None,
            related: Vec::new(),
            file: None,
        })
    }

    /// With what would have been accepted.
    pub(super) fn help(mut self: Box<Self>, help: impl Into<String>) -> Box<Self> {
        self.help = Some(excerpt::shortened(help.into()));
        self
    }

    /// With more advice after what there is.
    pub(crate) fn also_help(self: Box<Self>, more: &str) -> Box<Self> {
        let help = self.help.iter().map(String::as_str).chain([more]).collect::<Vec<_>>().join("\n");
        self.help(help)
    }

    /// What is wrong, in one sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What would have been accepted.
    pub fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The marked places as `file:line:column` and the text there: in the first file, then in the others.
    pub fn places(&self) -> Vec<(String, String)> {
        let mut places = Vec::new();
        let mut add = |source: &Excerpt, labels: &[LabeledSpan]| {
            for label in labels {
                let (start, end) = (label.offset(), label.offset() + label.len());
                let text = &*source.text;
                let before = text.get(..start).unwrap_or(text);
                let line = before.matches('\n').count() + 1;
                let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                let marked = text.get(start..end).unwrap_or_default().to_owned();
                places.push((format!("{}:{line}:{column}", source.name), marked));
            }
        };
        if let Some(source) = &self.source_code {
            add(source, &self.labels);
        }
        for other in &self.related {
            add(&other.source_code, &other.labels);
        }
        places
    }
}
