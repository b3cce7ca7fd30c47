//! The folder of a run: what it leaves on the disk.
//!
//! ```text
//!  graph.ron             the resolved graph      metrics.jsonl         one object a step
//!  graph.dot             the plan as a picture   preview/*.png         pictures that operators gave
//!  adapter.safetensors   what was trained        checkpoints/step-N/   to go on from
//!  adapter.FORMAT.safetensors   the same in other programs' names, where the graph asks for it
//!  lock                  held while a run is at work here
//! ```

mod lock;
mod metrics;

use std::{
    fs,
    path::{Path, PathBuf},
};

use prefgraph_nn::{Adapter, files::write_atomically, lora::AdapterFormat};
use prefgraph_ops::ports::Picture;

pub use metrics::{Line, MetricsFile};

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

/// A run's folder, locked against other runs until it is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Sentences about what was found there.
    pub notes: Vec<String>,
    _lock: Lock,
}

impl RunFolder {
    /// Use `path`: empty or new for a fresh run, anything for one that is resumed.
    ///
    /// # Errors
    /// If it is not empty and the run is fresh, if another run is at work there, or if it cannot be written.
    pub fn open(path: &Path, resume: bool) -> Result<Self, FolderError> {
        fs::create_dir_all(path).map_err(|e| FolderError::io("make the folder", path, e))?;
        let entries = fs::read_dir(path).map_err(|e| FolderError::io("read the folder", path, e))?;
        let used = entries.flatten().any(|e| e.file_name() != lock::NAME);
        // The lock comes first: a folder that another run is filling now is busy rather than used.
        let (lock, stale) = Lock::take(path)?;
        if used && !resume {
            return Err(FolderError::new(format!(
                "`{}` already holds a run; go on with it by --resume, or choose another folder by --out",
                path.display()
            )));
        }
        Ok(Self { path: path.to_owned(), notes: stale.into_iter().collect(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Write a text file.
    ///
    /// # Errors
    /// If that fails.
    pub fn write_text(&self, name: &str, text: &str) -> Result<(), FolderError> {
        let path = self.path.join(name);
        write_atomically(&path, text.as_bytes()).map_err(|e| FolderError::io("write", &path, e))
    }

    /// Write a picture into the folder of previews.
    ///
    /// # Errors
    /// If that fails, or the pixels are not as many as the picture's size says.
    pub fn write_preview(&self, name: &str, picture: &Picture) -> Result<PathBuf, FolderError> {
        let folder = self.path.join("preview");
        fs::create_dir_all(&folder).map_err(|e| FolderError::io("make the folder", &folder, e))?;
        let path = folder.join(format!("{}.png", file_name(name)));
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
        let path = self.path.join(format.file_name(&file_name(name)));
        adapter.write(&path, format, about).map_err(|e| FolderError::io("write the adapter", &path, e))?;
        Ok(path)
    }
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
    fn two_runs_cannot_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::open(dir.path(), false).unwrap();
        let error = RunFolder::open(dir.path(), true).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        assert_eq!(RunFolder::open(dir.path(), true).unwrap().notes, Vec::<String>::new());
    }

    #[test]
    fn the_lock_of_a_run_that_was_killed_is_taken_over_with_a_word() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lock"), "4242\n").unwrap();
        let folder = RunFolder::open(dir.path(), false).unwrap();
        assert!(folder.notes[0].contains("4242"), "{:?}", folder.notes);
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
