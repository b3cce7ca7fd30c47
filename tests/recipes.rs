//! Every shipped recipe loads, plans, and takes two steps on what the repository carries.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, StepOutput, spec};
use prefgraph_nn::Cpu;
use prefgraph_ops::ports::Effect;

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
    let loaded = spec::load(recipe, &[], &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}"));
    let graph = Arc::new(loaded.graph);
    let plan =
        Plan::new(&graph, &PlanOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", recipe.display()));
    let options = RunOptions { last: Some(1), ..RunOptions::new(0, Cpu::new(2).expect("threads")) };
    let mut runner = Runner::new(graph.clone(), plan, options).expect("a runner");
    let mut step = || runner.step().unwrap_or_else(|e| panic!("{}: {e}", recipe.display()));
    let (first, second) = (step(), step());
    if graph.find("strip").is_ok() {
        samples_agree_while_the_adapter_is_zero(&first);
    }
    if graph.loss().is_none() {
        assert!(!second.effects.is_empty(), "{} neither learns nor draws", recipe.display());
        return;
    }
    let (first, second) = (first.loss.expect("a loss"), second.loss.expect("a loss"));
    let from_zero = recipe.parent().is_some_and(|p| p.ends_with("graphs"));
    if from_zero && graph.find("reference").is_ok() {
        assert_eq!(first, std::f32::consts::LN_2, "{}: the first loss", recipe.display());
    }
    assert!(first.is_finite() && second.is_finite(), "{first} {second}");
}

/// The last two pictures of every row are those of reference and policy.
fn samples_agree_while_the_adapter_is_zero(output: &StepOutput) {
    let strips = output.effects.iter().filter_map(|(node, effect)| match effect {
        Effect::Preview(name, picture) if node == "strip" => Some((name, picture)),
        _ => None,
    });
    let [(name, picture)] = strips.collect::<Vec<_>>()[..] else { panic!("one strip at the first step") };
    assert!(name.starts_with("samples-step-000000-demo-"), "{name}");
    // Pictures of 192 columns, with gaps of 4.
    let row = |y: usize| &picture.rgb[y * picture.width * 3..(y + 1) * picture.width * 3];
    let from_right = |y: usize, column: usize| {
        let end = row(y).len() - column * (192 + 4) * 3;
        &row(y)[end - 192 * 3..end]
    };
    assert!((0..picture.height).all(|y| from_right(y, 0) == from_right(y, 1)));
    // They are pictures, and not the winner's.
    assert!((0..192).all(|y| from_right(y, 0).iter().any(|v| *v != from_right(y, 0)[0])));
    assert!((0..192).any(|y| from_right(y, 1) != from_right(y, 2)));
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
        let first = ["sft", "sample"].contains(&name.as_str());
        assert!(first || text.contains("extends:"), "{name} extends nothing");
    }
}
