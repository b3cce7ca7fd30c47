//! `pairs.jsonl`: one preference pair a line.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// One line, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    prompt: String,
    #[serde(default)]
    refs: Vec<RefLine>,
    win: SideLine,
    lose: SideLine,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefLine {
    image: PathBuf,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    mask: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SideLine {
    image: PathBuf,
    #[serde(default)]
    prior: Vec<PathBuf>,
}

/// A reference: its picture and the mask of its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The picture.
    pub image: PathBuf,
    /// What it shows, for people.
    pub subject: Option<String>,
    /// Where the subject is; all of the picture where there is none.
    pub mask: Option<PathBuf>,
}

/// A preference pair. Paths are those of the file's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Number of its line, from 1.
    pub line: usize,
    /// Unique in the file.
    pub id: String,
    /// What was asked for.
    pub prompt: String,
    /// In the order of the priors.
    pub references: Vec<Reference>,
    /// The preferred picture.
    pub winner: PathBuf,
    /// The other one.
    pub loser: PathBuf,
    /// Where each subject is in the winner; empty where nothing is known.
    pub priors: Vec<PathBuf>,
    /// The same of the loser; checked, but not used in training.
    pub loser_priors: Vec<PathBuf>,
}

/// A line or a sample that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Number of its line, from 1.
    pub line: usize,
    /// The sample's id, where it is known.
    pub id: String,
    /// What is wrong with it.
    pub reason: String,
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = if self.id.is_empty() { String::new() } else { format!(" (`{}`)", self.id) };
        write!(f, "line {}{id}: {}", self.line, self.reason)
    }
}

fn row(line: usize, text: &str, folder: &Path) -> Result<Row, BadRow> {
    let bad = |id: &str, reason: String| BadRow { line, id: id.into(), reason };
    let parsed: Line = serde_json::from_str(text).map_err(|e| {
        // serde_json's own line number is always 1 here.
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        bad("", format!("{message}, at column {}", e.column()))
    })?;
    let id = parsed.id.as_str();
    if id.trim().is_empty() {
        return Err(bad("", "the id is empty".into()));
    }
    let references = parsed.refs.len();
    for (side, priors) in [("win", &parsed.win.prior), ("lose", &parsed.lose.prior)] {
        if !priors.is_empty() && priors.len() != references {
            return Err(bad(
                id,
                format!(
                    "{side} has {} priors for {references} references: prior[k] belongs to refs[k], so give one for \
                     each or none at all",
                    priors.len()
                ),
            ));
        }
    }
    let at = |path: PathBuf| folder.join(path);
    Ok(Row {
        line,
        references: parsed
            .refs
            .into_iter()
            .map(|r| Reference { image: at(r.image), subject: r.subject, mask: r.mask.map(at) })
            .collect(),
        winner: at(parsed.win.image),
        loser: at(parsed.lose.image),
        priors: parsed.win.prior.into_iter().map(at).collect(),
        loser_priors: parsed.lose.prior.into_iter().map(at).collect(),
        prompt: parsed.prompt,
        id: parsed.id,
    })
}

/// All lines of a file: those that can be used, and those that cannot.
///
/// # Errors
/// If the file cannot be read as text.
pub fn read(path: &Path) -> Result<(Vec<Row>, Vec<BadRow>), String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    let mut lines: HashMap<String, usize> = HashMap::new();
    for (i, text) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        match row(i + 1, text, folder) {
            Ok(row) => match lines.insert(row.id.clone(), row.line) {
                Some(first) => bad.push(BadRow {
                    line: row.line,
                    id: row.id,
                    reason: format!("the id was used in line {first} already"),
                }),
                None => rows.push(row),
            },
            Err(e) => bad.push(e),
        }
    }
    Ok((rows, bad))
}

impl Row {
    /// Every file that training reads.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let references =
            self.references.iter().flat_map(|r| std::iter::once(&r.image).chain(r.mask.as_ref()));
        [&self.winner, &self.loser].into_iter().chain(&self.priors).chain(references).map(PathBuf::as_path)
    }
}
