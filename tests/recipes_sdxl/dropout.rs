//! Conditions that PatchDPO's recipe leaves out at random.

use std::{fs, path::Path, process::Command, sync::Arc};

use assert_cmd::cargo::cargo_bin;
use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::Cpu;

use crate::published::{Published, root};

/// The losses of the first steps.
fn losses(graph: &Path, published: &Published, more: &[String], steps: u64) -> Vec<f32> {
    let sets = [&published.sets(true, true)[..], &["strip.every=100".to_owned()], more].concat();
    let loaded = spec::load(graph, &sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}"));
    let graph = Arc::new(loaded.graph);
    let plan = Plan::new(&graph, &PlanOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = RunOptions { last: Some(steps - 1), ..RunOptions::new(0, Cpu::new(2).unwrap()) };
    let mut runner = Runner::new(graph, plan, options).unwrap();
    (0..steps).map(|_| runner.step().unwrap().loss.unwrap()).collect()
}

fn rates(image: f64, text: f64, both: f64) -> Vec<String> {
    [("image", image), ("text", text), ("both", both)].map(|(n, r)| format!("dropout.{n}={r}")).to_vec()
}

#[test]
fn a_sample_without_its_picture_or_its_prompt_is_trained_as_if_it_had_never_had_them() {
    let published = Published::new();
    let recipe = root().join("graphs/sdxl/patchdpo_ip_adapter.ron");
    // The passes of the recipe, with these conditions at every step.
    let wired = |name: &str, text: &str, pictures: &str| {
        let path = published.path(name);
        let passes = ["policy", "policy_ref"].map(|pass| {
            format!("(id: \"{pass}\", in: (text: \"{text}.text\", pooled: \"{text}.pooled\", image_prompt: \"{pictures}\"))")
        });
        let parent = recipe.display().to_string();
        fs::write(&path, format!("Graph(extends: {parent:?}, name: \"w\", nodes: [{}])", passes.join(", ")))
            .unwrap();
        losses(&path, &published, &[], 2)
    };
    let dropped = |image, text, both| losses(&recipe, &published, &rates(image, text, both), 2);
    let all = [
        wired("plain.ron", "prompt", "image_prompt"),
        wired("no_picture.ron", "prompt", "no_picture"),
        wired("no_prompt.ron", "no_prompt", "image_prompt"),
        wired("neither.ron", "no_prompt", "no_picture"),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other[0] != one[0]), "{all:?}");
    }
    let rates =
        [dropped(0.0, 0.0, 0.0), dropped(1.0, 0.0, 0.0), dropped(0.0, 1.0, 0.0), dropped(0.0, 0.0, 1.0)];
    assert_eq!(rates, all);
}

#[test]
fn the_recipe_has_the_rates_of_the_published_trainer_and_the_others_leave_nothing_out() {
    let published = Published::new();
    let registry = Registry::standard();
    let load = |recipe: &str| {
        let sets = published.sets(true, recipe.contains("patchdpo"));
        spec::load(&root().join(recipe), &sets, &registry).unwrap_or_else(|e| panic!("{e:?}")).settings()
    };
    let found = load("graphs/sdxl/patchdpo_ip_adapter.ron");
    let rate = |name: &str| found.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!(["image", "text", "both"].map(|n| rate(&format!("dropout.{n}"))), [Some("0.05"); 3]);
    let other = load("graphs/sdxl/sft_ip_adapter.ron");
    assert!(other.iter().all(|(key, _)| !key.starts_with("dropout.")));
}

#[test]
fn a_recipe_that_leaves_prompts_out_is_drawn_with() {
    let published = Published::new();
    let (recipe, to) = ("graphs/sdxl/patchdpo_ip_adapter.ron", published.path("drawn"));
    let mut command = Command::new(cargo_bin("graph-run"));
    command
        .current_dir(root())
        .args(["sample", recipe, "--prompt", "a dog", "--seed", "0", "--out"])
        .arg(&to);
    let sets = published.sets(true, true);
    for set in sets.iter().filter(|s| !s.starts_with("cache") && !s.starts_with("held_out")) {
        command.args(["--set", set]);
    }
    command.args(["--set", "backbone.ip_adapter="]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(to).unwrap().count(), 1);
}
