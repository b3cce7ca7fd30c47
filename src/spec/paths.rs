//! Paths that a text states, made absolute: a resolved graph means the same from every folder.

use std::path::{Component, Path};

use prefgraph_ops::settings::expand_home;

use super::{scan, syntax::quote, text};

/// `value`, the text of a setting that holds paths, with every path in it relative to `folder`.
pub(super) fn absolute(value: &str, folder: &Path) -> String {
    let mut out = String::with_capacity(value.len());
    let mut done = 0;
    for literal in scan::strings(value) {
        let Ok(path) = text::read::<String>(&value[literal.clone()]) else { continue };
        out += &value[done..literal.start];
        // No path at all means that none was given.
        out += &quote(&if path.is_empty() { path } else { join(folder, &path) });
        done = literal.end;
    }
    out + &value[done..]
}

fn join(folder: &Path, path: &str) -> String {
    let path = &expand_home(Path::new(path));
    if path.is_absolute() {
        return path.to_string_lossy().into_owned();
    }
    let mut joined = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    // `folder` has no links in it, so a leading `..` can be taken off by name.
    let mut leading = true;
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if leading => drop(joined.pop()),
            part => {
                leading = false;
                joined.push(part);
            }
        }
    }
    joined.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_lists_and_options_are_joined_and_absolute_ones_kept() {
        let folder = Path::new("/a/b");
        assert_eq!(absolute(r#"Some("../c/x.json")"#, folder), r#"Some("/a/c/x.json")"#);
        assert_eq!(absolute(r#"["x", "/y", ""]"#, folder), r#"["/a/b/x", "/y", ""]"#);
        assert_eq!(absolute("None", folder), "None");
    }

    #[test]
    fn a_tilde_means_the_home_folder() {
        let home = std::env::home_dir().expect("a home folder").join("x.json");
        assert_eq!(absolute(r#""~/x.json""#, Path::new("/a")), quote(&home.to_string_lossy()));
        assert_eq!(absolute(r#""./~/x""#, Path::new("/a")), r#""/a/~/x""#);
    }
}
