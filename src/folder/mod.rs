//! The folder of a run.
//!
//! ```text
//!  graph.ron             the resolved graph      metrics.jsonl         one object a step
//!  graph.dot             the plan as a picture   preview/*.png         pictures that operators gave
//!  adapter.safetensors   what was trained        checkpoints/step-N/   state to resume from
//!  adapter.FORMAT.safetensors   the same in other programs' names, where the graph asks for it
//!  best/                 the adapter of the best measurement of held-out pairs, and best.json about it
//!  command.json          settings from the command line, and accepted changes
//!  lock                  held while a run is at work here
//!
//! The folder of a sweep has `sweep.json`, `sweep.svg`, `command.json`, a lock, and the folder of a run for each variant.
//!
//!  lock, held   the folder belongs to one run, and has not been moved or replaced
//!  metrics, command   the files of these names
//! ```

mod command;
mod held;
mod lock;
mod metrics;

use std::{
    fs,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    Adapter,
    files::{is_unfinished, remove_abandoned, write_atomically},
    lora::AdapterFormat,
};
use prefgraph_ops::ports::Picture;

pub use command::{Accepted, Command};
pub use metrics::{Line, MetricsFile, Survey};

use held::Held;
use lock::Lock;

/// Why a run's folder cannot be used or written.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FolderError {
    message: String,
}

impl FolderError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    fn io(what: &str, path: &Path, e: impl std::fmt::Display) -> Self {
        Self::new(format!("cannot {what} `{}`: {e}", path.display()))
    }
}

/// A run's folder, locked against other runs until it is dropped. Until [`keep`](Self::keep) nothing in it is changed.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Sentences about what was found there.
    pub notes: Vec<String>,
    lock: Lock,
    held: Held,
}

/// What a file system of its own has in its root.
const LOST_AND_FOUND: &str = "lost+found";

impl RunFolder {
    /// Use `path`: empty or new for a fresh run, anything for one that is resumed.
    ///
    /// # Errors
    /// If it is not empty and the run is fresh, if another run is at work there, or if it cannot be written.
    pub fn open(path: &Path, resume: bool) -> Result<Self, FolderError> {
        fs::create_dir_all(path).map_err(|e| FolderError::io("make the folder", path, e))?;
        let held = Held::open(path)?;
        let entries = entries(path)?;
        let ours = |e: &Path| e == Path::new(lock::NAME) || e == Path::new(LOST_AND_FOUND);
        let used = entries.iter().any(|e| !ours(e) && !is_unfinished(e));
        // The lock comes first: a folder that another run is filling now is busy rather than used.
        let (lock, stale) = Lock::take(path)?;
        let folder = Self { path: path.to_owned(), notes: stale.into_iter().collect(), lock, held };
        if used && !resume {
            let path = path.display();
            // A sweep that was killed has only this of its own, beside the folders of its variants.
            let is_sweep = folder.path.join(command::NAME).exists();
            return Err(FolderError::new(match folder.remains()?.is_empty() && !is_sweep {
                false => {
                    format!(
                        "`{path}` already holds a run; continue it with --resume, or choose another folder with --out"
                    )
                }
                true => format!(
                    "`{path}` holds files, and none of a run: choose a folder with --out that is new or empty"
                ),
            }));
        }
        Ok(folder)
    }

    /// A run starts to write here: unfinished files of killed runs are removed.
    pub fn keep(&mut self) {
        self.lock.keep();
        // What cannot be listed is not cleaned up.
        let inside = entries(&self.path).unwrap_or_default();
        let inside = inside.iter().filter(|name| holds_best(name) || name.as_os_str() == "preview");
        for folder in std::iter::once(self.path.clone()).chain(inside.map(|name| self.path.join(name))) {
            remove_abandoned(&folder);
        }
    }

