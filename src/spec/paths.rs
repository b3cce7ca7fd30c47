//! Makes paths absolute, so that a resolved graph means the same from every folder.

use std::path::{Component, Path};

use prefgraph_ops::settings::expand_home;

use super::{scan, syntax::quote, text};

/// `value`, the text of a setting that holds paths, with every path in it relative to `folder`.
///
/// # Errors
/// If a path that is made absolute is not text: a graph file could not state it.
pub(super) fn absolute(value: &str, folder: &Path) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut done = 0;
    for literal in scan::strings(value) {
        let Ok(path) = text::read::<String>(&value[literal.clone()]) else { continue };
        out += &value[done..literal.start];
        // No path at all means that none was given.
        out += &quote(&if path.is_empty() { path } else { join(folder, &path)? });
        done = literal.end;
    }
    Ok(out + &value[done..])
}

fn join(folder: &Path, stated: &str) -> Result<String, String> {
    let path = &expand_home(Path::new(stated));
    if path.is_absolute() {
        return Ok(path.to_string_lossy().into_owned());
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
    joined.into_os_string().into_string().map_err(|joined| {
        format!(
            "`{stated}` is relative to a folder whose name is not UTF-8, `{}`: a graph cannot state such a path",
            joined.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_lists_and_options_are_joined_and_absolute_ones_kept() {
        let folder = Path::new("/a/b");
        let absolute = |value| absolute(value, folder).unwrap();
        assert_eq!(absolute(r#"Some("../c/x.json")"#), r#"Some("/a/c/x.json")"#);
        assert_eq!(absolute(r#"["x", "/y", ""]"#), r#"["/a/b/x", "/y", ""]"#);
        assert_eq!(absolute("None"), "None");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_relative_to_a_folder_that_no_text_can_name_is_an_error_and_an_absolute_one_is_not() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let folder = Path::new(OsStr::from_bytes(b"/a/\xff"));
        assert!(absolute(r#""x""#, folder).unwrap_err().contains("not UTF-8"));
        assert_eq!(absolute(r#""/y""#, folder).unwrap(), r#""/y""#);
    }

    #[test]
    fn a_tilde_means_the_home_folder() {
        let home = std::env::home_dir().expect("a home folder").join("x.json");
        assert_eq!(absolute(r#""~/x.json""#, Path::new("/a")).unwrap(), quote(&home.to_string_lossy()));
        assert_eq!(absolute(r#""./~/x""#, Path::new("/a")).unwrap(), r#""/a/~/x""#);
    }
}
