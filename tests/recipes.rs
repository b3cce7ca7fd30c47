//! Every shipped recipe loads, plans, and takes two steps on what the repository carries.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::Cpu;

fn recipes(folder: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(folder).expect("recipes");
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a readable entry").path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "ron"));
    found.sort();
    assert!(!found.is_empty());
    found
}

fn takes_two_steps(recipe: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let text = fs::read_to_string(recipe).expect("a recipe");
    // What a recipe keeps is not to be left in the repository.
    let set = text.contains("cache: (").then(|| format!("cache.path={}", folder.path().display()));
    let sets: Vec<String> = set.into_iter().collect();
    let loaded = spec::load(recipe, &sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}"));
    let graph = Arc::new(loaded.graph);
    let plan =
        Plan::new(&graph, &PlanOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", recipe.display()));
    let options = RunOptions { last: Some(1), ..RunOptions::new(0, Cpu::new(2).expect("threads")) };
    let mut runner = Runner::new(graph.clone(), plan, options).expect("a runner");
    let first = runner.step().unwrap_or_else(|e| panic!("{}: {e}", recipe.display())).loss.expect("a loss");
    let from_zero = recipe.parent().is_some_and(|p| p.ends_with("graphs"));
    if from_zero && graph.find("reference").is_ok() {
        assert_eq!(first, std::f32::consts::LN_2, "{}: the first loss", recipe.display());
    }
    let second = runner.step().unwrap_or_else(|e| panic!("{}: {e}", recipe.display())).loss.expect("a loss");
    assert!(first.is_finite() && second.is_finite(), "{first} {second}");
}

#[test]
fn every_recipe_takes_two_steps_on_the_demo() {
    recipes("graphs").iter().for_each(|r| takes_two_steps(r));
}

#[test]
fn every_replay_takes_two_steps_on_its_golden_case() {
    recipes("graphs/replay").iter().for_each(|r| takes_two_steps(r));
}

#[test]
fn a_recipe_states_only_its_difference_from_the_one_it_extends() {
    for recipe in recipes("graphs") {
        let text = fs::read_to_string(&recipe).expect("a recipe");
        let name = recipe.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        assert!(text.starts_with("//"), "{name} does not begin with what it is");
        assert!(text.contains(&format!("name: \"{name}\"")), "{name} has another name inside");
        assert!(name == "sft" || text.contains("extends:"), "{name} extends nothing");
    }
}
