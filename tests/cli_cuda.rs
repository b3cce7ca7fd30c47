//! `--device`: what is said without a GPU; and on a GPU, or on the stand-in for its driver, whole runs.
//!
//! The second half runs with `scripts/standin.sh cargo test --test cli_cuda`. Some of it asks the stand-in for little memory or for a
//! device that is lost: a real driver knows no such settings, and these tests say that they are skipped.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use assert_cmd::cargo::cargo_bin;
use prefgraph_nn::cuda;

/// The command in the root of the repository, with settings of the stand-in.
fn command(settings: &[(&str, &str)], args: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1").args(args);
    command.envs(settings.iter().copied());
    command
}

/// Run it: its exit code, and what it said.
fn graph_run(settings: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    ended(command(settings, args).output().unwrap())
}

fn ended(output: Output) -> (i32, String) {
    let said = [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code().unwrap_or(-1), said.concat())
}

/// Whether there is a GPU; without one the test is skipped, and says so.
fn there_is_a_gpu() -> bool {
    match cuda::is_there() {
        Ok(()) => true,
        Err(why) => {
            // Straight to the stream: the test harness swallows what `eprintln` writes in a test that passes.
            std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
            false
        }
    }
}

/// Whether the GPU is the stand-in, which can be told to misbehave.
fn there_is_the_standin() -> bool {
    there_is_a_gpu() && cuda::devices().unwrap().iter().any(|gpu| gpu.name.contains("stand-in"))
}

/// A small graph of preference training, with policy and reference.
struct Small {
    folder: tempfile::TempDir,
    graph: PathBuf,
}

impl Small {
    fn new() -> Self {
        Self::of("diffusion_dpo")
    }

    /// A shipped recipe without its held-out pairs.
    fn of(recipe: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("small.ron");
        let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs").join(recipe).with_extension("ron");
        let text = format!("Graph(extends: {parent:?}, name: \"small\", remove: [\"held_out*\"])");
        fs::write(&graph, text).unwrap();
        Self { folder, graph }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Run it with these arguments, in pictures of 64 pixels.
    fn run(&self, settings: &[(&str, &str)], out: &str, more: &[&str]) -> (i32, String) {
        ended(self.command(settings, out, more).output().unwrap())
    }

    fn command(&self, settings: &[(&str, &str)], out: &str, more: &[&str]) -> Command {
        let out = self.out(out).display().to_string();
        let graph = self.graph.display().to_string();
        let mut args = vec![graph.as_str(), "--out", out.as_str()];
        for set in [
            "pairs.batch=1",
            "pairs.height=64",
            "pairs.width=64",
            "pairs.reference_height=32",
            "pairs.reference_width=32",
            "update.warmup=0",
            "run.checkpoint_every=1",
        ] {
            args.extend(["--set", set]);
        }
        args.extend(more);
        command(settings, &args)
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.out(out).join("adapter.safetensors")).unwrap()
    }

    /// The losses of all steps.
    fn losses(&self, out: &str) -> Vec<f64> {
        self.metric(out, "loss")
    }

    /// A metric of all steps.
    fn metric(&self, out: &str, name: &str) -> Vec<f64> {
        let text = fs::read_to_string(self.out(out).join("metrics.jsonl")).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.filter_map(|row| row[name].as_f64()).collect()
    }
}

#[test]
fn without_a_driver_a_gpu_is_refused_and_auto_takes_the_processor() {
    if cuda::is_there().is_ok() {
        return;
    }
    let small = Small::new();
    let (code, said) = small.run(&[], "gpu", &["--device", "cuda:0", "--steps", "1"]);
    assert!(code == 1 && said.contains("no NVIDIA driver") && said.contains("--device cpu"), "{said}");
    assert!(!small.out("gpu").exists(), "a run that is refused leaves nothing");
    let (code, said) = small.run(&[], "auto", &["--device", "auto", "--steps", "1"]);
    assert!(code == 0 && said.contains("networks run on the processor"), "{said}");
    let (code, said) = graph_run(&[], &["devices"]);
    assert!(code == 0 && said.contains("cpu") && said.contains("no NVIDIA driver"), "{said}");
}

