//! PatchDPO's recipe on a GPU, or on the stand-in for its driver (`scripts/standin.sh`); without one it is skipped, and says so.

use std::{fs, io::Write, path::Path};

use prefgraph_nn::{cuda, files::TensorFiles};

use crate::published::{Published, train};

/// A metric of all steps.
fn metric(run: &Path, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.filter_map(|row| row[name].as_f64()).collect()
}

/// The change of the trained tensors of an IP-Adapter.
fn change(from: &Path, to: &Path) -> Vec<f64> {
    let (from, to) = (TensorFiles::open(from).unwrap(), TensorFiles::open(to).unwrap());
    let trained = from.names().filter(|name| name.starts_with("ip_adapter."));
    let of = |name: &str| {
        let (before, after) = (from.read(name).unwrap(), to.read(name).unwrap());
        before.into_iter().zip(after).map(|(b, a)| f64::from(a) - f64::from(b)).collect::<Vec<_>>()
    };
    trained.flat_map(of).collect()
}

#[test]
fn keys_whole_and_factors_of_convolutions_are_trained_by_a_run_on_a_gpu_as_on_the_processor() {
    if let Err(why) = cuda::is_there() {
        // Straight to the stream: the test harness swallows what `eprintln` writes in a test that passes.
        std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
        return;
    }
    let published = Published::new();
    let run = |out: &str, more: &[&str]| {
        let out = published.path(out);
        let trained = ["--set", "lora.targets=[\"*.conv1\", \"conv_in\", \"*.upsamplers.0.conv\"]"];
        let rest = ["--steps", "2", "--set", "update.lr=1e-3", "--set", "strip.every=1"];
        let (good, said) = train(
            &published,
            "graphs/sdxl/patchdpo_ip_adapter.ron",
            true,
            &out,
            &[&trained[..], &rest, more].concat(),
        );
        assert!(good, "{said}");
        out
    };
    let (cpu, gpu) = (run("cpu", &[]), run("gpu", &["--device", "cuda:0"]));
    for name in ["loss", "grad_norm"] {
        let (cpu, gpu) = (metric(&cpu, name), metric(&gpu, name));
        assert_eq!((cpu.len(), gpu.len()), (2, 2), "{name}");
        for (cpu, gpu) in cpu.iter().zip(&gpu) {
            assert!((cpu - gpu).abs() < 1e-3 * cpu.abs(), "{name}: {cpu} and {gpu}");
        }
    }
    let changed = |run: &Path| {
        // Beside the IP-Adapter lie the factors, which it has no place for.
        assert!(run.join("adapter.safetensors").is_file() && run.join("preview").is_dir());
        change(&published.path("ip-adapter.safetensors"), &run.join("adapter.ip_adapter.safetensors"))
    };
    let (cpu, gpu) = (changed(&cpu), changed(&gpu));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut cpu.iter().zip(&gpu).map(|(cpu, gpu)| cpu - gpu)) / norm(&mut cpu.iter().copied());
    // AdamW's first steps are as long as the rate, whatever the gradient: where that is faint, its rounding decides.
    assert!(off < 5e-2, "{off}");

    // In bf16 a GPU stores activations so, and factors stay in f32.
    run("bf16", &["--device", "cuda:0", "--set", "backbone.compute=bf16"]);
}
