//! Why a cache cannot be used.

use std::path::Path;

/// A cache that a graph cannot have, or that cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CacheError {
    /// The cached node that it is about, if it is about one.
    pub node: Option<String>,
    /// What would have been accepted.
    pub help: Option<String>,
    message: String,
}

impl CacheError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { node: None, help: None, message: message.into() }
    }

    /// About a node that is to be cached.
    pub(super) fn of(node: &str, why: impl std::fmt::Display) -> Self {
        Self { node: Some(node.into()), ..Self::new(format!("node `{node}` cannot be cached: {why}")) }
    }

    /// About a node that is not there.
    pub(super) fn unknown(node: &str, e: impl std::fmt::Display) -> Self {
        Self { node: Some(node.into()), ..Self::new(e.to_string()) }
    }

    /// Something of the file system.
    pub(super) fn io(what: &str, path: &Path, e: impl std::fmt::Display) -> Self {
        Self::new(format!("the cache cannot {what} `{}`: {e}", path.display()))
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}
