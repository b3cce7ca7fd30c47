//! One level of a RON text at a time, with the place of every part.
//!
//! `ron` hands out field names and raw values as slices of the text it reads, so the offset of a slice in the text
//! *is* its place: what is found wrong long after parsing can still be shown where it stands.

use std::collections::HashMap;

use ron::{Options, error::SpannedError, extensions::Extensions, value::RawValue};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::{
    scan,
    source::{At, Sources, Span, SpecError},
};

/// Options of every RON text of this crate: `Some` may be left out.
pub(crate) fn options() -> Options {
    Options::default().with_default_extension(Extensions::IMPLICIT_SOME)
}

/// The fields of a struct in RON, as written.
pub(crate) fn split_fields(text: &str) -> Result<Vec<(String, String)>, String> {
    let fields: Fields<'_> = options().from_str(text).map_err(|e| e.to_string())?;
    Ok(fields.0.into_iter().map(|(k, v)| (k.to_owned(), scan::trim(v.get_ron()).to_owned())).collect())
}

/// `text` as one value of RON, without comments around it; `None` if it is none, or more than one.
pub(super) fn one_value(text: &str) -> Option<&str> {
    options().from_str::<&RawValue>(text).ok().map(|value| scan::trim(value.get_ron()))
}

/// `text` as a string literal of RON.
pub(crate) fn quote(text: &str) -> String {
    options().to_string(text).unwrap_or_else(|_| format!("{text:?}"))
}

/// A part of a source.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    sources: &'a Sources,
    file: usize,
    text: &'a str,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Struct,
    List,
    Map,
    Text,
    None,
    Other,
}

impl<'a> Piece<'a> {
    /// All of a source.
    pub fn whole(sources: &'a Sources, file: usize) -> Self {
        Self { sources, file, text: sources.text(file) }
    }

    fn slice(self, text: &'a str) -> Self {
        Self { text: scan::trim(text), ..self }
    }

