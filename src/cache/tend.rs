//! Maintenance of a cache folder: show, verify, clean.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use prefgraph_nn::files::is_unfinished;

use super::{CacheError, Recipe, entry, index::Index, store::Store};

/// The entries of one recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name of their folder.
    pub id: String,
    /// What they are of; `None` where the folder does not say, so that nothing can use them.
    pub recipe: Option<Recipe>,
    /// How many there are.
    pub entries: usize,
    /// Their size on the disk.
    pub bytes: u64,
}

/// What the cache in `folder` holds.
///
/// # Errors
/// If there is no cache.
pub fn show(folder: &Path) -> Result<Vec<Group>, CacheError> {
    let store = Store::new(folder);
    store.check()?;
    let group = |(id, recipe): (String, Option<Recipe>)| {
        let mut group = Group { id: id.clone(), recipe, entries: 0, bytes: 0 };
        for path in store.entries(&id).filter(|p| !is_unfinished(p)) {
            group.entries += 1;
            group.bytes += fs::metadata(&path).map_or(0, |m| m.len());
        }
        group
    };
    Ok(store.recipes().into_iter().map(group).collect())
}

/// Read every entry; the number of good ones, and for each other its path and what is wrong with it.
///
/// # Errors
/// If there is no cache.
pub fn verify(folder: &Path) -> Result<(usize, Vec<(PathBuf, String)>), CacheError> {
    let store = Store::new(folder);
    store.check()?;
    let (mut good, mut bad) = (0, Vec::new());
    for (id, _) in store.recipes() {
        for path in store.entries(&id).filter(|p| !is_unfinished(p)) {
            match entry::verify(&path) {
                Ok(()) => good += 1,
                Err(why) => bad.push((path, why)),
            }
        }
    }
    bad.sort();
    Ok((good, bad))
}

/// What [`clean`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Entries.
    pub entries: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Unfinished files of processes that were killed.
    pub unfinished: usize,
}

/// Remove all entries but those of the recipes that are named, and what killed processes have left. What another process
/// is writing now stays.
///
/// # Errors
/// If there is no cache, or something cannot be removed.
pub fn clean(folder: &Path, keep: &BTreeSet<String>) -> Result<Cleaned, CacheError> {
    let store = Store::new(folder);
    let groups = show(folder)?;
    let mut cleaned = Cleaned { unfinished: store.remove_abandoned(), ..Cleaned::default() };
    for group in groups {
        if !keep.contains(&group.id) {
            store.remove(&group.id)?;
            cleaned.entries += group.entries;
            cleaned.bytes += group.bytes;
        }
    }
    let left: BTreeSet<String> = store
        .recipes()
        .iter()
        .flat_map(|(id, _)| store.entries(id))
        .filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    Index::read(&store.index()).keep(|key| left.contains(key.to_hex().as_str()))?;
    Ok(cleaned)
}
