//! A crate outside the workspace, with prefgraph and prefgraph-ops as its only dependencies, compiles.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

/// Copies `tests/outside` below the target folder, where the versions of the workspace can be put beside it, and checks it
/// with `main` as its source.
fn checked(name: &str, main: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(folder.join("src")).expect("a folder");
    let manifest = fs::read_to_string(root.join("tests/outside/Cargo.toml")).expect("a manifest");
    let manifest = manifest.replace("../..", &root.display().to_string());
    // Two crates of one name would be one crate to cargo, below one target folder.
    let manifest = manifest.replace("name = \"outside\"", &format!("name = \"{name}\""));
    fs::write(folder.join("Cargo.toml"), manifest).expect("written");
    fs::write(folder.join("src/main.rs"), main).expect("written");
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).expect("a copy");
    // The folder and the flags of `tests/graph_compile_fail.rs`, which has checked the same crates before: this test then takes
    // seconds. With others it would take a minute more.
    let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tests/trybuild");
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output().expect("rustc runs");
    let host = String::from_utf8(host.stdout).expect("a name");
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["check", "--offline", "--quiet", "--color=never", "--target", host.trim()])
        .arg("--config=build.rustflags=[\"--cfg\", \"trybuild\", \"--verbose\", \"-A\", \"dead_code\"]")
        .env_remove("RUSTFLAGS")
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_TARGET_DIR", shared)
        .current_dir(&folder)
        .output()
        .expect("cargo runs")
}

#[test]
fn settings_choices_operators_closures_and_the_command_need_two_dependencies() {
    let output = checked("outside", include_str!("outside/src/main.rs"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn serde_is_indeed_no_dependency_of_that_crate() {
    let output = checked("outside_with_serde", "fn main() { let _ = ::serde::de::IgnoredAny; }");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("serde"), "{errors}");
}
