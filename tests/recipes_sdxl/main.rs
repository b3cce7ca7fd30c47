//! The recipes for SDXL take two steps on small files of the published layouts, and share all but the network with those for FLUX.

mod adapters;
#[path = "../copy/mod.rs"]
mod copy;
mod dropout;
mod on_gpu;
mod published;
mod strips;
mod wrong;

use std::{fs, path::PathBuf, process::Command, sync::Arc};

use assert_cmd::cargo::cargo_bin;
use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::{
    Adapter, AdapterLayout, Backbone, Cpu, files::TensorFiles, lora::AdapterFormat, models::SdxlUNet,
};
use published::{Published, numbers, root, train};

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
    // Nothing else comes with the network than what it is conditioned on, and what it draws on the way.
    let added = said.lines().find_map(|l| l.strip_prefix("only in + (")?.split_once(": ")).unwrap().1;
    let added: Vec<&str> = added.split(", ").filter(|node| !node.starts_with("strip")).collect();
    let conditions = [
        "sizes (sizes)",
        "held_out_sizes (sizes)",
        "image_prompt (image-prompt)",
        "held_out_image_prompt (image-prompt)",
    ];
    assert_eq!(added, conditions, "{said}");
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
    assert!(said.contains("IP-Adapter at 0.78"), "{said}");
    let guided = guided.unwrap();
    assert_eq!(guided.dimensions(), (64, 48));
    let (good, said, plain) = draw("plain", &["--ref", &reference, "--cfg", "1"]);
    assert!(good && said.contains("2 passes"), "{said}");
    assert_ne!(plain.unwrap(), guided);
    let (good, said, _) = draw("without", &[]);
    assert!(!good && said.contains("--ref"), "{said}");
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
