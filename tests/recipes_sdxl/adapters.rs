//! Adapters of SDXL on the command line: exported from checkpoints, shown, converted and refused.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;
use prefgraph_nn::files::TensorFiles;

use crate::published::{Published, root, train};

/// What `graph-run adapter` says, its output behind; and whether it succeeded.
fn adapter(args: &[&str]) -> (bool, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    let output = command.current_dir(root()).env("NO_COLOR", "1").arg("adapter").args(args).output().unwrap();
    let said = [output.stderr, output.stdout].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[track_caller]
fn good(args: &[&str]) -> String {
    let (good, said) = adapter(args);
    assert!(good, "{said}");
    said
}

#[track_caller]
fn refused(args: &[&str], why: &str) {
    let (good, said) = adapter(args);
    assert!(!good && said.contains(why), "{why}: {said}");
}

fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let files = TensorFiles::open(path).unwrap();
    files.names().map(|n| (n.to_owned(), files.bytes(n).unwrap().to_vec())).collect()
}

#[test]
fn keys_trained_whole_are_exported_from_a_checkpoint_as_the_run_wrote_them() {
    let published = Published::new();
    let run = published.path("run");
    let steps = ["--steps", "2", "--set", "strip.every=100"];
    let (trained, said) = train(&published, "graphs/sdxl/patchdpo_ip_adapter.ron", true, &run, &steps);
    assert!(trained, "{said}");
    let at = |name: &str| published.path(name).display().to_string();
    let written = tensors(&run.join("adapter.ip_adapter.safetensors"));

    for (to, more) in [("a", &[][..]), ("b", &["--to", "ip_adapter"]), ("c", &["--cell", "lora"])] {
        let said = good(&[&["export", &at("run"), &at(to)], more].concat());
        assert!(said.contains("linears, trained whole,") && said.contains("IP-Adapter's file"), "{said}");
        assert!(tensors(&published.path(to)) == written, "{to}");
    }
    let header = TensorFiles::open(&published.path("a")).unwrap().metadata().clone();
    let header = ["prefgraph.graph", "prefgraph.step"].map(|key| header[key].as_str());
    assert_eq!(header, ["sdxl_patchdpo_ip_adapter", "2"]);

    // Formats of factors have no place for it, and nothing reads it as factors.
    for format in ["diffusers", "kohya", "uno"] {
        let why = format!("is trained whole, and {format} names hold pairs of factors");
        refused(&["export", &at("run"), &at("x"), "--to", format], &why);
    }
    refused(
        &["export", &at("run"), &at("x"), "--to", "peft"],
        "the formats are: diffusers, kohya, uno, ip_adapter",
    );
    refused(&["export", &at("run"), &at("ip-adapter.safetensors")], "is there and is no adapter");
    refused(&["show", &at("a")], "is an IP-Adapter, whose matrices are whole");
    refused(&["convert", &at("a"), &at("x"), "--to", "kohya"], "is an IP-Adapter, whose matrices are whole");
    refused(
        &["convert", &at("a"), &at("x"), "--to", "ip_adapter"],
        "graph-run adapter export CHECKPOINT OUT --to ip_adapter",
    );

    // Another file in the IP-Adapter's place has other weights than the changes belong to.
    let (own, moved) = (published.path("ip-adapter.safetensors"), published.path("moved.safetensors"));
    fs::rename(&own, &moved).unwrap();
    refused(&["export", &at("run"), &at("x")], "--ip-adapter and --weights say where they lie now");
    good(&["export", &at("run"), &at("d"), "--ip-adapter", &at("moved.safetensors")]);
    assert!(tensors(&published.path("d")) == written);
    fs::copy(published.path("a"), &own).unwrap();
    refused(&["export", &at("run"), &at("x")], "is another than the run has trained");
    assert!(!published.path("x").exists());
    fs::rename(published.path("sdxl"), published.path("elsewhere")).unwrap();
    let places = ["--ip-adapter", &at("moved.safetensors"), "--weights", &at("elsewhere")];
    good(&[&["export", &at("run"), &at("e")], &places[..]].concat());
    assert!(tensors(&published.path("e")) == written);
}

#[test]
fn factors_of_a_u_net_are_exported_shown_and_converted_by_its_own_names() {
    let published = Published::new();
    let run = published.path("run");
    let steps = ["--steps", "1", "--set", "strip.every=100", "--set", "export.formats=[diffusers, kohya]"];
    let (trained, said) = train(&published, "graphs/sdxl/diffusion_dpo.ron", false, &run, &steps);
    assert!(trained, "{said}");
    let at = |name: &str| published.path(name).display().to_string();
    let (ours, kohya) = (run.join("adapter.safetensors"), run.join("adapter.kohya.safetensors"));

    good(&["export", &at("run"), &at("d")]);
    assert!(tensors(&published.path("d")) == tensors(&ours));
    good(&["export", &at("run"), &at("k"), "--to", "kohya"]);
    assert!(tensors(&published.path("k")) == tensors(&kohya));
    refused(
        &["export", &at("run"), &at("x"), "--to", "ip_adapter"],
        "`backbone` of its graph has no IP-Adapter",
    );

    for file in [&ours, &kohya] {
        let said = good(&["show", &file.display().to_string()]);
        assert!(said.contains("linears of") && said.contains("attn2.to_k"), "{said}");
    }
    let (ours, weights) = (ours.display().to_string(), at("sdxl"));
    good(&["convert", &ours, &at("k2"), "--to", "kohya", "--weights", &weights]);
    assert!(fs::read(published.path("k2")).unwrap() == fs::read(&kohya).unwrap());
    good(&["convert", &at("k2"), &at("d2"), "--to", "diffusers"]);
    assert!(tensors(&published.path("d2")) == tensors(Path::new(&ours)));
    refused(&["convert", &ours, &at("x"), "--to", "uno"], "UNO");
    refused(&["convert", &ours, &at("x"), "--to", "kohya", "--weights", &at("sdxl/vae")], "config.json");
}

#[test]
fn the_best_adapter_has_factors_beside_what_is_trained_whole() {
    let published = Published::new();
    let run = published.path("run");
    let more = [
        "--steps",
        "4",
        "--set",
        "strip.every=100",
        "--set",
        "lora.targets=[\"*.attn1.to_q\"]",
        "--set",
        "held_out.first=4",
        "--set",
        "held_out_log.every=4",
    ];
    let (trained, said) = train(&published, "graphs/sdxl/patchdpo_ip_adapter.ron", true, &run, &more);
    assert!(trained, "{said}");
    let names = |folder: &Path| {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".safetensors"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&run.join("best")), ["adapter.ip_adapter.safetensors", "adapter.safetensors"], "{said}");
    assert_eq!(names(&run.join("best")), names(&run));
    let to = published.path("exported").display().to_string();
    let said = good(&["export", &run.display().to_string(), &to]);
    assert!(said.contains("not part of an IP-Adapter: `--to diffusers`"), "{said}");
}
