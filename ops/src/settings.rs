//! Settings of operators: declaration, documentation and defaults in one place.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// One setting, as `graph-run ops NAME` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingDoc {
    /// The key.
    pub name: &'static str,
    /// What may be written, e.g. `number` or `flow | ddpm_eps`.
    pub kind: String,
    /// What it means.
    pub doc: &'static str,
    /// Is it a path, relative to the file that states it?
    pub path: bool,
}

/// All settings of an operator.
pub trait Settings: DeserializeOwned + Serialize + Default + Send + Sync + 'static {
    /// In the order in which they are shown.
    fn docs() -> Vec<SettingDoc>;
}

/// A type that a setting can have.
pub trait SettingType {
    /// What may be written.
    fn kind() -> String;
    /// Is it a path, or a list of paths?
    fn is_path() -> bool {
        false
    }
}

macro_rules! kinds {
    ($($type:ty => $kind:literal),* $(,)?) => {
        $(impl SettingType for $type {
            fn kind() -> String {
                $kind.into()
            }
        })*
    };
}
kinds! {
    f32 => "number", f64 => "number", usize => "whole number", u32 => "whole number", u64 => "whole number",
    bool => "true | false", String => "text",
}

impl<S: SettingType> SettingType for Option<S> {
    fn kind() -> String {
        format!("{} | None", S::kind())
    }
    fn is_path() -> bool {
        S::is_path()
    }
}

impl<S: SettingType> SettingType for Vec<S> {
    fn kind() -> String {
        format!("[{}, ...]", S::kind())
    }
    fn is_path() -> bool {
        S::is_path()
    }
}

impl<S: SettingType, const N: usize> SettingType for [S; N] {
    fn kind() -> String {
        format!("({})", vec![S::kind(); N].join(", "))
    }
}

/// A file or folder; a relative one is meant relative to the file that states it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataPath(pub PathBuf);

impl DataPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Was none given?
    pub fn is_empty(&self) -> bool {
        self.0.as_os_str().is_empty()
    }
}

/// `~` and `~/...` as the home folder, where it is known; any other path as it is.
pub fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) if !home.as_os_str().is_empty() => home.join(rest),
        _ => path.to_owned(),
    }
}

impl SettingType for DataPath {
    fn kind() -> String {
        "path".into()
    }
    fn is_path() -> bool {
        true
    }
}

/// A struct of settings: each field has a doc comment, which is its help text, and a default.
///
/// A crate that uses it depends on this one under its own name, `prefgraph-ops`, and needs no `serde`.
///
/// ```
/// prefgraph_ops::settings! {
///     /// Settings of a blur.
///     pub struct BlurSettings {
///         /// Standard deviation in pixels.
///         pub sigma: f32 = 1.5,
///     }
/// }
/// use prefgraph_ops::Settings;
/// assert_eq!(BlurSettings::default().sigma, 1.5);
/// assert_eq!(BlurSettings::docs()[0].doc.trim(), "Standard deviation in pixels.");
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[doc = $doc:literal])+ pub $field:ident: $type:ty = $default:expr),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, $crate::__private::serde::Serialize, $crate::__private::serde::Deserialize)]
        #[serde(crate = "::prefgraph_ops::__private::serde", default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::settings::Settings for $name {
            fn docs() -> Vec<$crate::settings::SettingDoc> {
                vec![$($crate::settings::SettingDoc {
                    name: stringify!($field),
                    kind: <$type as $crate::settings::SettingType>::kind(),
                    doc: concat!($($doc),+),
                    path: <$type as $crate::settings::SettingType>::is_path(),
                }),*]
            }
        }
    };
}

/// An enum of choices for a setting, written in lower case in a graph file. It depends on what [`settings!`] does.
///
/// ```
/// prefgraph_ops::choices! {
///     /// How the edges of a picture are continued.
///     pub enum Edges {
///         /// By their own mirror image.
///         Mirror = "mirror",
///         /// By zeros.
///         Zero = "zero",
///     }
/// }
/// use prefgraph_ops::settings::SettingType;
/// assert_eq!(Edges::kind(), "mirror | zero");
/// assert_eq!(Edges::Mirror.name(), "mirror");
/// ```
#[macro_export]
macro_rules! choices {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[doc = $doc:literal])+ $variant:ident = $text:literal),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, $crate::__private::serde::Serialize, $crate::__private::serde::Deserialize,
        )]
        #[serde(crate = "::prefgraph_ops::__private::serde")]
        pub enum $name {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// The choice as a graph file writes it.
            #[allow(dead_code, reason = "not every enum's choices are named in messages")]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl $crate::settings::SettingType for $name {
            fn kind() -> String {
                [$($text),*].join(" | ")
            }
        }
    };
}

/// No settings. Not `()`: a field in the file is then an error that names the field.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl Settings for Nothing {
    fn docs() -> Vec<SettingDoc> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_folder_is_meant_by_a_tilde_alone_at_the_start() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(expand_home(Path::new("~/a/b")), home.join("a/b"));
        assert_eq!(expand_home(Path::new("~")), home.join(""));
        for other in ["~other/a", "a/~/b", "./~/b", "/~", ""] {
            assert_eq!(expand_home(Path::new(other)), Path::new(other));
        }
    }
}
