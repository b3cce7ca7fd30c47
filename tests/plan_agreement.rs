//! What a plan refuses because nodes do not go together: toy encoders under a published network, a reference whose guidance is
//! not the policy's, a measurement of other samples than those that it is told of.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use prefgraph::{Plan, PlanOptions, Registry, spec};
use prefgraph_nn::models::FluxConfig;

/// A FLUX transformer with FLUX.1's widths and a single block. Its weights are a hole in a file: nothing here reads them.
fn flux1(folder: &Path) -> String {
    let config = folder.join("config.json");
    let text = r#"{"_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": true,
        "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 0,
        "num_single_layers": 1, "patch_size": 1, "pooled_projection_dim": 768}"#;
    fs::write(&config, text).unwrap();
    let mut end = 0;
    let tensors = FluxConfig::read(&config).unwrap().tensors().into_iter().map(|(name, shape)| {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        (name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}))
    });
    let header = serde_json::Value::Object(tensors.collect()).to_string();
    let mut file = File::create(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    format!("backbone.weights={}", folder.display())
}

/// Plan a recipe with settings over it.
fn plan(recipe: &str, sets: &[&str]) -> Result<(), String> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs").join(recipe);
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    let loaded = spec::load(&recipe, &sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}"));
    Plan::new(&loaded.graph, &PlanOptions::default()).map(drop).map_err(|e| e.to_string())
}

#[test]
fn records_of_different_samples_under_the_same_names_are_refused() {
    let error = plan("sft.ron", &["log.prefix=held_out"]).unwrap_err();
    assert!(error.contains("`log` records other samples under the prefix `held_out`, too"), "{error}");
    let error = plan("focusdpo.ron", &["held_out_log.prefix="]).unwrap_err();
    assert!(error.contains("`log` records other samples without a prefix, too"), "{error}");
    plan("sft.ron", &["log.prefix=train"]).unwrap();
}

#[test]
fn a_network_with_flux1s_widths_is_refused_toy_encoders_unless_they_are_meant() {
    let folder = tempfile::tempdir().unwrap();
    let weights = flux1(folder.path());
    let held_out = ["held_out_winner", "held_out_loser", "held_out_references", "held_out_prompt"];
    for (recipe, toys) in [
        ("diffusion_dpo.ron", [&["winner", "loser", "references", "prompt"][..], &held_out].concat()),
        ("focusdpo.ron", [&["winner", "loser", "references", "prompt"][..], &held_out].concat()),
        ("focusdpo_cached.ron", [&["winner", "loser", "references", "prompt"][..], &held_out].concat()),
        ("patchdpo.ron", [&["references", "loser", "prompt"][..], &held_out].concat()),
        ("sample.ron", vec!["winner", "references", "prompt", "reference_images", "policy_images"]),
    ] {
        let guidance = if recipe == "sample.ron" { "reference.guidance=3.5" } else { "policy.guidance=1.0" };
        let mut allowed = vec![weights.clone(), guidance.to_owned()];
        if recipe == "focusdpo_cached.ron" {
            // What encoders gave is kept on the disk; which encoders they are is still known.
            allowed.push(format!("cache.path={}", folder.path().join("cache").display()));
        }
        let sets: Vec<&str> = allowed.iter().map(String::as_str).collect();
        let error = plan(recipe, &sets).unwrap_err();
        for toy in &toys {
            let kind = if toy.ends_with("prompt") { "hash" } else { "dct" };
            assert!(error.contains(&format!("`{toy}` (`kind: {kind}`)")), "{recipe}: {error}");
            assert!(error.contains(&format!("--set {toy}.allow_toy=true")), "{recipe}: {error}");
            allowed.push(format!("{toy}.allow_toy=true"));
        }
        // What to set is said once for each kind: the recipes' other nodes follow.
        assert!(error.contains(&format!("--set {}.kind=kl", toys[0])), "{recipe}: {error}");
        assert!(error.contains("--set prompt.kind=clip_t5"), "{recipe}: {error}");
        assert_eq!(error.matches(".kind=").count(), 2, "{recipe}: {error}");
        let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
        // One that is not meant is still refused, and only that.
        let error = plan(recipe, &allowed[..allowed.len() - 1]).unwrap_err();
        assert_eq!(error.matches("allow_toy").count(), 1, "{recipe}: {error}");
        plan(recipe, &allowed).unwrap_or_else(|e| panic!("{recipe}: {e}"));
    }
}

