//! One line of a `pairs.jsonl`: one preference pair.

use std::{
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

use crate::settings::expand_home;
use crate::words::{count, printable};

/// One line, as it is written, in the names of this project or in those that language models' preference data have. Winner and loser are missing
/// where a line only asks for pictures.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    #[serde(default)]
    id: Option<Id>,
    pub prompt: String,
    #[serde(default)]
    pub refs: Option<Vec<Object<RefLine>>>,
    #[serde(default, alias = "chosen")]
    win: Option<Object<SideLine>>,
    #[serde(default, alias = "rejected")]
    lose: Option<Object<SideLine>>,
}

/// The name of a sample: a text, or a number.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a whole number")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                Ok(Id(text.to_owned()))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Id, E> {
                Ok(Id(number.to_string()))
            }
        }
        deserializer.deserialize_any(Name)
    }
}

/// An object, or a text that stands for one where it has no more to say: serde takes an array for the values of a struct in their order, too.
pub(super) struct Object<T>(pub T);

/// What a message shows for such an object, and what a text stands for.
trait Example: Sized {
    const EXAMPLE: &'static str;

    /// That of a picture of which nothing else is known.
    fn of_picture(path: PathBuf) -> Option<Self>;
}

impl Example for Line {
    const EXAMPLE: &'static str =
        r#"{"id": "a", "prompt": "...", "win": {"image": "w.png"}, "lose": {"image": "l.png"}}"#;

    fn of_picture(_: PathBuf) -> Option<Self> {
        None
    }
}

impl Example for RefLine {
    const EXAMPLE: &'static str = r#"{"image": "r.png"}"#;

    fn of_picture(image: PathBuf) -> Option<Self> {
        Some(Self { image, subject: None, mask: None })
    }
}

impl Example for SideLine {
    const EXAMPLE: &'static str = r#"{"image": "w.png"}"#;

    fn of_picture(image: PathBuf) -> Option<Self> {
        Some(Self { image, prior: None })
    }
}

impl<'de, T: Deserialize<'de> + Example> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Example> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object such as {}", T::EXAMPLE)
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<T, E> {
                T::of_picture(path.into()).ok_or_else(|| E::invalid_type(Unexpected::Str(path), &self))
            }
        }
        deserializer.deserialize_any(Fields(PhantomData)).map(Self)
    }
}

impl Line {
    pub(super) fn read(line: usize, text: &str) -> Result<Self, BadRow> {
        serde_json::from_str(text).map(|Object(line)| line).map_err(|e| {
            // serde_json's own line number is always 1 here.
            let message = e.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            let reason = format!("{}, at column {}", shortened(message, SHOWN_REASON), e.column());
            BadRow { line, id: String::new(), reason }
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RefLine {
    image: PathBuf,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    mask: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SideLine {
    image: PathBuf,
    #[serde(default)]
    prior: Option<Vec<PathBuf>>,
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
    /// The other one; where there is none, a graph may take the winner in its place.
    pub loser: Option<PathBuf>,
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

/// Characters of an id that a message shows.
const SHOWN_ID: usize = 60;

/// Characters of a parser's message that are shown: it may quote a whole line.
const SHOWN_REASON: usize = 200;

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

impl std::fmt::Display for BadRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = match self.id.as_str() {
            "" => String::new(),
            id => format!(" (`{}`)", shortened(id, SHOWN_ID).escape_debug()),
        };
        write!(f, "line {}{id}: {}", self.line, printable(&self.reason))
    }
}

/// The name of the sample in a line: by its number where it states none.
pub(super) fn name_of(line: usize, parsed: &mut Line) -> Result<String, BadRow> {
    match parsed.id.take() {
        None => Ok(format!("line-{line}")),
        Some(Id(id)) if id.trim().is_empty() => {
            Err(BadRow { line, id: String::new(), reason: "the id is empty".into() })
        }
        Some(Id(id)) => Ok(id),
    }
}

fn at(folder: &Path, path: &Path) -> PathBuf {
    folder.join(expand_home(path))
}

/// References with paths that are those of the file's folder.
pub(super) fn references_at(refs: Vec<Object<RefLine>>, folder: &Path) -> Vec<Reference> {
    let reference = |Object(r): Object<RefLine>| Reference {
        image: at(folder, &r.image),
        subject: r.subject,
        mask: r.mask.map(|mask| at(folder, &mask)),
    };
    refs.into_iter().map(reference).collect()
}

/// The sample in a line.
///
/// # Errors
/// If the line is not a sample.
pub(super) fn parse(line: usize, text: &str, folder: &Path) -> Result<Row, BadRow> {
    let bad = |id: &str, reason: String| BadRow { line, id: id.into(), reason };
    let mut parsed = Line::read(line, text)?;
    let name = name_of(line, &mut parsed)?;
    let id = name.as_str();
    let Some(Object(winner)) = parsed.win else { return Err(bad(id, "missing field `win`".into())) };
    let (loser, lose) = parsed.lose.map(|Object(loser)| (loser.image, loser.prior)).unzip();
    let references = parsed.refs.unwrap_or_default();
    let (win, lose) = (winner.prior.unwrap_or_default(), lose.flatten().unwrap_or_default());
    for (side, priors) in [("win", &win), ("lose", &lose)] {
        if !priors.is_empty() && priors.len() != references.len() {
            return Err(bad(
                id,
                format!(
                    "{side} has {} for {}: prior[k] belongs to refs[k], so give one for each or none \
                     at all",
                    count(priors.len(), "prior"),
                    count(references.len(), "reference")
                ),
            ));
        }
    }
    let named = std::iter::once(&winner.image).chain(&loser).chain(&win).chain(&lose);
    let of_references = references.iter().flat_map(|Object(r)| std::iter::once(&r.image).chain(&r.mask));
    if named.chain(of_references).any(|path| path.as_os_str().is_empty()) {
        return Err(bad(id, "the path of a file is empty".into()));
    }
    let at_all = |paths: Vec<PathBuf>| paths.iter().map(|path| at(folder, path)).collect();
    Ok(Row {
        line,
        references: references_at(references, folder),
        winner: at(folder, &winner.image),
        loser: loser.map(|loser| at(folder, &loser)),
        priors: at_all(win),
        loser_priors: at_all(lose),
        prompt: parsed.prompt,
        id: name,
    })
}

impl Row {
    /// The loser, or the winner where there is none.
    pub fn loser(&self) -> &Path {
        self.loser.as_ref().unwrap_or(&self.winner)
    }

    /// Every file that training reads.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let references =
            self.references.iter().flat_map(|r| std::iter::once(&r.image).chain(r.mask.as_ref()));
        let sides = std::iter::once(&self.winner).chain(&self.loser);
        sides.chain(&self.priors).chain(references).map(PathBuf::as_path)
    }
}
