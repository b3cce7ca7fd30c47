//! What a benchmark asks for, and what of it there is.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    dreambench::Subject,
    mapping::Mapping,
    preset::{Compared, Group, Layout, Preset},
    settings::BenchmarkSettings,
};
use crate::{
    guard,
    operator::OpError,
    operators::pairs::{Rgb, StoredSize},
};

/// Rows and columns of pixels.
pub type Size = (usize, usize);

/// A picture that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// `GROUP/PROMPT/N`.
    pub id: String,
    /// Number of its group.
    pub group: usize,
    /// What it is drawn from.
    pub prompt: String,
    /// N: which of the pictures of this prompt.
    pub copy: usize,
    /// Where it is, or is expected; empty where a mapping does not name it.
    pub path: PathBuf,
}

/// A photograph of a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photograph {
    /// `photograph/SUBJECT/FILE`.
    pub id: String,
    /// Number of its subject.
    pub subject: usize,
    /// The file.
    pub path: PathBuf,
    /// As it is stored.
    pub size: Size,
}

/// See the head of the file.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The rules.
    pub preset: &'static Preset,
    /// Subjects or pairs; of photographs against photographs, the subjects.
    pub groups: Vec<Group>,
    /// All pictures that are asked for, in the order of the lists; none of photographs against photographs.
    pub cases: Vec<Case>,
    /// Those that can be scored, as numbers of cases, with the size of each.
    pub present: Vec<(usize, Size)>,
    /// Those that are not there, as numbers of cases.
    pub missing: Vec<usize>,
    /// Pictures that nothing asks for.
    pub surplus: Vec<PathBuf>,
    /// Pictures of another size than is asked for.
    pub wrong_size: Vec<(PathBuf, Size)>,
    /// Files that are no pictures.
    pub unreadable: Vec<(PathBuf, String)>,
    /// The size that is asked for, where it is known.
    pub size: Option<Size>,
    /// What pictures are compared with.
    pub photographs: Vec<Photograph>,
    /// Photographs that EXIF would turn, which no script does.
    pub turned: usize,
}

impl Survey {
    /// Look at the folders that settings name. Of pictures only the headers are read.
    ///
    /// # Errors
    /// If the preset is not known, or photographs are missing. What is wrong with pictures is part of the survey.
    pub fn of(settings: &BenchmarkSettings) -> Result<Self, OpError> {
        let preset = Preset::of(&settings.preset)?;
        let groups = match settings.real {
            true => subjects_alone(preset),
            false => preset.groups(),
        };
        let size = match (settings.height, settings.width) {
            (Some(height), Some(width)) => Some((height, width)),
            (None, None) => preset.side.map(|side| (side, side)),
            _ => return Err(OpError::new("height and width: both are needed, or neither")),
        };
        let mut survey = Self {
            preset,
            groups,
            cases: Vec::new(),
            present: Vec::new(),
            missing: Vec::new(),
            surplus: Vec::new(),
            wrong_size: Vec::new(),
            unreadable: Vec::new(),
            size,
            photographs: Vec::new(),
            turned: 0,
        };
        if !settings.real {
            survey.look_at_pictures(settings)?;
        }
        survey.look_at_photographs(settings)?;
        Ok(survey)
    }

