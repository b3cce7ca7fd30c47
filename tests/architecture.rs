//! The invariants of `docs/architecture.md` that can be checked by reading the sources.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rust files below `folder`, with their text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|e| e.expect("a readable entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a readable source");
                found.push((path.strip_prefix(root()).expect("below the root").to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found.sort();
    found
}

/// The lines of `text` that are neither comments nor documentation.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|l| !l.trim_start().starts_with("//"))
}

fn nobody_says(word: &str, folder: &str, except: &[&str]) {
    for excused in except {
        assert!(root().join(excused).exists(), "{excused} is excused and does not exist");
    }
    for (path, text) in sources(folder) {
        if except.iter().any(|e| path.starts_with(e)) {
            continue;
        }
        if let Some(line) = code(&text).find(|l| l.contains(word)) {
            panic!("{} must not say `{word}`: {}", path.display(), line.trim());
        }
    }
}

/// Names of the crates that a manifest depends on, however it says so: `name = ".."`, `name.workspace = true`,
/// `name = { .. }`, `other = { package = "name" }`, `[dependencies.name]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table.ends_with("dependencies");
            found.extend(
                table.rsplit_once("dependencies.").map(|(_, name)| name.trim_matches('"').to_owned()),
            );
        } else if inside && !line.starts_with('#') {
            let key = line.split(['=', '.']).next().unwrap_or_default().trim().trim_matches('"');
            found.push(key.to_owned());
            let renamed = line.split_once("package").and_then(|(_, rest)| rest.split('"').nth(1));
            found.extend(renamed.map(str::to_owned));
        }
    }
    found
}

fn does_not_depend_on(manifest: &str, crates: &[&str]) {
    let text = fs::read_to_string(root().join(manifest)).expect("a manifest");
    let found = dependencies(&text);
    assert!(found.iter().any(|name| name == "thiserror"), "{manifest} was read: {found:?}");
    for name in crates {
        assert!(!found.iter().any(|f| f == name), "{manifest} must not name {name}");
    }
}

#[test]
fn a_dependency_is_seen_in_every_way_of_stating_it() {
    let manifest = "[package]\nnot = \"this\"\n[dependencies]\na = \"1\"\nb.workspace = true\nc = { path = \"x\" }\n\
                    z = { package = \"d\", version = \"1\" }\n[dev-dependencies.e]\nversion = \"1\"\n\
                    [target.'cfg(unix)'.dependencies]\nf={version=\"1\"}\n";
    let found = dependencies(manifest);
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert!(found.iter().any(|f| f == name), "{name} in {found:?}");
    }
    assert!(!found.iter().any(|f| f == "not"), "{found:?}");
}

#[test]
fn the_networks_know_no_operator_and_no_graph() {
    does_not_depend_on("nn/Cargo.toml", &["prefgraph", "prefgraph-ops", "petgraph", "ron"]);
}

#[test]
fn operators_know_no_graph_no_plan_and_no_text_of_a_file() {
    does_not_depend_on("ops/Cargo.toml", &["prefgraph", "petgraph", "ron", "miette"]);
}

#[test]
fn only_the_loader_of_files_and_the_registry_know_ron() {
    for part in [
        "src/graph",
        "src/plan",
        "src/run",
        "src/sweep",
        "src/cache",
        "src/sources",
        "src/checkpoint",
        "src/folder",
    ] {
        nobody_says("ron::", part, &[]);
        nobody_says("crate::spec", part, &[]);
    }
}

#[test]
fn nothing_draws_numbers_but_the_counter_based_generator() {
    for word in ["thread_rng", "rand::", "seed_from_u64", "sample_normal", "from_entropy"] {
        nobody_says(word, "ops/src", &["ops/src/random.rs"]);
        nobody_says(word, "src", &[]);
        nobody_says(word, "nn/src", &[]);
    }
}

#[test]
fn operators_and_networks_read_no_clock() {
    for word in ["Instant::now", "SystemTime"] {
        nobody_says(word, "ops/src", &[]);
        nobody_says(word, "nn/src", &[]);
    }
}

#[test]
fn unsafe_code_lives_in_the_kernels_of_devices_only() {
    for folder in ["src", "ops/src", "nn/src"] {
        for word in ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code"] {
            nobody_says(word, folder, &["nn/src/cpu", "nn/src/cuda"]);
        }
    }
}

#[test]
fn every_file_says_first_what_it_is_and_is_short_enough_to_read() {
    for folder in ["src", "ops/src", "nn/src", "examples", "benches", "tests"] {
        for (path, text) in sources(folder) {
            if path.starts_with("tests/ui") {
                continue;
            }
            assert!(text.starts_with("//!"), "{} does not begin with what it is", path.display());
            let lines = text.lines().count();
            assert!(lines <= 560, "{} has {lines} lines: split it", path.display());
        }
    }
}
