//! The stamp of a sample: what is known about it before its files are read.

use std::{collections::HashMap, path::PathBuf};

use prefgraph_ops::Sample;

use super::Hash;
use crate::fingerprint::FileStamp;

/// Stamps of samples; a file that many of them share is looked at once.
#[derive(Default)]
pub(super) struct Stamps(HashMap<PathBuf, Option<FileStamp>>);

impl Stamps {
    /// A hash of everything that is known of a sample before it is read.
    pub fn of(&mut self, source: &str, sample: &Sample) -> Hash {
        let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 a sample of a source");
        let mut text = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        // Another version may decode or scale another way.
        text(env!("CARGO_PKG_VERSION").as_bytes());
        text(source.as_bytes());
        text(sample.facts.as_bytes());
        for path in &sample.files {
            if !self.0.contains_key(path) {
                self.0.insert(path.clone(), FileStamp::of(path).ok());
            }
            text(path.as_os_str().as_encoded_bytes());
            let stamp = self.0[path].map_or([0; 16], |s| {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&s.length.to_le_bytes());
                bytes[8..].copy_from_slice(&s.modified.to_le_bytes());
                bytes
            });
            text(&stamp);
        }
        hash.finalize()
    }
}
