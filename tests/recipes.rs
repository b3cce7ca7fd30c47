//! Every shipped recipe loads, plans, and takes two steps on what the repository carries.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, StepOutput, spec};
use prefgraph_nn::{
    Adapter, Backbone, Cpu,
    files::{NamedTensor, write_safetensors},
    lora::{AdapterFormat, AdapterLayout},
    models::{FluxConfig, FluxUno},
};
use prefgraph_ops::ports::{Effect, Picture};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn recipes(folder: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(folder).expect("recipes");
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a readable entry").path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "ron"));
    found.sort();
    assert!(!found.is_empty());
    found
}

/// A runner of this recipe for so many steps.
fn runner(recipe: &str, sets: &[String], steps: u64) -> Runner {
    let recipe = root().join(recipe);
    let loaded = spec::load(&recipe, sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}"));
    let graph = Arc::new(loaded.graph);
    let plan = Plan::new(&graph, &PlanOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = RunOptions { last: Some(steps - 1), ..RunOptions::new(0, Cpu::new(2).expect("threads")) };
    Runner::new(graph, plan, options).expect("a runner")
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

/// Held-out pairs and PatchDPO's reference picture are noised, and looked at, as what is trained on.
#[test]
fn all_parts_of_a_recipe_follow_the_noise_schedule_and_the_hooks_of_its_training() {
    let registry = Registry::standard();
    let sets = ["noise.process=ddpm_v", "noise.zero_snr=true", "policy.hook_cells=8"].map(str::to_owned);
    for recipe in recipes("graphs").into_iter().chain(recipes("graphs/sdxl")) {
        let facts = |sets: &[String]| spec::Outline::open(&recipe, sets, &registry).and_then(|o| o.facts());
        let plain = facts(&[]).unwrap_or_else(|e| panic!("{e:?}"));
        if plain.get("noise").is_none_or(|op| op != "noise") {
            continue;
        }
        let facts = facts(&sets).unwrap_or_else(|e| panic!("{e:?}"));
        let of = |node: &str, setting: &str| facts.get(&format!("{node}.{setting}")).map(String::as_str);
        for (node, op) in &plain {
            let name = format!("{node} of {}", recipe.display());
            if op == "noise" {
                assert_eq!(
                    (of(node, "process"), of(node, "zero_snr")),
                    (Some("ddpm_v"), Some("true")),
                    "{name}"
                );
            }
            if op == "forward" && of(node, "hooks").is_some_and(|hooks| hooks != "off") {
                assert_eq!(of(node, "hook_cells"), Some("8"), "{name}");
            }
        }
    }
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

/// Copies a folder, and what is below it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(drop).expect("a copy") }
    }
}

/// Numbers without pattern, in +-`size`.
fn numbers(count: usize, size: f32) -> Vec<f32> {
    let mixed = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..count).map(|i| size * ((mixed(i) & 0xFFFF) as f32 / 32768.0 - 1.0)).collect()
}

/// A pipeline in the layout of the published one, as small as it can be: the fixture's encoders, and a transformer and an
/// adapter of UNO with numbers without meaning.
fn published(folder: &Path) -> (PathBuf, PathBuf) {
    let pipeline = folder.join("FLUX.1-dev");
    copy(&root().join("tests/fixtures/encoders/tiny_checkpoint"), &pipeline);
    let transformer = pipeline.join("transformer");
    fs::create_dir_all(&transformer).expect("a folder");
    let config = r#"{"_class_name": "FluxTransformer2DModel", "attention_head_dim": 16, "guidance_embeds": true,
        "in_channels": 64, "joint_attention_dim": 48, "num_attention_heads": 2, "num_layers": 1,
        "num_single_layers": 1, "patch_size": 1, "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6]}"#;
    fs::write(transformer.join("config.json"), config).expect("a configuration");
    let tensors = FluxConfig::read(&transformer.join("config.json")).expect("a configuration").tensors();
    let tensors: Vec<NamedTensor<'_>> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let values =
                numbers(shape.iter().product(), 1.0 / (*shape.last().expect("an axis") as f32).sqrt());
            NamedTensor::f32(name, shape, &values)
        })
        .collect();
    write_safetensors(&transformer.join("diffusion_pytorch_model.safetensors"), &tensors, &[])
        .expect("weights");

    let backbone = FluxUno::open(Cpu::new(1).expect("a thread"), &pipeline).expect("a checkpoint");
    let targets = ["attn.*", "proj_out"];
    let layout = AdapterLayout::matching(&backbone.layout().linears, &targets, 4, 4.0).expect("linears").0;
    // In UNO's names, queries, keys and values have one A: here all modules with inputs of one width have.
    let values = layout
        .modules
        .iter()
        .flat_map(|m| [numbers(4 * m.inputs, 0.3), numbers(4 * m.outputs, 0.3)].concat());
    let adapter = Adapter { values: values.collect::<Vec<f32>>().into(), layout: Arc::new(layout) };
    let file = folder.join("dit_lora.safetensors");
    adapter.write(&file, AdapterFormat::Uno, &[]).expect("an adapter");
    (pipeline, file)
}

