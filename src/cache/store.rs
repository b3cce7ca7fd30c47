//! The folder of a cache.
//!
//! ```text
//!  format                          what the folder is, and the version of all below
//!  index                           which entry belongs to which sample, so that nothing has to be decoded to know
//!  entries/RECIPE/recipe.json      operator, settings and weights that these entries are of
//!  entries/RECIPE/ab/KEY.safetensors   one entry; its key begins with `ab`
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use prefgraph_nn::files::{is_unfinished, remove_abandoned, remove_if_abandoned, write_atomically};

use super::{CacheError, FORMAT, Hash, Recipe};

/// What is at the place of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// A cache of this format.
    Cache,
    /// A cache of another format: its own words.
    Other(String),
    /// Something else.
    Foreign,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Store {
    root: PathBuf,
}

const RECIPE: &str = "recipe.json";

fn format_line() -> String {
    format!("prefgraph cache, format {FORMAT}")
}

impl Store {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    pub fn found(&self) -> Found {
        match fs::read_to_string(self.root.join("format")) {
            Ok(text) if text.trim() == format_line() => Found::Cache,
            Ok(text) if text.starts_with("prefgraph cache") => Found::Other(text.trim().to_owned()),
            Ok(_) => Found::Foreign,
            Err(_) if self.root.is_dir() => match children(&self.root).find(|p| !is_unfinished(p)) {
                Some(_) => Found::Foreign,
                // Another run may be about to make it.
                None => Found::Nothing,
            },
            Err(_) if self.root.exists() => Found::Foreign,
            Err(_) => Found::Nothing,
        }
    }

    /// Is it a cache that can be read?
    pub fn check(&self) -> Result<(), CacheError> {
        let root = self.root.display();
        match self.found() {
            Found::Cache => Ok(()),
            Found::Nothing => Err(CacheError::new(format!("`{root}`: there is no cache"))),
            Found::Other(what) => Err(CacheError::new(format!(
                "`{root}` is a {what}, and this build reads format {FORMAT}: remove the folder, or choose another `path`"
            ))),
            Found::Foreign => Err(CacheError::new(format!(
                "`{root}` is not a cache: something else is there; choose another `path`, or an empty folder"
            ))),
        }
    }

    /// Make the folder if there is none, and see that it can be written.
    pub fn open(&self) -> Result<(), CacheError> {
        if self.found() != Found::Nothing {
            self.check()?;
        }
        let fault = |e: &dyn std::fmt::Display| CacheError::io("be written to", &self.root, e);
        fs::create_dir_all(&self.root).map_err(|e| fault(&e))?;
        // First of all: a folder with anything else in it and without this file is not taken for a cache. It is also the
        // proof that files can be written here.
        write_atomically(&self.root.join("format"), format!("{}\n", format_line()).as_bytes())
            .map_err(|e| fault(&e))?;
        fs::create_dir_all(self.root.join("entries")).map_err(|e| fault(&e))
    }

    fn folder(&self, recipe: &str) -> PathBuf {
        self.root.join("entries").join(recipe)
    }

    /// Where the entry of that key is, or would be.
    pub fn entry(&self, recipe: &str, key: Hash) -> PathBuf {
        let key = key.to_hex();
        self.folder(recipe).join(&key[..2]).join(format!("{key}.safetensors"))
    }

    /// Note what entries are of, and which nodes use them.
    pub fn note(&self, recipe: &Recipe) -> Result<(), CacheError> {
        let path = self.folder(&recipe.id()).join(RECIPE);
        let mut noted = recipe.clone();
        if let Some(old) = read_recipe(&path) {
            if recipe.nodes.is_subset(&old.nodes) {
                return Ok(());
            }
            noted.nodes.extend(old.nodes);
        }
        let fault = |e: &dyn std::fmt::Display| CacheError::io("write", &path, e);
        fs::create_dir_all(self.folder(&recipe.id())).map_err(|e| fault(&e))?;
        let text = serde_json::to_string_pretty(&noted).map_err(|e| fault(&e))?;
        write_atomically(&path, text.as_bytes()).map_err(|e| fault(&e))
    }

    /// The recipes of all entries by the names of their folders; `None` where a folder does not say.
    pub fn recipes(&self) -> Vec<(String, Option<Recipe>)> {
        let mut all: Vec<_> = children(&self.root.join("entries"))
            .filter(|p| p.is_dir())
            .map(|p| (name(&p), read_recipe(&p.join(RECIPE)).filter(|r| r.id() == name(&p))))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// All entries of a recipe, and with them whatever else is in the folders of entries.
    pub fn entries(&self, recipe: &str) -> impl Iterator<Item = PathBuf> {
        children(&self.folder(recipe)).filter(|p| p.is_dir()).flat_map(|p| children(&p))
    }

    /// Remove what killed processes were writing; files that others are writing now stay.
    pub fn remove_abandoned(&self) -> usize {
        let recipes = children(&self.root.join("entries")).filter(|p| p.is_dir());
        let folders = recipes.flat_map(|recipe| children(&recipe).chain([recipe]));
        folders.chain([self.root.clone()]).map(|folder| remove_abandoned(&folder)).sum()
    }

    /// Remove everything of a recipe, but for what another process is writing now and the folders around that.
    pub fn remove(&self, recipe: &str) -> Result<(), CacheError> {
        let fault = |path: &Path, e: io::Error| CacheError::io("remove", path, e);
        let folder = self.folder(recipe);
        for path in self.entries(recipe) {
            if is_unfinished(&path) {
                remove_if_abandoned(&path).map_err(|e| fault(&path, e))?;
            } else {
                fs::remove_file(&path).map_err(|e| fault(&path, e))?;
            }
        }
        for inner in children(&folder).filter(|p| p.is_dir()) {
            remove_if_empty(&inner).map_err(|e| fault(&inner, e))?;
        }
        if children(&folder).any(|p| p.is_dir()) {
            return Ok(());
        }
        children(&folder).try_for_each(|path| fs::remove_file(&path).map_err(|e| fault(&path, e)))?;
        remove_if_empty(&folder).map_err(|e| fault(&folder, e))
    }
}

/// Remove a folder; one that somebody has put a file into meanwhile stays.
fn remove_if_empty(folder: &Path) -> io::Result<()> {
    fs::remove_dir(folder)
        .or_else(|e| if e.kind() == io::ErrorKind::DirectoryNotEmpty { Ok(()) } else { Err(e) })
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read_recipe(path: &Path) -> Option<Recipe> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path())
}