    /// Is every picture there that is asked for, and nothing else?
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
            && self.surplus.is_empty()
            && self.wrong_size.is_empty()
            && self.unreadable.is_empty()
    }

    /// How many of each kind there are that should not be, in words.
    pub fn faults(&self) -> String {
        let of = |count: usize, what: &str| (count > 0).then(|| format!("{count} {what}"));
        let all = [
            of(self.missing.len(), "missing"),
            of(self.surplus.len(), "surplus"),
            of(self.wrong_size.len(), "of another size"),
            of(self.unreadable.len(), "unreadable"),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn look_at_pictures(&mut self, settings: &BenchmarkSettings) -> Result<(), OpError> {
        let mapping = match settings.mapping.is_empty() {
            true => None,
            false => Some(Mapping::read(settings.mapping.as_path())?),
        };
        let folder = settings.pictures.as_path();
        if mapping.is_none() && !folder.is_dir() {
            return Err(OpError::new(match settings.pictures.is_empty() {
                true => "pictures: the folder of a method's pictures is needed, or a `mapping`".to_owned(),
                false => format!("pictures: `{}` is no folder", folder.display()),
            }));
        }
        self.cases = cases(self.preset, &self.groups, |relative, id| match &mapping {
            Some(mapping) => mapping.picture(id).cloned().unwrap_or_default(),
            None => folder.join(relative),
        });
        self.surplus = match &mapping {
            Some(mapping) => {
                let ids: HashSet<&str> = self.cases.iter().map(|case| case.id.as_str()).collect();
                mapping.others(&ids)
            }
            None => {
                let expected: HashSet<&Path> = self.cases.iter().map(|case| case.path.as_path()).collect();
                let mut found = Vec::new();
                pictures_below(folder, &mut found)
                    .map_err(|e| OpError::new(format!("pictures: `{}`: {e}", folder.display())))?;
                found.retain(|path| !expected.contains(path.as_path()));
                found
            }
        };
        for (number, case) in self.cases.iter().enumerate() {
            if case.path.as_os_str().is_empty() || fs::symlink_metadata(&case.path).is_err() {
                self.missing.push(number);
                continue;
            }
            match stored_size(&case.path, settings.max_pixels) {
                Err(reason) => self.unreadable.push((case.path.clone(), reason)),
                Ok(StoredSize { size, .. }) if size == *self.size.get_or_insert(size) => {
                    self.present.push((number, size));
                }
                Ok(StoredSize { size, .. }) => self.wrong_size.push((case.path.clone(), size)),
            }
        }
        Ok(())
    }

    fn look_at_photographs(&mut self, settings: &BenchmarkSettings) -> Result<(), OpError> {
        let folder = settings.photographs.as_path();
        if settings.photographs.is_empty() {
            return Err(OpError::new(
                "photographs: the folder with a folder of photographs for each subject is needed, `dataset` of google/dreambooth",
            ));
        }
        let compared = if settings.real { Compared::All } else { self.preset.compared };
        let mut subjects: Vec<usize> = match (settings.real, settings.incomplete) {
            (false, true) => {
                let groups = self.present.iter().map(|(case, _)| self.cases[*case].group);
                groups.flat_map(|group| self.groups[group].subjects.clone()).collect()
            }
            _ => self.groups.iter().flat_map(|group| group.subjects.clone()).collect(),
        };
        subjects.sort_unstable();
        subjects.dedup();
        for number in subjects {
            let subject = self.preset.subjects()[number];
            let below = folder.join(subject.name);
            if settings.real && settings.incomplete && !below.is_dir() {
                continue;
            }
            let files = photographs_of(folder, subject, compared)?;
            let least = if settings.real { 2 } else { 1 };
            if files.len() < least {
                return Err(OpError::new(format!(
                    "photographs: {} in `{}`: at least {least} needed",
                    files.len(),
                    below.display()
                )));
            }
            for path in files {
                let found = stored_size(&path, settings.max_pixels)
                    .map_err(|reason| OpError::new(format!("photographs: {reason}")))?;
                self.turned += usize::from(found.turned);
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let id = format!("photograph/{}/{name}", subject.name);
                self.photographs.push(Photograph { id, subject: number, path, size: found.size });
            }
        }
        if settings.real {
            // Without those that have no photographs here.
            self.groups.retain(|group| self.photographs.iter().any(|p| p.subject == group.subjects[0]));
        }
        Ok(())
    }
}

/// The photographs of a subject below `folder`: all, or the one that is listed.
///
/// # Errors
/// If the folder cannot be read, or does not hold the listed one exactly once.
pub fn photographs_of(folder: &Path, subject: Subject, which: Compared) -> Result<Vec<PathBuf>, OpError> {
    let below = folder.join(subject.name);
    let mut files = Vec::new();
    pictures_below(&below, &mut files)
        .map_err(|e| {
            OpError::new(format!(
                "photographs: `{}`: {e}; `photographs` of the benchmark says where DreamBooth's are, as in --set benchmark.photographs=FOLDER",
                below.display()
            ))
        })?;
    if which == Compared::Listed {
        files.retain(|file| file.file_stem().is_some_and(|stem| stem == subject.listed));
        if files.len() != 1 {
            return Err(OpError::new(format!(
                "photographs: {} files `{}.*` in `{}`: one is listed",
                files.len(),
                subject.listed,
                below.display()
            )));
        }
    }
    Ok(files)
}

/// The cases of a preset; `place` says where the picture with this path and this id is.
pub fn cases(
    preset: &Preset,
    groups: &[Group],
    mut place: impl FnMut(PathBuf, &str) -> PathBuf,
) -> Vec<Case> {
    let mut all = Vec::new();
    let mut index = 0;
    for (number, group) in groups.iter().enumerate() {
        for prompt in &group.prompts {
            for copy in 0..preset.per_prompt {
                let id = format!("{}/{prompt}/{copy}", group.name);
                let relative = match (preset.layout, preset.per_prompt) {
                    (Layout::Numbered, _) => format!("{index}_{copy}.png"),
                    (Layout::BySubject, 1) => format!("{}/{prompt}.png", group.name),
                    (Layout::BySubject, _) => format!("{id}.png"),
                };
                let path = place(relative.into(), &id);
                all.push(Case { id, group: number, prompt: prompt.clone(), copy, path });
            }
            index += 1;
        }
    }
    all
}

/// Every subject of a preset by itself, without prompts.
fn subjects_alone(preset: &Preset) -> Vec<Group> {
    let used: BTreeMap<usize, ()> =
        preset.groups().into_iter().flat_map(|group| group.subjects).map(|subject| (subject, ())).collect();
    let group = |subject: usize| Group {
        name: preset.subjects()[subject].name.into(),
        subjects: vec![subject],
        prompts: Vec::new(),
    };
    used.into_keys().map(group).collect()
}

fn stored_size(path: &Path, max_pixels: usize) -> Result<StoredSize, String> {
    guard::reason(|| Rgb::stored_size(path, max_pixels))
}

/// Endings of picture files, which folders also hold other files beside.
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// The picture files of a folder and of those below it, in order. Links to folders are not followed.
fn pictures_below(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            pictures_below(&path, found)?;
        } else if path
            .extension()
            .is_some_and(|e| ENDINGS.iter().any(|ending| e.to_string_lossy().eq_ignore_ascii_case(ending)))
        {
            found.push(path);
        }
    }
    Ok(())
}