#[test]
fn the_recipe_for_published_files_takes_two_steps_on_small_files_of_their_layout() {
    let dir = tempfile::tempdir().expect("a folder");
    let (pipeline, adapter) = published(dir.path());
    let sets = [
        format!("backbone.weights={}", pipeline.display()),
        format!("backbone.adapter={}", adapter.display()),
        format!("pairs.path={}", root().join("data/demo/pairs.jsonl").display()),
        format!("held_out.path={}", root().join("data/demo/held_out.jsonl").display()),
        format!("cache.path={}", dir.path().join("cache").display()),
        "pairs.height=64".into(),
        "pairs.width=64".into(),
        "pairs.reference_height=32".into(),
        "pairs.reference_width=32".into(),
        "prompt.length=16".into(),
        "lora.rank=4".into(),
        "sample_reference.steps=2".into(),
    ];
    let mut runner = runner("graphs/flux/focusdpo_uno.ron", &sets, 2);
    let first = runner.step().unwrap_or_else(|e| panic!("{e}"));
    // UNO's adapter is on in policy and reference alike.
    assert_eq!(first.loss, Some(std::f32::consts::LN_2));
    let strips = first.effects.iter().filter(|(node, _)| node == "strip").count();
    assert_eq!(strips, 1, "a strip of samples at the first step");
    assert!(runner.step().unwrap_or_else(|e| panic!("{e}")).loss.is_some_and(f32::is_finite));
}

#[test]
fn flux_without_references_takes_two_steps_on_small_files_of_the_published_layout() {
    let dir = tempfile::tempdir().expect("a folder");
    let (pipeline, _) = published(dir.path());
    let sets = [
        format!("backbone.weights={}", pipeline.display()),
        format!("pairs.path={}", root().join("data/demo/pairs.jsonl").display()),
        format!("held_out.path={}", root().join("data/demo/held_out.jsonl").display()),
        format!("cache.path={}", dir.path().join("cache").display()),
        "pairs.height=64".into(),
        "pairs.width=64".into(),
        "prompt.length=16".into(),
        "lora.rank=4".into(),
    ];
    let mut runner = runner("graphs/flux/diffusion_dpo.ron", &sets, 2);
    let first = runner.step().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(first.loss, Some(std::f32::consts::LN_2));
    assert!(runner.step().unwrap_or_else(|e| panic!("{e}")).loss.is_some_and(f32::is_finite));
}

