//! Errors of this crate, by whose fault they are.

use std::path::PathBuf;

/// A failure, with the names a reader needs to act on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, written or understood.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what would have been accepted.
        message: String,
    },
    /// Two shapes that do not go together.
    #[error("{what}: expected {expected}, got {found}")]
    Shape {
        /// The tensor or the argument.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A setting out of its range, or a pattern that matches nothing.
    #[error("{0}")]
    Setting(String),
    /// A value that is not finite, with the place where it was found.
    #[error("{0}")]
    NotFinite(String),
    /// A device that is missing, full or lost.
    #[error("{device}: {message}")]
    Device {
        /// Its name, such as `cuda:0`.
        device: String,
        /// What happened, and what can be done.
        message: String,
    },
    /// A defect of this library: no input should be able to cause it.
    #[error("internal error, please report it: {0}")]
    Internal(String),
}

impl Error {
    /// A [`Error::File`].
    pub fn file(path: impl Into<PathBuf>, message: impl std::fmt::Display) -> Self {
        Self::File { path: path.into(), message: message.to_string() }
    }

    /// A [`Error::Shape`].
    pub fn shape(
        what: impl Into<String>,
        expected: impl std::fmt::Debug,
        found: impl std::fmt::Debug,
    ) -> Self {
        Self::Shape { what: what.into(), expected: format!("{expected:?}"), found: format!("{found:?}") }
    }
}

/// The result of anything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;