    /// As written, without comments around it.
    pub fn text(self) -> &'a str {
        self.text
    }

    /// Where it stands.
    pub fn span(self) -> Span {
        let base = self.sources.text(self.file);
        let start = (self.text.as_ptr() as usize).wrapping_sub(base.as_ptr() as usize).min(base.len());
        Span { file: self.file, start, end: (start + self.text.len()).min(base.len()) }
    }

    /// Its first line.
    fn head(self) -> Span {
        let span = self.span();
        let line = self.text.find('\n').unwrap_or(self.text.len());
        Span { end: (span.start + line).min(span.end), ..span }
    }

    /// What it looks like.
    pub fn form(self) -> Form {
        let text = scan::trim(self.text);
        let name = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let rest = scan::trim(&text[name..]);
        match rest.chars().next() {
            _ if text == "None" => Form::None,
            Some('"') if name == 0 || &text[..name] == "r" => Form::Text,
            Some('#') if &text[..name] == "r" => Form::Text,
            Some('(') => Form::Struct,
            Some('[') if name == 0 => Form::List,
            Some('{') if name == 0 => Form::Map,
            _ => Form::Other,
        }
    }

    /// The fields of a struct `(name: value, ...)`; a name before the bracket must be `title`.
    pub fn fields(self, what: &str, title: &str) -> Result<Vec<(At<&'a str>, Piece<'a>)>, Box<SpecError>> {
        let wanted = || format!("{what} is written as a struct, `(name: value, ...)`");
        if self.form() != Form::Struct {
            let text = scan::trim(self.text);
            let error = self.sources.error(wanted(), self.head(), "not a struct");
            return Err(match text {
                _ if text.starts_with("#!") => {
                    error.help("leave the attribute out: a value stands for `Some(value)` here without it")
                }
                _ if text.starts_with("/*") => error.help("a comment that begins with `/*` ends with `*/`"),
                _ => error,
            });
        }
        let text = scan::trim(self.text);
        let name = &text[..text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0)];
        if !name.is_empty() && name != title {
            let name = self.slice(name);
            let error = self.sources.error(wanted(), name.span(), "not expected here");
            let help =
                if title.is_empty() { "leave the name out".into() } else { format!("write `{title}`") };
            return Err(error.help(help));
        }
        let fields: Fields<'a> = options().from_str(self.text).map_err(|_| {
            match options().from_str::<serde::de::IgnoredAny>(self.text) {
                Ok(_) => self.sources.error(wanted(), self.head(), "values without names"),
                Err(e) => self.syntax_error(&e),
            }
        })?;
        let mut found: Vec<(At<&'a str>, Piece<'a>)> = Vec::with_capacity(fields.0.len());
        let mut seen = HashMap::new();
        for (key, value) in fields.0 {
            let key = At { value: key, span: self.slice(key).span() };
            if let Some(first) = seen.insert(key.value, key.span) {
                return Err(self.twice(key.value, key.span, first));
            }
            found.push((key, self.slice(value.get_ron())));
        }
        Ok(found)
    }

    /// The entries of a map `{"name": value, ...}`.
    pub fn entries(self, what: &str) -> Result<Vec<(At<String>, Piece<'a>)>, Box<SpecError>> {
        if self.form() != Form::Map {
            let message = format!("{what} is written as a map, `{{\"name\": value, ...}}`");
            return Err(self.sources.error(message, self.span(), "not a map"));
        }
        let entries: Entries<'a> = options().from_str(self.text).map_err(|e| self.syntax_error(&e))?;
        let mut found: Vec<(At<String>, Piece<'a>)> = Vec::with_capacity(entries.0.len());
        let mut seen = HashMap::new();
        for (key, value) in entries.0 {
            let key = self.slice(key.get_ron()).string(what)?;
            if let Some(first) = seen.insert(key.value.clone(), key.span) {
                return Err(self.twice(&key.value, key.span, first));
            }
            found.push((key, self.slice(value.get_ron())));
        }
        Ok(found)
    }

    /// The elements of a list `[value, ...]`.
    pub fn items(self, what: &str) -> Result<Vec<Piece<'a>>, Box<SpecError>> {
        if self.form() != Form::List {
            let message = format!("{what} is written as a list, `[value, ...]`");
            return Err(self.sources.error(message, self.span(), "not a list"));
        }
        let items: Items<'a> = options().from_str(self.text).map_err(|e| self.syntax_error(&e))?;
        Ok(items.0.into_iter().map(|v| self.slice(v.get_ron())).collect())
    }

    /// The content of a string, and the place of the content where there are no escapes.
    pub fn string(self, what: &str) -> Result<At<String>, Box<SpecError>> {
        if self.form() != Form::Text {
            let message = format!("{what} is written as text in quotes");
            return Err(self.sources.error(message, self.span(), "not text in quotes"));
        }
        let value: String = options().from_str(self.text).map_err(|e| self.syntax_error(&e))?;
        let mut span = self.span();
        if value.len() + 2 == span.end - span.start {
            span = Span { start: span.start + 1, end: span.end - 1, ..span };
        }
        Ok(At { value, span })
    }

    fn twice(self, key: &str, span: Span, first: Span) -> Box<SpecError> {
        let error = self.sources.error(format!("`{key}` is stated twice"), span, "again here");
        self.sources.also(error, first, "first here")
    }

    /// `ron`'s error, whose position is relative to this piece.
    pub fn syntax_error(self, e: &SpannedError) -> Box<SpecError> {
        let offset = |p: &ron::error::Position| {
            let lines = self.text.split_inclusive('\n').take(p.line.saturating_sub(1));
            let line: usize = lines.map(str::len).sum();
            let rest = &self.text[line.min(self.text.len())..];
            line + rest.char_indices().nth(p.col.saturating_sub(1)).map_or(rest.len(), |(i, _)| i)
        };
        let base = self.span();
        let (start, end) = (base.start + offset(&e.span.start), base.start + offset(&e.span.end));
        let text = self.sources.text(self.file);
        let end = end.max(start).min(text.len());
        let start = start.min(end);
        let span = Span { file: self.file, start, end };
        let code = e.code.to_string();
        let error = self.sources.error(format!("this is not RON: {}", lower_first(&code)), span, "here");
        use ron::Error as E;
        match &e.code {
            E::ExpectedComma | E::ExpectedStructLikeEnd | E::ExpectedMapEnd | E::ExpectedArrayEnd => {
                error.help("a comma or a closing bracket is missing before this place")
            }
            E::Eof | E::ExpectedStringEnd | E::UnclosedBlockComment => {
                error.help("a bracket, a string or a comment that was opened before is never closed")
            }
            E::ExpectedMapColon => error.help("a name is followed by `:` and a value"),
            E::ExceededRecursionLimit => error.help("brackets stand too deep in one another"),
            _ => error,
        }
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

struct Fields<'a>(Vec<(&'a str, &'a RawValue)>);
struct Entries<'a>(Vec<(&'a RawValue, &'a RawValue)>);
struct Items<'a>(Vec<&'a RawValue>);

macro_rules! level {
    ($name:ident, $visit:ident, $access:ident, $next:ident) => {
        impl<'de> Deserialize<'de> for $name<'de> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Level;
                impl<'de> Visitor<'de> for Level {
                    type Value = $name<'de>;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("names with values")
                    }
                    fn visit_unit<E>(self) -> Result<Self::Value, E> {
                        Ok($name(Vec::new()))
                    }
                    fn $visit<A: $access<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                        let mut all = Vec::new();
                        while let Some(one) = access.$next()? {
                            all.push(one);
                        }
                        Ok($name(all))
                    }
                }
                deserializer.deserialize_any(Level)
            }
        }
    };
}
level!(Fields, visit_map, MapAccess, next_entry);
level!(Entries, visit_map, MapAccess, next_entry);
level!(Items, visit_seq, SeqAccess, next_element);