#[test]
fn what_uno_draws_needs_prompts_and_references_only_and_any_recipe_can_draw_with_an_adapter_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let (pipeline, uno) = published(dir.path());
    let reference = dir.path().join("dog.png");
    image::RgbImage::from_fn(48, 40, |x, y| image::Rgb([x as u8 * 5, y as u8 * 6, 90]))
        .save(&reference)
        .expect("a picture");
    let prompts = dir.path().join("prompts.jsonl");
    fs::write(&prompts, r#"{"id": "dog", "prompt": "a dog", "refs": [{"image": "dog.png"}]}"#)
        .expect("a prompt");
    let files =
        [format!("backbone.weights={}", pipeline.display()), format!("backbone.adapter={}", uno.display())];
    let mut sets = files.to_vec();
    sets.extend([format!("asked.path={}", prompts.display())]);
    sets.extend(
        [
            "asked.reference_height=32",
            "asked.reference_width=32",
            "blank.height=48",
            "blank.width=64",
            "prompt.length=16",
            "lora.rank=4",
            "reference.steps=2",
        ]
        .map(String::from),
    );
    let loaded = spec::load(&root().join("graphs/flux/sample_uno.ron"), &sets, &Registry::standard());
    let loaded = loaded.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(loaded.run.steps, 1, "as many steps as the file has batches");
    let graph = Arc::new(loaded.graph);
    let plan = Plan::new(&graph, &PlanOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = RunOptions { last: Some(0), ..RunOptions::new(0, Cpu::new(2).expect("threads")) };
    let step = Runner::new(graph, plan, options).expect("a runner").step().unwrap_or_else(|e| panic!("{e}"));
    let drawn: Vec<&Picture> = step
        .effects
        .iter()
        .filter_map(|(node, effect)| match effect {
            Effect::Preview(_, picture) if node == "pictures" => Some(picture),
            _ => None,
        })
        .collect();
    assert!(
        matches!(drawn[..], [picture] if (picture.height, picture.width) == (48, 64)),
        "{} pictures",
        drawn.len()
    );

    // An adapter of other linears and another rank than the recipe trains, over UNO's own.
    let backbone = FluxUno::open(Cpu::new(1).expect("a thread"), &pipeline).expect("a checkpoint");
    let layout =
        AdapterLayout::matching(&backbone.layout().linears, &["attn.to_q"], 3, 6.0).expect("linears").0;
    let adapter = Adapter { values: numbers(layout.len(), 0.3).into(), layout: Arc::new(layout) };
    let file = dir.path().join("mine.safetensors");
    adapter.write(&file, AdapterFormat::Kohya, &[]).expect("an adapter");
    let draw = |recipe: &str, out: &str, more: &[&str]| {
        let out = dir.path().join(out);
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("graph-run"));
        command
            .current_dir(root())
            .arg("sample")
            .arg(recipe)
            .args(["--prompt", "a dog", "--steps", "2", "--size", "64x48"]);
        command.arg("--ref").arg(&reference).arg("--out").arg(&out).args(more);
        files.iter().for_each(|set| _ = command.args(["--set", set]));
        let output = command.args(["--set", "prompt.length=16"]).output().expect("the command runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (image::open(out.join("a-dog-seed-0.png")).expect("a picture").into_rgb8(), said)
    };
    let training = ["--set", "pairs.reference_height=32", "--set", "pairs.reference_width=32"];
    let sampling = ["--set", "asked.reference_height=32", "--set", "asked.reference_width=32"];
    let mine = ["--adapter", file.to_str().expect("a path")];
    let (first, said) = draw("graphs/flux/focusdpo_uno.ron", "a", &[&training[..], &mine].concat());
    assert!(said.contains("guidance 4") && said.contains("of rank 3"), "{said}");
    let (second, _) = draw("graphs/flux/sample_uno.ron", "b", &[&sampling[..], &mine].concat());
    assert_eq!(first, second, "both graphs state the same networks");
    let (plain, _) = draw("graphs/flux/sample_uno.ron", "c", &sampling);
    assert_ne!(first, plain);
    assert_eq!(plain.into_raw(), drawn[0].rgb[..], "without an adapter, what the graph draws");
}

#[test]
fn the_recipe_for_published_files_says_which_file_is_missing() {
    let recipe = root().join("graphs/flux/focusdpo_uno.ron");
    let Err(error) = spec::load(&recipe, &[], &Registry::standard()) else {
        panic!("there are no such files")
    };
    let text = format!("{error:?}");
    assert!(text.contains("pairs.jsonl") || text.contains("FLUX.1-dev"), "{text}");
}

#[test]
fn noise_that_a_network_was_not_trained_on_is_refused_when_the_graph_is_planned() {
    let recipe = root().join("graphs/diffusion_dpo.ron");
    let sets = ["time.process=ddpm_eps".to_owned(), "noise.process=ddpm_eps".to_owned()];
    let graph = spec::load(&recipe, &sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}")).graph;
    let error = Plan::new(&graph, &PlanOptions::default()).expect_err("timesteps for a flow").to_string();
    for part in ["timesteps of DDPM", "sigmas of a flow", "`process: flow`"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn weights_that_several_passes_share_are_counted_once() {
    let resident = |recipe: &str| {
        let path = root().join("graphs").join(recipe);
        let graph = spec::load(&path, &[], &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}")).graph;
        Plan::new(&graph, &PlanOptions::default()).expect("a plan").memory().resident
    };
    // Two passes with one adapter over one network, and one.
    assert_eq!(resident("patchdpo.ron"), resident("sft.ron"));
}