#[test]
fn a_run_on_a_gpu_follows_the_processors_and_resumes_where_it_was() {
    if !there_is_a_gpu() {
        return;
    }
    let small = Small::new();
    let good = |(code, said): (i32, String)| assert!(code == 0, "{said}");
    good(small.run(&[], "cpu", &["--steps", "3"]));
    let (code, said) = small.run(&[], "gpu", &["--steps", "3", "--device", "cuda:0"]);
    assert!(code == 0 && said.contains("networks run on cuda:0"), "{said}");
    let (cpu, gpu) = (small.losses("cpu"), small.losses("gpu"));
    assert_eq!(cpu.len(), 3);
    for (c, g) in cpu.iter().zip(&gpu) {
        assert!((c - g).abs() < 1e-3 * c.abs(), "{cpu:?} {gpu:?}");
    }
    // The same bits, whatever the lanes and however far data run ahead.
    good(small.run(
        &[],
        "lanes",
        &["--steps", "3", "--device", "cuda:0", "--lanes", "4", "--set", "run.ahead=2"],
    ));
    good(small.run(
        &[],
        "lane",
        &["--steps", "3", "--device", "cuda:0", "--lanes", "1", "--set", "run.ahead=0"],
    ));
    assert_eq!(small.adapter("gpu"), small.adapter("lanes"));
    assert_eq!(small.adapter("gpu"), small.adapter("lane"));
    // A run that continues does so on its device, to the bit; on another one it has to be accepted.
    let constant = ["--set", "update.schedule=constant"];
    good(small.run(&[], "whole", &[&constant[..], &["--steps", "3", "--device", "cuda:0"]].concat()));
    good(small.run(&[], "parts", &[&constant[..], &["--steps", "2", "--device", "cuda:0"]].concat()));
    let elsewhere = [&constant[..], &["--steps", "3", "--resume", "--device", "cpu"]].concat();
    let (code, said) = small.run(&[], "parts", &elsewhere);
    assert!(code == 1 && said.contains("device") && said.contains("--accept-changes"), "{said}");
    good(small.run(&[], "parts", &[&constant[..], &["--steps", "3", "--resume"]].concat()));
    assert_eq!(small.adapter("whole"), small.adapter("parts"));
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_those_that_are() {
    if !there_is_a_gpu() {
        return;
    }
    let small = Small::new();
    let (code, said) = small.run(&[], "gpu", &["--device", "cuda:77", "--steps", "1"]);
    assert!(code == 1 && said.contains("cuda:77: there is no such GPU") && said.contains("cuda:0"), "{said}");
    assert!(!small.out("gpu").exists());
    let (code, said) = graph_run(&[], &["devices"]);
    assert!(code == 0 && said.contains("cuda:0"), "{said}");
}

#[test]
fn a_driver_that_is_too_old_or_shows_nothing_is_named() {
    if !there_is_the_standin() {
        return;
    }
    let small = Small::new();
    let args = ["--device", "cuda:0", "--steps", "1"];
    let (code, said) = small.run(&[("STANDIN_DRIVER", "11040")], "old", &args);
    assert!(code == 1 && said.contains("CUDA 11.4") && said.contains("update the driver"), "{said}");
    let (code, said) = small.run(&[("STANDIN_DRIVER", "12020")], "older", &args);
    assert!(code == 1 && said.contains("CUDA 12.2") && said.contains("nvidia-cuda-nvrtc-cu12"), "{said}");
    let (code, said) = small.run(&[("STANDIN_DEVICES", "0")], "none", &args);
    assert!(code == 1 && said.contains("the driver shows no GPU"), "{said}");
    let (code, said) = small.run(&[("STANDIN_CAPABILITY", "75")], "turing", &args);
    assert!(code == 1 && said.contains("compute capability 7.5"), "{said}");
}

#[test]
fn a_full_or_lost_gpu_ends_the_run_with_a_sentence_and_the_last_checkpoint_can_be_resumed() {
    if !there_is_the_standin() {
        return;
    }
    let small = Small::new();
    // The plan knows the GPU's memory, and not what other processes hold of it.
    let held = [("STANDIN_MEMORY", "8000000000"), ("STANDIN_HELD", "7960000000")];
    let (code, said) = small.run(&held, "full", &["--device", "cuda:0", "--steps", "1"]);
    assert!(code == 1 && said.contains("cuda:0: it has no room") && said.contains("checkpointing"), "{said}");
    let gpu = ["--device", "cuda:0", "--steps", "5", "--set", "update.schedule=constant"];
    let (code, said) = small.run(&[("STANDIN_LOSE_AFTER", "2000")], "lost", &gpu);
    assert!(code == 1 && said.contains("cuda:0: it failed to ") && said.contains("--resume"), "{said}");
    let (code, said) = small.run(&[], "lost", &[&gpu[..], &["--resume"]].concat());
    assert!(code == 0 && said.contains("complete: 5 steps"), "{said}");
    let (code, said) = small.run(&[], "whole", &gpu);
    assert!(code == 0, "{said}");
    assert_eq!(small.adapter("lost"), small.adapter("whole"), "what was lost was done again");
}

#[test]
fn whatever_order_the_work_runs_in_a_run_has_the_same_bits() {
    if !there_is_the_standin() {
        return;
    }
    let small = Small::new();
    let args = ["--device", "cuda:0", "--steps", "2", "--lanes", "3"];
    let good = |order: &str, out: &str| {
        let (code, said) = small.run(&[("STANDIN_ORDER", order)], out, &args);
        assert!(code == 0, "{order}: {said}");
    };
    good("eager", "eager");
    for order in ["latest", "random:1", "random:2", "random:3"] {
        good(order, "other");
        assert!(small.adapter("eager") == small.adapter("other"), "{order}");
        fs::remove_dir_all(small.out("other")).unwrap();
    }
}

#[test]
fn a_run_in_bf16_begins_as_the_processors_in_bf16() {
    if !there_is_a_gpu() {
        return;
    }
    let small = Small::new();
    let bf16 = ["--steps", "3", "--set", "backbone.compute=bf16"];
    let first = |out: &str, device: &[&str]| {
        let (code, said) = small.run(&[], out, &[&bf16[..], device].concat());
        assert!(code == 0, "{said}");
        assert!(small.losses(out).iter().all(|loss| loss.is_finite()));
        (small.losses(out)[0], small.metric(out, "grad_norm")[0])
    };
    let (cpu, gpu) = (first("cpu", &[]), first("gpu", &["--device", "cuda:0"]));
    // The first loss is that of equal networks, in any precision; the strength of the loss makes later ones those of roundings.
    assert_eq!(cpu.0, gpu.0);
    assert!((cpu.1 - gpu.1).abs() < 1e-2 * cpu.1, "{cpu:?} {gpu:?}");
}

#[test]
fn gradients_that_wait_for_more_are_kept_by_a_checkpoint_on_a_gpu() {
    if !there_is_a_gpu() {
        return;
    }
    let small = Small::new();
    let gpu = ["--device", "cuda:0", "--set", "update.accumulate=2", "--set", "update.schedule=constant"];
    let good = |out: &str, more: &[&str]| {
        let (code, said) = small.run(&[], out, &[&gpu[..], more].concat());
        assert!(code == 0, "{said}");
    };
    good("whole", &["--steps", "4"]);
    // After three steps one gradient waits for the second of its update.
    good("parts", &["--steps", "3"]);
    good("parts", &["--steps", "4", "--resume"]);
    assert_eq!(small.adapter("whole"), small.adapter("parts"));
}

#[test]
fn every_access_of_a_focusdpo_step_is_in_bounds_written_before_it_is_read_and_in_order() {
    if !there_is_the_standin() {
        return;
    }
    let small = Small::of("focusdpo");
    let gpu = ["--device", "cuda:0", "--steps", "2", "--lanes", "3"];
    let bf16 = ["--set", "backbone.compute=bf16", "--set", "backbone.checkpointing=blocks"];
    for (out, more) in [("f32", &[][..]), ("bf16", &bf16)] {
        let (code, said) = small.run(&[("STANDIN_CHECK", "1")], out, &[&gpu[..], more].concat());
        assert!(code == 0 && said.contains("complete: 2 steps"), "{said}");
    }
}

#[test]
fn a_plan_for_a_gpu_that_is_not_here_shows_its_memory_and_no_time() {
    let small = Small::new();
    let graph = small.graph.display().to_string();
    let plan = |more: &[&str]| graph_run(&[], &[&["plan", &graph, "--device", "cuda:71"], more].concat());
    let (code, said) = plan(&[]);
    assert!(code == 0 && said.contains("memory of cuda:71: peak"), "{said}");
    assert!(
        said.contains("state it with --gpu-memory") && said.contains("the speed of cuda:71 is unknown"),
        "{said}"
    );
    let (code, said) = plan(&["--json", "--gpu-memory", "24GB"]);
    assert!(code == 0, "{said}");
    let plan_of = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let json = plan_of(&said);
    let places = json["places"].as_array().unwrap();
    assert_eq!([&places[0]["place"], &places[1]["place"]], ["cpu", "cuda:71"]);
    assert_eq!(places[1]["there"], 24_000_000_000u64);
    assert!(places[1]["resident"].as_u64() > Some(1_000_000), "{}", places[1]);
    assert_eq!(
        places[0]["resident"].as_u64(),
        Some(0),
        "the network's weights are on the GPU: {}",
        places[0]
    );
    assert!(json["seconds"].is_null() && json["tasks"][0]["seconds"].is_null());
    let policy = json["nodes"].as_array().unwrap().iter().find(|n| n["id"] == "policy").unwrap();
    assert_eq!(policy["place"], "cuda:71");

    let (code, said) = plan(&["--gpu-memory", "600MB"]);
    assert!(code == 1 && said.contains("of cuda:71's memory") && said.contains("what needs less:"), "{said}");
    let (code, said) = plan(&["--gpu-memory", "24"]);
    assert!(code == 2 && said.contains("24GB or 22.5GiB"), "{said}");
    let (code, said) = graph_run(&[], &["plan", &graph, "--gpu-memory", "24GB"]);
    assert!(code == 1 && said.contains("add --device cuda:0"), "{said}");
}

#[test]
fn a_graph_that_is_too_large_for_its_gpu_is_refused_before_it_is_opened() {
    if !there_is_the_standin() {
        return;
    }
    let small = Small::new();
    let (code, said) =
        small.run(&[("STANDIN_MEMORY", "560000000")], "large", &["--device", "cuda:0", "--steps", "1"]);
    assert!(code == 1 && said.contains("of cuda:0's memory") && said.contains("what needs less:"), "{said}");
    assert!(!small.out("large").exists(), "a run that is refused leaves nothing");
}

/// Bytes of the GPU that a run has said it needs, without what the driver holds: that is no allocation on the stand-in.
fn planned(said: &str) -> f64 {
    let line = said.lines().find(|line| line.contains("of cuda:0 ")).expect("the plan's peak");
    let after = line.split("of cuda:0 ").nth(1).unwrap();
    let peak: f64 = after.split_whitespace().next().unwrap().parse().unwrap();
    assert!(after.contains("MiB"), "{line}");
    (peak - 512.0) * 1024.0 * 1024.0
}

/// What others hold of 8 GB where so much is left.
fn held_beside(left: f64) -> String {
    (8_000_000_000 - left as u64).to_string()
}

#[test]
fn of_two_runs_that_do_not_fit_on_a_gpu_together_one_ends_with_a_sentence_and_is_resumed() {
    if !there_is_the_standin() {
        return;
    }
    let small = Small::new();
    let args = ["--device", "cuda:0", "--steps", "8"];
    let (code, said) = small.run(&[], "alone", &args);
    assert!(code == 0, "{said}");
    let (held, file) = (held_beside(1.1 * planned(&said)), small.out("shared").display().to_string());
    let shared =
        [("STANDIN_MEMORY", "8000000000"), ("STANDIN_HELD", held.as_str()), ("STANDIN_SHARED", &file)];
    let at_once = |outs: [&'static str; 2]| {
        let runs = outs.map(|out| {
            let mut command = small.command(&shared, out, &args);
            (out, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        });
        runs.map(|(out, run)| (out, ended(run.wait_with_output().unwrap())))
    };
    // On a busy machine one run may be over before the other has begun.
    let tries = [["first", "second"], ["third", "fourth"], ["fifth", "sixth"]].into_iter().map(at_once);
    let failed = |runs: &[(&str, (i32, String)); 2]| runs.iter().any(|(_, (code, _))| *code != 0);
    let runs = tries.into_iter().find(failed).expect("two runs at once never ran out of room");
    for (out, (code, said)) in runs {
        if code != 0 {
            assert!(code == 1 && said.contains("it has no room"), "{out}: {said}");
            assert!(said.contains("another process may hold memory"), "{out}: {said}");
            // What ended before its first step begins anew; else the last checkpoint goes on.
            let resumed = small.run(&shared, out, &[&args[..], &["--resume"]].concat());
            assert_eq!(resumed.0, 0, "{out}: {}", resumed.1);
        }
        assert_eq!(small.adapter(out), small.adapter("alone"), "{out}: {said}");
    }
}

#[test]
fn a_run_needs_what_its_plan_says() {
    if !there_is_the_standin() {
        return;
    }
    // With gradients that wait for more, and without.
    for accumulate in [1, 2] {
        let small = Small::new();
        let accumulate = format!("update.accumulate={accumulate}");
        let args = [
            &["--device", "cuda:0", "--steps", "2", "--lanes", "1"][..],
            &["--set", "run.ahead=0", "--set", &accumulate],
        ]
        .concat();
        let (code, said) = small.run(&[], "free", &args);
        assert!(code == 0, "{said}");
        let need = planned(&said);
        let with = |share: f64, out: &str| {
            let held = held_beside(share * need);
            small.run(&[("STANDIN_MEMORY", "8000000000"), ("STANDIN_HELD", &held)], out, &args)
        };
        let (code, said) = with(1.0, "enough");
        assert!(code == 0, "{accumulate}: {said}");
        let (code, said) = with(0.9, "little");
        assert!(code == 1 && said.contains("it has no room"), "{accumulate}: {said}");
    }
}

#[test]
fn a_plan_on_a_machine_with_the_gpu_measures_it_and_has_times() {
    if !there_is_a_gpu() {
        return;
    }
    let small = Small::new();
    let graph = small.graph.display().to_string();
    let cache = small.out("cache").display().to_string();
    let plan = |more: &[&str]| {
        let args = [&["plan", &graph, "--device", "cuda:0", "--calibrate"], more].concat();
        graph_run(&[("XDG_CACHE_HOME", &cache)], &args)
    };
    let (code, said) = plan(&[]);
    assert!(
        code == 0 && said.contains("a step takes at least") && said.contains("and on cuda:0 at"),
        "{said}"
    );
    assert!(!said.contains("no times") && !said.contains("no forecast"), "{said}");
    let (code, said) = plan(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    let rates = &json["forecast"]["gpu_rates"];
    assert!(
        code == 0 && rates["flops"].as_f64() > Some(1e6) && rates["bytes"].as_f64() > Some(1e6),
        "{rates}"
    );
    assert!(
        json["places"][1]["there"].as_u64() > Some(1 << 30) && json["seconds"].as_f64() > Some(0.0),
        "{said}"
    );
}
