//! `graph-run plan --without-files`: what a run on published networks needs, before anything of it is here.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

const FLUX: &str = "graphs/flux/focusdpo_uno.ron";
const SDXL: &str = "graphs/sdxl/focusdpo_ip_adapter.ron";

/// Exit code, standard output, standard error, of a command whose temporary files lie in `folder`.
fn graph_run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).env("NO_COLOR", "1");
    let output = command.env("TMPDIR", folder).env("TMP", folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn planned(graph: &str, more: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let args = ["plan", graph, "--without-files", "--json", "--device", "cuda:0", "--gpu-memory", "1TB"];
    let (code, out, err) = graph_run(folder.path(), &[&args, more].concat());
    assert_eq!(code, 0, "{graph} {more:?}: {err}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{graph}: files were left");
    assert!(!out.contains(&*folder.path().to_string_lossy()), "{out}");
    serde_json::from_str(&out).unwrap()
}

/// The setting of a FLUX.1-dev in this folder that lacks one of its parts.
fn flux_without(part: &str, flux: &Path) -> String {
    prefgraph_nn::published::Published::FluxDev.write_hollow(flux).unwrap();
    fs::remove_dir_all(flux.join(part)).unwrap();
    format!("backbone.weights={}", flux.display())
}

fn gib_of_gpu(plan: &Value) -> String {
    let places = plan["places"].as_array().unwrap();
    let gpu = places.iter().find(|place| place["place"] == "cuda:0").unwrap();
    format!("{:.1} GiB", gpu["peak"].as_f64().unwrap() / f64::from(1 << 30))
}

#[test]
fn every_graph_of_published_networks_is_planned_before_its_files_are_here() {
    let mut graphs = Vec::new();
    for folder in ["graphs/flux", "graphs/sdxl"] {
        let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        graphs.extend(names.filter(|name| name.ends_with(".ron")).map(|name| format!("{folder}/{name}")));
    }
    assert!(graphs.len() >= 7, "{graphs:?}");
    for graph in graphs {
        let plan = planned(&graph, &[]);
        let notes: Vec<&str> = plan["notes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let base = if graph.contains("flux") { "planned as FLUX.1-dev" } else { "planned as SDXL's base" };
        assert!(notes.iter().any(|note| note.contains(base)), "{graph}: {notes:?}");
        assert!(!notes.iter().any(|note| note.to_lowercase().contains("warning")), "{graph}: {notes:?}");
    }
}

#[test]
fn what_is_here_is_planned_as_it_is_and_only_the_rest_is_stood_in_for() {
    let plan = planned(FLUX, &["--set", "pairs.path=data/demo/pairs.jsonl"]);
    let notes = plan["notes"].to_string();
    assert!(!notes.contains("pairs.jsonl` is not here"), "{notes}");
    assert!(!notes.to_lowercase().contains("warning"), "{notes}");
    assert!(
        notes.contains("held_out.jsonl` is not here: planned as 16 pairs with 1 reference each"),
        "{notes}"
    );
    let [one, two] = ["[1]", "[2]"].map(|n| planned(FLUX, &["--set", &format!("*.reference_counts={n}")]));
    assert!(two["notes"].to_string().contains("16 pairs with 2 references each"), "{}", two["notes"]);
    // 400 tokens more for each of two samples.
    assert!(two["flops"].as_f64() > one["flops"].as_f64());
}

/// The rows of a table of docs/cuda.md, found by its first heading, as their cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cuda.md")).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

/// The first cells of a row are settings, the next two the peaks at 512 and 1024 pixels.
fn check(graph: &str, row: &[String], settings: &[&str], more: &[&str]) {
    for (pixels, stated) in ["512", "1024"].iter().zip(&row[settings.len()..]) {
        let mut sets = vec![format!("pairs.height={pixels}"), format!("pairs.width={pixels}")];
        let value = |cell: &String| cell.split(' ').next().unwrap_or_default().to_owned();
        sets.extend(settings.iter().zip(row).map(|(name, cell)| format!("backbone.{name}={}", value(cell))));
        let mut args: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        args.extend(more);
        assert_eq!(*stated, gib_of_gpu(&planned(graph, &args)), "{graph} {args:?}");
    }
}

#[test]
fn the_documents_say_of_flux_and_sdxl_what_the_plan_says() {
    let flux = table("| `backbone.compute` | `.checkpointing` | `.packing` |");
    assert_eq!(flux.len(), 7, "{flux:?}");
    for row in flux {
        let two = ["--set", "*.reference_counts=[2]"];
        check(FLUX, &row, &["compute", "checkpointing", "packing"], &two);
    }
    let sdxl = table("| `backbone.compute` | `.checkpointing` | 512 pixels |");
    assert_eq!(sdxl.len(), 4, "{sdxl:?}");
    for row in sdxl {
        check(SDXL, &row, &["compute", "checkpointing"], &[]);
    }
}

#[test]
fn a_plan_that_misses_files_says_that_it_can_be_made_without_them_and_one_with_another_fault_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let advice = "--without-files";
    let (code, _, err) = graph_run(folder.path(), &["plan", FLUX]);
    assert!(code == 1 && err.contains("pairs.jsonl") && err.contains(advice), "{err}");
    let (code, _, err) = graph_run(folder.path(), &["plan", FLUX, "--set", "lora.rnak=5"]);
    assert!(code == 1 && err.contains("rnak") && !err.contains(advice), "{err}");
    // A run needs them.
    let (code, _, err) = graph_run(folder.path(), &[FLUX, "--without-files"]);
    assert!(code == 2 && err.contains("--without-files"), "{err}");
    // A fault that is not about files is one with stand-ins, too.
    let (code, _, err) = graph_run(folder.path(), &["plan", FLUX, "--without-files", "--set", "lora.rank=0"]);
    assert!(code == 1 && err.contains("rank") && !err.contains("panicked"), "{err}");
    let nowhere = folder.path().join("nowhere");
    let (code, _, err) = graph_run(&nowhere, &["plan", FLUX, "--without-files"]);
    assert!(code == 1 && err.contains("nothing can be written into"), "{err}");
}

#[test]
fn of_a_folder_that_has_a_part_of_a_network_the_rest_is_stood_in_for() {
    let folder = tempfile::tempdir().unwrap();
    let flux = folder.path().join("flux");
    let weights = flux_without("text_encoder_2", &flux);
    let plan = planned("graphs/flux/diffusion_dpo.ron", &["--set", &weights]);
    let notes = plan["notes"].to_string();
    let missing = format!("`{}` is not here: planned as FLUX.1-dev", flux.join("text_encoder_2").display());
    assert!(notes.contains(&missing) && !notes.contains("vae` is not here"), "{notes}");
    assert!(notes.contains(&format!("from {}", flux.display())), "{notes}");
}

#[test]
fn what_is_imagined_is_what_the_graph_reads() {
    let notes = |graph: &str, more: &[&str]| planned(graph, more)["notes"].to_string();
    let dpo = notes("graphs/flux/diffusion_dpo.ron", &[]);
    assert!(dpo.contains("pairs.jsonl` is not here: planned as 16 pairs without references"), "{dpo}");
    let drawn = notes("graphs/flux/sample_uno.ron", &[]);
    assert!(drawn.contains("planned as 16 prompts with 1 reference each"), "{drawn}");
    // A file that no node reads but to compare with it.
    let apart = notes("graphs/flux/diffusion_dpo.ron", &["--set", "held_out.apart_from=elsewhere.jsonl"]);
    assert!(apart.contains("elsewhere.jsonl` is not here: planned as 16 pairs"), "{apart}");
}

#[test]
fn a_varied_path_is_not_stood_in_for_and_a_failure_says_where_stand_ins_were() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| {
        let args = ["plan", "graphs/flux/diffusion_dpo.ron", "--without-files", "--device", "cuda:0"];
        let (code, _, err) = graph_run(folder.path(), &[&args, more].concat());
        assert_eq!(code, 1, "{err}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "files were left");
        err
    };
    let varied = plan(&["--over", "backbone.weights=/nowhere/a,/nowhere/b"]);
    assert!(varied.contains("/nowhere/a") && !varied.contains("set and varied at once"), "{varied}");
    let other = plan(&["--set", "backbone.kind=sdxl"]);
    assert!(other.contains("stood in for files that are not here"), "{other}");
    let sides = plan(&["--set", "pairs.height=0"]);
    assert!(sides.contains("height is 0"), "{sides}");
    let huge = plan(&["--set", "pairs.height=1008000", "--set", "pairs.width=1008000"]);
    assert!(huge.contains("filling the cache needs 1.4 PiB of memory"), "{huge}");
}

#[test]
fn what_the_page_for_beginners_says_of_memory_is_what_the_plan_says() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/start.md")).unwrap();
    let flux = gib_of_gpu(&planned("graphs/flux/diffusion_dpo.ron", &[]));
    let none = ["--set", "backbone.checkpointing=none"];
    let sdxl = [&none[..], &[]].map(|more| gib_of_gpu(&planned("graphs/sdxl/diffusion_dpo.ron", more)));
    let told = format!("The first needs {flux}. The second needs {} and is refused", sdxl[0]);
    assert!(text.contains(&told), "{told}");
    assert!(text.contains(&format!("it needs {}.", sdxl[1])), "{sdxl:?}");
}