    /// Is the folder still in its place? Another run may be using its path by now.
    ///
    /// # Errors
    /// If it was removed, moved or replaced; the message says where it is now, if that is known.
    pub fn check(&self) -> Result<(), FolderError> {
        self.held.check(&self.path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is now, as far as the system can tell; `None` if it was removed.
    pub fn whereabouts(&self) -> Option<PathBuf> {
        match self.check() {
            Ok(()) => Some(self.path.clone()),
            Err(_) => self.held.whereabouts(),
        }
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Files and folders of a run, by name; empty if no run was started here.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn remains(&self) -> Result<Vec<String>, FolderError> {
        let mut names = Vec::new();
        for name in entries(&self.path)? {
            let name = name.to_string_lossy().into_owned();
            let adapter = is_adapter(&name);
            let counts = match name.as_str() {
                "graph.ron" | "metrics.jsonl" | "preview" | "sweep.json" => true,
                _ if holds_best(Path::new(&name)) => true,
                // A run killed while writing its first checkpoint leaves only an unfinished one.
                "checkpoints" => entries(&self.checkpoints())?.iter().any(|e| !is_unfinished(e)),
                _ => adapter,
            };
            names.extend(counts.then_some(name));
        }
        names.sort();
        Ok(names)
    }

    /// The graph that the run was last started or resumed with, if any.
    ///
    /// # Errors
    /// If it exists and cannot be read.
    pub fn graph(&self) -> Result<Option<String>, FolderError> {
        let path = self.path.join("graph.ron");
        let bytes = held::read_if_there(&path).map_err(|e| FolderError::io("read", &path, e))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Settings from earlier command lines.
    ///
    /// # Errors
    /// If the file exists and cannot be read or parsed.
    pub fn command(&self) -> Result<Command, FolderError> {
        Command::read(&self.path.join(command::NAME))
    }

    /// Remember settings from the command line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_command(&self, command: &Command) -> Result<(), FolderError> {
        self.write_text(command::NAME, &command.text()?)
    }

    /// Write a text file.
    ///
    /// # Errors
    /// If that fails.
    pub fn write_text(&self, name: &str, text: &str) -> Result<(), FolderError> {
        self.write_text_in("", name, text)
    }

    /// Write a text file into a folder of the run's folder.
    ///
    /// # Errors
    /// If that fails.
    pub fn write_text_in(&self, place: &str, name: &str, text: &str) -> Result<(), FolderError> {
        let path = self.place(place)?.join(name);
        write_atomically(&path, text.as_bytes()).map_err(|e| FolderError::io("write", &path, e))
    }

    /// The text of such a file, if it is there.
    ///
    /// # Errors
    /// If it exists and cannot be read.
    pub fn text_in(&self, place: &str, name: &str) -> Result<Option<String>, FolderError> {
        let path = self.inside(place)?.join(name);
        let bytes = held::read_if_there(&path).map_err(|e| FolderError::io("read", &path, e))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Remove the adapters of a folder of the run's folder, all but some, and its file of a name; the folder as well, if that is all.
    ///
    /// # Errors
    /// If that fails.
    pub fn clear(&self, place: &str, name: &str, but: &[String]) -> Result<(), FolderError> {
        self.check()?;
        let path = self.inside(place)?;
        if fs::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        let mut names: Vec<String> =
            entries(&path)?.into_iter().map(|name| name.to_string_lossy().into_owned()).collect();
        names.retain(|n| n == name || is_adapter(n) && !but.contains(n));
        // What speaks of the others goes first.
        names.sort_by_key(|n| n != name);
        for name in names {
            let file = path.join(name);
            fs::remove_file(&file).map_err(|e| FolderError::io("remove", &file, e))?;
        }
        if entries(&path)?.is_empty() {
            fs::remove_dir(&path).map_err(|e| FolderError::io("remove the folder", &path, e))?;
        }
        Ok(())
    }

    /// Give a folder of adapters another name; one of that name, with adapters and this file, makes way.
    ///
    /// # Errors
    /// If that fails.
    pub fn rename(&self, from: &str, to: &str, name: &str) -> Result<(), FolderError> {
        self.clear(to, name, &[])?;
        let (from, to) = (self.path.join(from), self.path.join(to));
        fs::rename(&from, &to).map_err(|e| FolderError::io("rename the folder", &from, e))
    }

    /// Where a folder of the run's folder is, if it is there.
    ///
    /// # Errors
    /// If something else has its name.
    fn inside(&self, name: &str) -> Result<PathBuf, FolderError> {
        let path = self.path.join(name);
        match fs::metadata(&path) {
            Ok(found) if !found.is_dir() => Err(FolderError::new(format!(
                "`{}` is a file, where the run has a folder: move the file away, or give it another name",
                path.display()
            ))),
            _ => Ok(path),
        }
    }

    /// A folder of the run's folder, which is made if it is not there; empty is the run's folder itself.
    fn place(&self, name: &str) -> Result<PathBuf, FolderError> {
        self.check()?;
        if name.is_empty() {
            return Ok(self.path.clone());
        }
        let path = self.inside(&file_name(name))?;
        fs::create_dir_all(&path).map_err(|e| FolderError::io("make the folder", &path, e))?;
        Ok(path)
    }

    /// Write a picture into the folder of previews.
    ///
    /// # Errors
    /// If that fails, or the pixels are not as many as the picture's size says.
    pub fn write_preview(&self, name: &str, picture: &Picture) -> Result<PathBuf, FolderError> {
        let path = self.place("preview")?.join(format!("{}.png", file_name(name)));
        let (width, height) = (picture.width as u32, picture.height as u32);
        let image = image::RgbImage::from_raw(width, height, picture.rgb.to_vec()).ok_or_else(|| {
            FolderError::new(format!(
                "internal error, please report it: preview `{name}` is not {width} x {height} pixels"
            ))
        })?;
        let mut bytes = std::io::Cursor::new(Vec::new());
        image
            .write_to(&mut bytes, image::ImageFormat::Png)
            .map_err(|e| FolderError::io("encode", &path, e))?;
        write_atomically(&path, &bytes.into_inner()).map_err(|e| FolderError::io("write", &path, e))?;
        Ok(path)
    }

    /// Write an adapter in one of the formats, read it back and compare it. `about` is what its header says beside rank,
    /// alpha and targets.
    ///
    /// # Errors
    /// If the format cannot hold it, if it cannot be written, or does not read back as what it is.
    pub fn write_adapter(
        &self,
        name: &str,
        adapter: &Adapter,
        format: AdapterFormat,
        about: &[(String, String)],
    ) -> Result<PathBuf, FolderError> {
        self.write_adapter_in("", name, adapter, format, about)
    }

    /// The same in a folder of the run's folder.
    ///
    /// # Errors
    /// As [`write_adapter`](Self::write_adapter).
    pub fn write_adapter_in(
        &self,
        place: &str,
        name: &str,
        adapter: &Adapter,
        format: AdapterFormat,
        about: &[(String, String)],
    ) -> Result<PathBuf, FolderError> {
        let path = self.place(place)?.join(format.file_name(&file_name(name)));
        adapter.write(&path, format, about).map_err(|e| FolderError::io("write the adapter", &path, e))?;
        Ok(path)
    }
}

/// Names of everything in a folder.
fn entries(path: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let fault = |e| FolderError::io("read the folder", path, e);
    let entries = fs::read_dir(path).map_err(fault)?;
    entries.map(|e| e.map(|e| PathBuf::from(e.file_name())).map_err(fault)).collect()
}

/// Is it the name of a folder of a best adapter: `best`, that of a node, or one that was kept aside?
fn holds_best(name: &Path) -> bool {
    name.to_str().is_some_and(|name| name == "best" || name.starts_with("best-"))
}

fn is_adapter(name: &str) -> bool {
    name.starts_with("adapter") && name.ends_with(".safetensors")
}

/// A name that an operator gave as the name of a file: it must not lead out of the folder.
fn file_name(name: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = name.chars().map(safe).collect();
    if name.trim_matches('.').is_empty() { "unnamed".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_run_in_it_is_refused_unless_it_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        RunFolder::open(&path, false).unwrap().write_text("graph.ron", "Graph()").unwrap();
        let error = RunFolder::open(&path, false).unwrap_err().to_string();
        assert!(error.contains("--resume") && error.contains("--out"), "{error}");
        assert!(RunFolder::open(&path, true).is_ok());
    }

    #[test]
    fn the_root_of_a_file_system_is_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert!(RunFolder::open(dir.path(), false).is_ok());
    }

    #[test]
    fn two_runs_cannot_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::open(dir.path(), false).unwrap();
        let error = RunFolder::open(dir.path(), true).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        assert_eq!(RunFolder::open(dir.path(), true).unwrap().notes, Vec::<String>::new());
    }

    #[test]
    fn the_lock_of_a_run_that_was_killed_is_taken_over_with_a_word_and_stays_if_nothing_comes_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        for (before, said) in [(&b"4242\n"[..], "process 4242"), (b"\xff\xfe", "another process")] {
            fs::write(&lock, before).unwrap();
            let folder = RunFolder::open(dir.path(), false).unwrap();
            assert!(folder.notes[0].contains(said), "{:?}", folder.notes);
            drop(folder);
            assert_eq!(fs::read(&lock).unwrap(), before);
        }
        RunFolder::open(dir.path(), false).unwrap().keep();
        assert_eq!(fs::read(&lock).unwrap(), b"", "a run that was at work has ended by itself");
        fs::remove_file(&lock).unwrap();
        drop(RunFolder::open(dir.path(), false).unwrap());
        assert!(!lock.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_that_is_a_pipe_is_refused_and_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("lock")).status().unwrap();
        assert!(made.success());
        let error = RunFolder::open(dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_was_moved_removed_or_replaced_is_noticed_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("run"), dir.path().join("moved"));
        let folder = RunFolder::open(&path, false).unwrap();
        folder.check().unwrap();
        fs::rename(&path, &moved).unwrap();
        let error = folder.write_text("graph.ron", "Graph()").unwrap_err().to_string();
        assert!(error.contains("run` is gone"), "{error}");
        let other = RunFolder::open(&path, false).unwrap();
        let error = folder.check().unwrap_err().to_string();
        assert!(error.contains("another folder is at"), "{error}");
        if cfg!(target_os = "linux") {
            assert_eq!(folder.whereabouts(), Some(moved.canonicalize().unwrap()));
            fs::remove_dir_all(&moved).unwrap();
            assert_eq!(folder.whereabouts(), None);
        }
        drop(folder);
        assert!(path.join("lock").exists(), "the lock of the other run stays");
        drop(other);
    }

    #[test]
    fn what_killed_runs_have_left_unfinished_goes_when_a_run_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".writing-killed"), "half").unwrap();
        let mut folder = RunFolder::open(dir.path(), false).unwrap();
        assert!(dir.path().join(".writing-killed").exists());
        folder.keep();
        assert!(!dir.path().join(".writing-killed").exists());
    }

    #[test]
    fn a_preview_is_the_picture_and_its_name_stays_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path(), false).unwrap();
        let rgb = std::sync::Arc::new(vec![255, 0, 0, 0, 0, 255]);
        let picture = Picture { height: 1, width: 2, rgb };
        let path = folder.write_preview("../x y", &picture).unwrap();
        assert_eq!(path, dir.path().join("preview/.._x_y.png"));
        let back = image::open(path).unwrap().into_rgb8();
        assert_eq!(back.get_pixel(1, 0).0, [0, 0, 255]);
    }
}
