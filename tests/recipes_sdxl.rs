//! The recipes for SDXL take two steps on small files of the published layouts, and share all but the network with those for FLUX.

mod copy;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use assert_cmd::cargo::cargo_bin;
use copy::copy;
use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::{
    Adapter, AdapterLayout, Backbone, Cpu,
    files::{NamedTensor, TensorFiles, write_safetensors},
    lora::AdapterFormat,
    models::{SdxlUNet, UNetConfig},
    vision::ResamplerSizes,
};

/// Pixels that the features' encoder sees, four patches a side.
const SIDE_OF_FEATURES: usize = 4 * 8;
/// Width of pooled text.
const POOLED: usize = 24;
/// Width of the tokens: that of both text encoders together.
const TOKENS: usize = 64;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Numbers without pattern, in +-`size`.
fn numbers(count: usize, size: f32) -> Vec<f32> {
    let mixed = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..count).map(|i| size * ((mixed(i) & 0xFFFF) as f32 / 32768.0 - 1.0)).collect()
}

/// Write tensors without meaning, small enough for a deep network.
fn write(path: &Path, tensors: Vec<(String, Vec<usize>)>) {
    let tensors: Vec<NamedTensor<'_>> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let inputs: usize = shape.iter().skip(1).product();
            let values = match name.contains("norm") && name.ends_with("weight") {
                true => vec![1.0; shape[0]],
                false => numbers(shape.iter().product(), 1.0 / (inputs as f32).sqrt()),
            };
            NamedTensor::f32(name, shape, &values)
        })
        .collect();
    write_safetensors(path, &tensors, &[]).unwrap();
}

/// A pipeline in SDXL's layout, and an IP-Adapter for it.
struct Published {
    dir: tempfile::TempDir,
}

impl Published {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (pipeline, fixtures) = (dir.path().join("sdxl"), root().join("tests/fixtures/encoders"));
        let small = fixtures.join("tiny_checkpoint");
        for (from, to) in [
            (small.join("text_encoder"), "text_encoder"),
            (small.join("tokenizer"), "tokenizer"),
            (small.join("tokenizer"), "tokenizer_2"),
            (fixtures.join("vae_sdxl"), "vae"),
        ] {
            copy(&from, &pipeline.join(to));
        }
        copy(&fixtures.join("clip_vision"), &dir.path().join("image_encoder"));
        second_text_encoder(&small.join("text_encoder"), &pipeline.join("text_encoder_2"));

        let unet = pipeline.join("unet");
        fs::create_dir_all(&unet).unwrap();
        let config = format!(
            r#"{{"_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8, "attention_head_dim": [2, 2], "block_out_channels": [8, 16],
            "cross_attention_dim": {TOKENS}, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "in_channels": 4, "out_channels": 4,
            "layers_per_block": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 4,
            "projection_class_embeddings_input_dim": {}, "resnet_out_scale_factor": 1.0,
            "transformer_layers_per_block": [1, 1], "use_linear_projection": true}}"#,
            POOLED + 6 * 8
        );
        fs::write(unet.join("config.json"), config).unwrap();
        let config = UNetConfig::read(&unet.join("config.json")).unwrap();
        write(&unet.join("diffusion_pytorch_model.safetensors"), config.tensors());

        let sizes =
            ResamplerSizes { input: 32, queries: 4, width: 20, inner: 64, mlp: 40, depth: 1, output: TOKENS };
        let mut tensors = sizes.tensors();
        // All cross-attentions are on the level with 16 channels.
        for crossing in 0..config.layout(true).blocks {
            for part in ["to_k_ip", "to_v_ip"] {
                tensors.push((format!("ip_adapter.{}.{part}.weight", 2 * crossing + 1), vec![16, TOKENS]));
            }
        }
        write(&dir.path().join("ip-adapter.safetensors"), tensors);
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a user would change in a recipe, and small pictures.
    fn sets(&self, with_images: bool, patches: bool) -> Vec<String> {
        let mut sets = vec![
            format!("backbone.weights={}", self.path("sdxl").display()),
            format!("pairs.path={}", root().join("data/demo/pairs.jsonl").display()),
            format!("held_out.path={}", root().join("data/demo/held_out.jsonl").display()),
            format!("cache.path={}", self.path("cache").display()),
            "lora.rank=4".into(),
            "backbone.compute=f32".into(),
        ];
        let sides = ["height", "width", "reference_height", "reference_width"];
        sets.extend(sides.map(|side| format!("pairs.{side}=64")));
        if with_images && patches {
            let encoder = root().join("tests/fixtures/encoders/dinov2");
            sets.push(format!("features_gen.encoder={}", encoder.display()));
            sets.push(format!("features_gen.side={}", SIDE_OF_FEATURES));
        }
        if with_images {
            sets.push(format!("backbone.ip_adapter={}", self.path("ip-adapter.safetensors").display()));
            sets.push(format!("image_prompt.image_encoder={}", self.path("image_encoder").display()));
        }
        sets
    }
}