#[test]
fn what_killed_plans_have_left_goes_and_folders_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let left = |name: &str, file: &str| {
        let place = folder.path().join(name);
        fs::create_dir(&place).unwrap();
        fs::File::create(place.join(file)).unwrap().set_modified(old).unwrap();
        place
    };
    let ours = left("graph-run-plan-killed", ".stand-ins");
    let others = left("graph-run-plan-mine", "notes.txt");
    let fresh = folder.path().join("graph-run-plan-running");
    fs::create_dir(&fresh).unwrap();
    fs::write(fresh.join(".stand-ins"), "").unwrap();
    let (code, _, err) = graph_run(folder.path(), &["plan", FLUX, "--without-files", "--device", "cuda:0"]);
    assert_eq!(code, 0, "{err}");
    assert!(!ours.exists() && others.exists() && fresh.exists());
}

#[test]
fn a_tokeniser_that_lies_not_beside_its_encoder_is_stood_in_for_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let flux = folder.path().join("flux");
    let weights = flux_without("tokenizer", &flux);
    let notes = planned("graphs/flux/diffusion_dpo.ron", &["--set", &weights])["notes"].to_string();
    let missing = format!("`{}` is not here", flux.join("tokenizer").display());
    assert!(notes.contains(&missing) && !notes.contains("tokenizer_2` is not here"), "{notes}");
    // What follows a varied path is that of the variant.
    let both = format!("backbone.weights={0},{0}/", flux.display());
    let args =
        ["plan", "graphs/flux/diffusion_dpo.ron", "--without-files", "--device", "cuda:0", "--over", &both];
    let (_, out, err) = graph_run(folder.path(), &args);
    assert!(
        !out.contains("FLUX.1-dev` is not here") && !err.contains("FLUX.1-dev` is not here"),
        "{out}{err}"
    );
}
