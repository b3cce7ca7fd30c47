//! What `graph-run` says of memory, time and threads before a run, and whether it is so.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

fn graph_run() -> Command {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1").env_remove("RAYON_NUM_THREADS");
    command
}

/// Standard output and standard error of a command that must go well.
fn said(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    (out, err)
}

/// The amounts of memory in a text, in MiB.
fn mebibytes(text: &str) -> Vec<f64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.windows(2).filter(|w| w[1].starts_with("MiB")).filter_map(|w| w[0].parse().ok()).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn the_predicted_memory_is_about_what_the_process_takes() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = graph_run();
    run.args(["graphs/focusdpo.ron", "--steps", "4", "--threads", "2", "--out"]).arg(dir.path().join("run"));
    let (_, err) = said(&mut run);
    let predicted = err.lines().find(|line| line.contains("predicted peak memory")).unwrap();
    let predicted = *mebibytes(predicted).last().unwrap();
    let last = err.lines().rfind(|line| line.contains("/4 ")).unwrap();
    let seen = *mebibytes(last).first().unwrap();
    assert!((0.7..1.4).contains(&(predicted / seen)), "{predicted} MiB predicted, {seen} MiB seen");
}

#[test]
fn a_plan_forecasts_steps_and_run_by_rates_that_are_measured_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| {
        let mut command = graph_run();
        command.env("XDG_CACHE_HOME", dir.path()).args(["plan", "graphs/focusdpo_samples.ron"]);
        said(command.args(more)).0
    };
    let text = plan(&["--calibrate", "--steps", "100000"]);
    for part in [
        "a step takes about ",
        "100000 steps about ",
        "it ends on 2",
        " UTC",
        "GFLOP/s in f32",
        "at the measured rates",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains(" MB") && !text.contains(" kB"), "memory has one unit: {text}");
    let file = dir.path().join("prefgraph/rates.json");
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let rate = |value: &Value| value.as_f64().unwrap();
    assert!(rate(&kept[0]["flops"]) > 0.0 && rate(&kept[0]["flops_bf16"]) > 0.0, "{kept}");

    let forecast = |more: &[&str]| {
        let plan: Value = serde_json::from_str(&plan(more)).unwrap();
        (plan["forecast"].clone(), plan["flops"].as_f64().unwrap())
    };
    let (forecast, flops) = forecast(&["--calibrate", "--json"]);
    let step = rate(&forecast["step_seconds"]);
    assert!(step >= flops / rate(&forecast["rates"]["flops"]), "arithmetic alone takes longer: {forecast}");
    // Strips and held-out pairs are drawn and measured at some of the steps.
    assert!(rate(&forecast["run_seconds"]) > 200.0 * step, "{forecast}");

    // A debug build is measured only if asked.
    let text = plan(&[]);
    assert_eq!(text.contains("no forecast: debug builds"), cfg!(debug_assertions), "{text}");
}

#[test]
fn bf16_is_forecast_at_its_own_rate() {
    let dir = tempfile::tempdir().unwrap();
    let forecast = |compute: &str| {
        let mut command = graph_run();
        command.env("XDG_CACHE_HOME", dir.path()).args([
            "plan",
            "graphs/sft.ron",
            "--json",
            "--calibrate",
            "--set",
            compute,
        ]);
        let plan: Value = serde_json::from_str(&said(&mut command).0).unwrap();
        let tasks = plan["tasks"].as_array().unwrap();
        let policy = tasks.iter().find(|t| t["node"] == "policy" && t["direction"] == "backward").unwrap();
        let node = plan["nodes"].as_array().unwrap().iter().find(|n| n["id"] == "policy").unwrap();
        let flops = node["backward_flops"].as_f64().unwrap();
        (flops / policy["seconds"].as_f64().unwrap(), plan["forecast"]["rates"].clone())
    };
    for (compute, name) in [("backbone.compute=f32", "flops"), ("backbone.compute=bf16", "flops_bf16")] {
        let (rate, rates) = forecast(compute);
        let expected = rates[name].as_f64().unwrap();
        assert!((rate / expected - 1.0).abs() < 0.01, "{name}: {rate} and {expected}");
    }
}

#[test]
fn thread_numbers_beyond_all_use_are_capped_with_a_word() {
    let plan = |more: &[&str], environment: Option<&str>| {
        let mut command = graph_run();
        command.args(["plan", "graphs/replay/sft.ron"]).args(more);
        environment.iter().for_each(|n| _ = command.env("RAYON_NUM_THREADS", n));
        said(&mut command).0
    };
    let text = plan(&["--threads", "1000000"], None);
    assert!(text.contains("run: threads is 1000000, but only "), "{text}");
    let text = plan(&[], Some("1000000"));
    assert!(text.contains("run: RAYON_NUM_THREADS is 1000000, but only "), "{text}");
    let text = plan(&["--threads", "3"], Some("1000000"));
    assert!(!text.contains("are started"), "{text}");

    // What is said is what is done.
    let dir = tempfile::tempdir().unwrap();
    let mut run = graph_run();
    run.args(["graphs/replay/sft.ron", "--steps", "1", "--threads", "1000000", "--out"])
        .arg(dir.path().join("run"));
    let (_, err) = said(&mut run);
    assert!(
        err.contains("are started") && Path::new(&dir.path().join("run/adapter.safetensors")).exists(),
        "{err}"
    );
}

#[test]
fn of_a_gpu_that_is_not_here_a_plan_says_what_arithmetic_alone_would_take() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| {
        let mut command = graph_run();
        command.env("XDG_CACHE_HOME", dir.path()).args(["plan", "graphs/flux/diffusion_dpo.ron"]);
        command.args(["--without-files", "--device", "cuda:31", "--gpu-memory", "24GB", "--steps", "1000"]);
        said(command.args(more)).0
    };
    let flops: Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    let seconds = flops["flops"].as_f64().unwrap() / 1e14;
    assert!((1.0..60.0).contains(&seconds), "{seconds}");
    let text = plan(&["--calibrate"]);
    let told = format!("At 100 TFLOP/s a step would take at least {seconds:.2} s, and 1000 steps 1 h");
    assert!(text.contains(&told), "{told} in {text}");
}