/// The text encoder of a small checkpoint with a projection and the other activation, in place of ViT-bigG.
fn second_text_encoder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(from.join("config.json")).unwrap()).unwrap();
    config["hidden_act"] = "gelu".into();
    config["projection_dim"] = POOLED.into();
    let width = config["hidden_size"].as_u64().unwrap() as usize;
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    let files = TensorFiles::open(&from.join("model.safetensors")).unwrap();
    let copied = files.names().map(|name| {
        NamedTensor::f32(name.to_owned(), files.info(name).unwrap().shape.clone(), &files.read(name).unwrap())
    });
    let projection =
        NamedTensor::f32("text_projection.weight", vec![POOLED, width], &numbers(POOLED * width, 0.2));
    let tensors: Vec<NamedTensor<'_>> = copied.chain([projection]).collect();
    write_safetensors(&to.join("model.safetensors"), &tensors, &[]).unwrap();
}

fn recipes() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(root().join("graphs/sdxl")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "ron"));
    found.sort();
    found
}

#[test]
fn every_recipe_takes_two_steps_and_begins_at_the_loss_of_two_equal_networks() {
    let published = Published::new();
    let all = recipes();
    assert!(all.len() >= 4, "{all:?}");
    for recipe in all {
        let with_images = recipe.to_string_lossy().contains("ip_adapter");
        let name = recipe.display();
        let loaded = spec::load(
            &recipe,
            &published.sets(with_images, recipe.to_string_lossy().contains("patchdpo")),
            &Registry::standard(),
        )
        .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let graph = Arc::new(loaded.graph);
        let plan = Plan::new(&graph, &PlanOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let options = RunOptions { last: Some(1), ..RunOptions::new(0, Cpu::new(2).unwrap()) };
        let mut runner = Runner::new(graph.clone(), plan, options).unwrap();
        let mut step = || runner.step().unwrap_or_else(|e| panic!("{name}: {e}"));
        let (first, second) = (step().loss.unwrap(), step().loss.unwrap());
        if graph.find("reference").is_ok() {
            assert_eq!(first, std::f32::consts::LN_2, "{name}");
        }
        assert!(first.is_finite() && second.is_finite(), "{name}: {first} {second}");
    }
}

#[test]
fn held_out_pairs_of_a_network_of_ddpm_are_summed_up_by_timestep_and_its_focus_mask_is_measured() {
    let published = Published::new();
    let out = published.path("run");
    let sets = published.sets(true, false).into_iter().chain(["held_out.first=4".into()]);
    let output = Command::new(cargo_bin("graph-run"))
        .current_dir(root())
        .arg("graphs/sdxl/focusdpo_ip_adapter.ron")
        .args(sets.flat_map(|set| ["--set".into(), set]))
        .args(["--steps", "4", "--out"])
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    // Four even times, one in each quarter of the timesteps.
    for level in ["timestep_0-249", "timestep_250-499", "timestep_500-749", "timestep_750-999"] {
        assert_eq!(last[format!("held_out.{level}.pairs")], 1.0, "{level}");
        for figure in ["loss", "implicit_acc", "w_diff", "l_diff", "coverage", "mask_mean", "prior_mean"] {
            assert!(last[format!("held_out.{level}.{figure}")].is_f64(), "{level} {figure}");
        }
    }
    assert_eq!(last["held_out.all.pairs"], 4.0);
}

#[test]
fn an_adapter_of_a_u_net_has_the_names_that_diffusers_and_kohyas_tools_read_and_is_read_back() {
    let published = Published::new();
    let network = SdxlUNet::open(Cpu::new(1).unwrap(), &published.path("sdxl")).unwrap();
    let linears = &network.layout().linears;
    let layout = AdapterLayout::matching(linears, &["to_q", "to_out.0"], 2, 2.0).unwrap().0;
    let adapter = Adapter { values: numbers(layout.len(), 0.3).into(), layout: Arc::new(layout) };
    for (format, start) in [
        (AdapterFormat::Diffusers, "unet.mid_block.attentions.0.transformer_blocks.0.attn"),
        (AdapterFormat::Kohya, "lora_unet_middle_block_1_transformer_blocks_0_attn"),
    ] {
        let file = published.path("adapter.safetensors");
        adapter.write(&file, format, &[]).unwrap();
        let files = TensorFiles::open(&file).unwrap();
        assert!(files.names().any(|name| name.starts_with(start)), "{format:?}: {:?}", files.names().next());
        let back = Adapter::read(&file, linears).unwrap();
        assert_eq!(back.layout, adapter.layout, "{format:?}");
        assert!(back.values.host().unwrap().iter().eq(adapter.values.host().unwrap().iter()), "{format:?}");
    }
}

#[test]
fn recipes_for_sdxl_and_for_flux_share_every_node_but_the_network_and_its_encoders() {
    let diff = |old: &str, new: &str| {
        let output = Command::new(cargo_bin("graph-run"))
            .current_dir(root())
            .args(["diff", old, new])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = diff("graphs/focusdpo.ron", "graphs/sdxl/focusdpo_ip_adapter.ron");
    let same = said.lines().find(|l| l.starts_with("the same in both")).unwrap();
    let same: Vec<&str> = same.split_once(": ").unwrap().1.split(", ").collect();
    for node in ["found", "structure", "fuse", "log", "moments"] {
        assert!(same.contains(&node), "{node} in {said}");
    }
    // Nothing else comes with the network than what it is conditioned on.
    assert!(
        said.contains("only in + (4): sizes (sizes), held_out_sizes (sizes), image_prompt (image-prompt)"),
        "{said}"
    );
    assert!(said.contains("only in - (2): references (encode-references), held_out_references"), "{said}");
}

#[test]
fn a_recipe_for_published_files_says_what_is_missing_or_of_another_model() {
    let published = Published::new();
    let recipe = root().join("graphs/sdxl/focusdpo_ip_adapter.ron");
    let refused = |sets: &[String]| match spec::load(&recipe, sets, &Registry::standard()) {
        Ok(loaded) => match Plan::new(&loaded.graph, &PlanOptions::default()) {
            Ok(_) => panic!("it was taken"),
            Err(e) => e.to_string(),
        },
        Err(e) => format!("{e:?}"),
    };
    let error = refused(&[]);
    assert!(error.contains("pairs.jsonl") || error.contains("sdxl"), "{error}");
    let with = |set: String| [published.sets(true, false), vec![set]].concat();
    let error = refused(&with(format!("backbone.ip_adapter={}", published.path("sdxl/vae").display())));
    assert!(error.contains("ip_adapter") || error.contains("IP-Adapter"), "{error}");
    let error = refused(&with("time.process=flow".into()));
    assert!(error.contains("timesteps of DDPM") || error.contains("process"), "{error}");
    // Without its IP-Adapter the network has no use for image tokens.
    let error = refused(&with("backbone.ip_adapter=\"\"".into()));
    assert!(error.contains("ip_adapter") || error.contains("IP-Adapter"), "{error}");
}

#[test]
fn a_recipe_draws_with_references_guidance_and_a_negative_prompt_and_says_that_a_reference_is_missing() {
    let published = Published::new();
    let reference = published.path("dog.png");
    image::RgbImage::from_fn(48, 40, |x, y| image::Rgb([x as u8 * 5, y as u8 * 6, 90]))
        .save(&reference)
        .unwrap();
    let reference = reference.display().to_string();
    let draw = |out: &str, more: &[&str]| {
        let out = published.path(out);
        let mut command = Command::new(cargo_bin("graph-run"));
        command.current_dir(root()).args([
            "sample",
            "graphs/sdxl/focusdpo_ip_adapter.ron",
            "--prompt",
            "a dog",
        ]);
        command.args(["--steps", "2", "--size", "64x48", "--out"]).arg(&out).args(more);
        let sets = published.sets(true, false);
        let settings = sets.iter().filter(|s| !s.starts_with("cache") && !s.starts_with("pairs.path"));
        settings.for_each(|set| _ = command.args(["--set", set]));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let picture = image::open(out.join("a-dog-seed-0.png")).map(image::DynamicImage::into_rgb8);
        (output.status.success(), said, picture.ok())
    };
    let (good, said, guided) = draw("guided", &["--ref", &reference, "--negative", "blurry"]);
    assert!(good && said.contains("4 passes") && said.contains("classifier-free guidance 5"), "{said}");
    let guided = guided.unwrap();
    assert_eq!(guided.dimensions(), (64, 48));
    let (good, said, plain) = draw("plain", &["--ref", &reference, "--cfg", "1"]);
    assert!(good && said.contains("2 passes"), "{said}");
    assert_ne!(plain.unwrap(), guided);
    let (good, said, _) = draw("without", &[]);
    assert!(!good && said.contains("--ref"), "{said}");
}

/// Train through the command line; returns what it says, and whether it succeeded.
fn train(published: &Published, recipe: &str, patches: bool, out: &Path, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).arg(recipe).arg("--out").arg(out);
    for set in published.sets(true, patches) {
        command.args(["--set", &set]);
    }
    command.args(["--set", "update.accumulate=1", "--set", "update.schedule=constant"]);
    let output = command.args(["--set", "update.warmup=0"]).args(more).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn keys_trained_whole_are_written_as_an_ip_adapter_and_a_run_resumes_to_the_same_bytes() {
    let published = Published::new();
    let recipe = "graphs/sdxl/patchdpo_ip_adapter.ron";
    let run = |out: &str, more: &[&str]| {
        let out = published.path(out);
        let (good, said) = train(&published, recipe, true, &out, more);
        assert!(good, "{said}");
        assert!(!out.join("adapter.safetensors").exists());
        fs::read(out.join("adapter.ip_adapter.safetensors")).unwrap()
    };
    let straight = run("straight", &["--steps", "3"]);
    run("broken", &["--steps", "1"]);
    assert_eq!(run("broken", &["--steps", "3", "--resume"]), straight);

    let old = TensorFiles::open(&published.path("ip-adapter.safetensors")).unwrap();
    let new = TensorFiles::open(&published.path("straight/adapter.ip_adapter.safetensors")).unwrap();
    assert!(old.names().eq(new.names()));
    assert_eq!(new.metadata()["prefgraph.step"], "3");
    for name in old.names() {
        let trained = name.starts_with("ip_adapter.");
        assert_eq!(old.bytes(name).unwrap() != new.bytes(name).unwrap(), trained, "{name}");
    }
    // As the adapter of another run, or of one that draws.
    let set = format!(
        "backbone.ip_adapter={}",
        published.path("straight/adapter.ip_adapter.safetensors").display()
    );
    let (good, said) =
        train(&published, recipe, true, &published.path("next"), &["--steps", "1", "--set", &set]);
    assert!(good, "{said}");

    let refused = |more: &[&str]| {
        let (good, said) = train(&published, recipe, true, &published.path("refused"), more);
        assert!(!good, "{said}");
        // Messages are wrapped.
        said.replace('│', " ").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let said = refused(&["--set", "export.formats=[kohya]"]);
    assert!(said.contains("is trained whole, and kohya names hold pairs of factors"), "{said}");
    let said = refused(&["--set", "lora.whole=[\"*.to_q\"]"]);
    assert!(said.contains("which is no linear of an IP-Adapter"), "{said}");
}

#[test]
fn a_resampler_inside_the_network_is_trained_by_two_more_settings() {
    let published = Published::new();
    let recipe = "graphs/sdxl/diffusion_dpo_ip_adapter.ron";
    let inside =
        ["--set", "backbone.resampler=inside", "--set", "export.formats=[diffusers]", "--steps", "2"];
    let run = |out: &str, tokens: &str| {
        let more = [&inside[..], &["--set", tokens]].concat();
        train(&published, recipe, false, &published.path(out), &more)
    };
    let (good, said) = run("wrong", "backbone.picture_tokens=7");
    assert!(!good && said.contains("`picture_tokens` of the backbone"), "{said}");
    // What the message states.
    let grid = prefgraph_nn::vision::Vit::open(&published.path("image_encoder")).unwrap().config().grid();
    let (good, said) = run("run", &format!("backbone.picture_tokens={}", 1 + grid * grid));
    assert!(good && said.contains("every logit is exactly 0"), "{said}");
    let files = TensorFiles::open(&published.path("run/adapter.safetensors")).unwrap();
    let name = "unet.encoder_hid_proj.image_projection_layers.0.layers.0.attn.to_k.lora_B.weight";
    let factor = files.read(name).unwrap();
    assert!(factor.iter().any(|v| *v != 0.0));
}