#[test]
fn the_reference_takes_the_policys_guidance_and_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let weights = flux1(folder.path());
    let toys = ["winner", "loser", "references", "prompt"].map(|node| format!("{node}.allow_toy=true"));
    let held_out = toys.clone().map(|toy| format!("held_out_{toy}"));
    let mut sets = vec![weights.as_str(), "policy.guidance=1.0"];
    sets.extend(toys.iter().chain(&held_out).map(String::as_str));
    plan("diffusion_dpo.ron", &sets).unwrap();
    sets.push("reference.guidance=3.5");
    let error = plan("diffusion_dpo.ron", &sets).unwrap_err();
    for part in ["guidance 3.5", "guidance 1 for the same latents `noise.x_t`", "@"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_autoencoder_is_stated_once_in_a_recipe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let weights = root.join("tests/fixtures/encoders/tiny_checkpoint");
    for (recipe, first) in [("focusdpo.ron", "winner"), ("patchdpo.ron", "loser")] {
        let sets = [format!("{first}.kind=kl"), format!("{first}.weights={}", weights.display())];
        let loaded = spec::load(&root.join("graphs").join(recipe), &sets, &Registry::standard()).unwrap();
        let kinds: Vec<(String, String)> =
            loaded.settings().into_iter().filter(|(name, _)| name.ends_with(".kind")).collect();
        let dct: Vec<&String> =
            kinds.iter().filter(|(_, kind)| kind == "dct").map(|(name, _)| name).collect();
        assert!(dct.is_empty(), "{recipe}: {dct:?}");
        assert!(kinds.iter().filter(|(_, kind)| kind == "kl").count() >= 2, "{kinds:?}");
    }
}

/// Plan `diffusion_dpo.ron` with these nodes laid over it.
fn rewired(nodes: &str) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs");
    let text = format!("Graph(extends: \"diffusion_dpo.ron\", name: \"rewired\", nodes: [{nodes}])");
    let loaded = spec::load_text("rewired.ron", &text, &folder, &[], &Registry::standard())
        .unwrap_or_else(|e| panic!("{e:?}"));
    Plan::new(&loaded.graph, &PlanOptions::default()).map(drop).map_err(|e| e.to_string())
}

#[test]
fn a_best_step_that_no_connected_metric_can_tell_is_refused_before_the_run() {
    let measure = |metrics: &str, more: &str| {
        rewired(&format!("(id: \"held_out_measure\", in: (metrics: [{metrics}]{more}))"))
    };
    let error = measure("\"update.metrics\"", "").unwrap_err();
    assert!(error.contains("node `held_out_measure` (`measure`), input `metrics`"), "{error}");
    assert!(
        error.contains("`criterion: loss` takes the metric `pair_loss`, which `update` does not"),
        "{error}"
    );
    let error = measure("\"update.metrics\", \"pairs.metrics\"", "").unwrap_err();
    assert!(error.contains("neither `update` nor `pairs` measures"), "{error}");
    let error = measure("", "").unwrap_err();
    assert!(error.contains("none are connected"), "{error}");
    measure("\"update.metrics\", \"held_out_errors.metrics\"", "").unwrap();
    measure("\"update.metrics\"", ", adapter: None").unwrap();
}

#[test]
fn metrics_times_and_ids_of_different_samples_are_not_summed_up() {
    let measure = |inputs: &str| rewired(&format!("(id: \"held_out_measure\", in: ({inputs}))"));
    let error = measure("ids: \"pairs.ids\"").unwrap_err();
    assert!(
        error.contains("(`measure`), input `ids`: `pairs.ids` is of the samples of `pairs`, but"),
        "{error}"
    );
    assert!(error.contains("`held_out_errors.metrics` measures those of `held_out`"), "{error}");
    let error = measure("t: \"time\"").unwrap_err();
    assert!(error.contains("input `t`: `time` is of the samples of `pairs`"), "{error}");
    let error = measure("metrics: [\"loss.metrics\"]").unwrap_err();
    assert!(error.contains("but `loss.metrics` measures those of `pairs`"), "{error}");
    // Of the same pairs, and still other times.
    let other = "(id: \"other_time\", op: \"timestep\", in: (x0: \"held_out_winner\"))";
    let error =
        rewired(&format!("{other}, (id: \"held_out_measure\", in: (t: \"other_time\"))")).unwrap_err();
    assert!(error.contains("`other_time` is not the time that `held_out_errors` measures at"), "{error}");
    assert!(error.contains("which is `held_out_time`"), "{error}");
}

#[test]
fn a_measurement_takes_as_many_steps_as_its_pairs_have_batches() {
    // 16 pairs, 4 a batch.
    for (steps, set) in
        [(3, "held_out_log.over=3"), (5, "held_out_measure.over=5"), (1, "held_out_measure.over=1")]
    {
        let error = plan("focusdpo.ron", &[set]).unwrap_err();
        assert!(error.contains("node `held_out_measure`"), "{error}");
        assert!(error.contains(&format!("`over` is {steps}, but `held_out` has 4 batches")), "{error}");
        assert!(error.contains("@held_out.batches_per_epoch"), "{error}");
    }
    plan("focusdpo.ron", &["held_out_measure.over=4"]).unwrap();
    plan("focusdpo.ron", &["held_out.first=5"]).unwrap();
    // A record is of the steps that somebody wants to see, not of a set.
    plan("focusdpo.ron", &["held_out_log.over=2", "held_out_measure.over=4"]).unwrap();
}
