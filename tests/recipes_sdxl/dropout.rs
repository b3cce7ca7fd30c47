//! Conditions that the recipes of PatchDPO and of Diffusion-DPO leave out at random.

use std::{f32::consts::LN_2, fs, path::Path, process::Command, sync::Arc};

use assert_cmd::cargo::cargo_bin;
use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::Cpu;

use crate::published::{Published, root, train};

/// The losses of the first steps of PatchDPO.
fn losses(graph: &Path, published: &Published, more: &[String], steps: u64) -> Vec<f32> {
    losses_with(graph, &[&published.sets(true, true)[..], more].concat(), steps)
}

/// The losses of the first steps.
fn losses_with(graph: &Path, sets: &[String], steps: u64) -> Vec<f32> {
    let sets = [sets, &["strip.every=100".to_owned()]].concat();
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
fn policy_and_reference_of_diffusion_dpo_are_compared_under_the_same_prompt_left_out_or_not() {
    let published = Published::new();
    let recipe = root().join("graphs/sdxl/diffusion_dpo.ron");
    // Only once the policy has moved does a preference loss depend on the prompt.
    let moving =
        ["accumulate=1", "schedule=constant", "warmup=0", "lr=0.001"].map(|set| format!("update.{set}"));
    let sets = [&published.sets(false, false)[..], &moving].concat();
    let wired = |name: &str, text: &str| {
        let path = published.path(name);
        let passes = ["policy", "reference"]
            .map(|pass| format!("(id: \"{pass}\", in: (text: \"{text}.text\", pooled: \"{text}.pooled\"))"));
        let parent = recipe.display().to_string();
        fs::write(&path, format!("Graph(extends: {parent:?}, name: \"w\", nodes: [{}])", passes.join(", ")))
            .unwrap();
        losses_with(&path, &sets, 3)
    };
    let dropped =
        |rate: f64| losses_with(&recipe, &[&sets[..], &[format!("dropout.text={rate}")]].concat(), 3);
    let (with, without) = (wired("with.ron", "prompt"), wired("without.ron", "no_prompt"));
    assert_eq!([with[0], without[0]], [LN_2; 2]);
    assert!(with[2] != LN_2 && with[2] != without[2], "{with:?} {without:?}");
    assert_eq!([dropped(0.0), dropped(1.0)], [with, without]);
}

#[test]
fn the_recipes_have_the_rates_of_the_published_trainers_and_the_others_leave_nothing_out() {
    let published = Published::new();
    let registry = Registry::standard();
    let rates = |recipe: &str| {
        let sets = published.sets(recipe.contains("ip_adapter"), recipe.contains("patchdpo"));
        let path = root().join("graphs/sdxl").join(recipe);
        let found = spec::load(&path, &sets, &registry).unwrap_or_else(|e| panic!("{e:?}")).settings();
        ["image", "text", "both"].map(|name| {
            let rate = found.iter().find(|(key, _)| *key == format!("dropout.{name}"));
            rate.map(|(_, value)| value.parse::<f64>().unwrap())
        })
    };
    assert_eq!(rates("patchdpo_ip_adapter.ron"), [Some(0.05); 3]);
    assert_eq!(rates("diffusion_dpo.ron"), [Some(0.0), Some(0.2), Some(0.0)]);
    for other in ["sft_ip_adapter.ron", "diffusion_dpo_ip_adapter.ron", "focusdpo_ip_adapter.ron"] {
        assert_eq!(rates(other), [None; 3], "{other}");
    }
}

#[test]
fn every_line_of_the_metrics_says_how_many_samples_went_without_their_prompt_and_their_pictures() {
    let published = Published::new();
    let recorded = |recipe: &str, rates: &[&str]| {
        let out = published.path(rates[0]);
        let more = ["--steps", "2", "--set", "pairs.batch=2", "--set", "strip.every=100"];
        let sets = rates.iter().flat_map(|rate| ["--set", *rate]);
        let more: Vec<&str> = more.into_iter().chain(sets).collect();
        let (good, said) = train(&published, recipe, recipe.contains("patchdpo"), &out, &more);
        assert!(good, "{said}");
        let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let of = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            ["without_text", "without_pictures"].map(|name| line[name].as_f64().unwrap())
        };
        lines.lines().map(of).collect::<Vec<_>>()
    };
    let patchdpo = "graphs/sdxl/patchdpo_ip_adapter.ron";
    assert_eq!(recorded(patchdpo, &["dropout.image=0", "dropout.text=0", "dropout.both=1"]), [[2.0; 2]; 2]);
    assert_eq!(recorded(patchdpo, &["dropout.image=1", "dropout.text=0", "dropout.both=0"]), [[0.0, 2.0]; 2]);
    assert_eq!(recorded("graphs/sdxl/diffusion_dpo.ron", &["dropout.text=1"]), [[2.0, 0.0]; 2]);
}

#[test]
fn a_draw_of_prompts_cannot_leave_pictures_out_and_that_of_pictures_no_prompts() {
    let published = Published::new();
    let recipe = root().join("graphs/sdxl/patchdpo_ip_adapter.ron").display().to_string();
    for (node, draw, found) in
        [("given_text", "dropout.image", "image-drop"), ("given_pictures", "dropout.text", "text-drop")]
    {
        let path = published.path("swapped.ron");
        let text = format!("Graph(extends: {recipe:?}, nodes: [(id: \"{node}\", in: (drop: \"{draw}\"))])");
        fs::write(&path, text).unwrap();
        let (good, said) = plan(&published, &path);
        assert!(!good && said.contains("swapped.ron:1"), "{said}");
        assert!(said.contains(&format!("carries {found} f32[_]")), "{said}");
        assert!(said.contains(draw) && said.contains("the roles do not"), "{said}");
    }
}

/// What `graph-run plan` says of a graph with PatchDPO's nodes, and whether it takes it.
fn plan(published: &Published, graph: &Path) -> (bool, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).arg("plan").arg(graph);
    for set in published.sets(true, true) {
        command.args(["--set", &set]);
    }
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
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
