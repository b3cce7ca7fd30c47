//! Training runs of the recipes against runs of an independent implementation in f64.
//!
//! Cases are the folders of `PREFGRAPH_FIXTURES`, or of `tests/fixtures`, which holds the smaller part of them.
//! What a folder does not hold is skipped by name.

#[path = "../nn/tests/golden/faint.rs"]
mod faint;

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::{Adapter, Cpu, files::TensorFiles};
use prefgraph_ops::ports::{Effect, Metric, Metrics};

use faint::{Faint, relative};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folders() -> Vec<PathBuf> {
    let at = env::var_os("PREFGRAPH_FIXTURES").map_or_else(|| root().join("tests/fixtures"), PathBuf::from);
    let entries = fs::read_dir(&at).unwrap_or_else(|e| panic!("PREFGRAPH_FIXTURES: {}: {e}", at.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a readable entry").path()).collect();
    found.retain(|f| f.is_dir());
    found.sort();
    found
}

/// The golden values of one training run.
struct Golden(TensorFiles);

impl Golden {
    fn values(&self, name: &str) -> Vec<f32> {
        let shape = &self.0.info(name).unwrap_or_else(|| panic!("the case has no `{name}`")).shape;
        self.0.read_finite(name, shape).unwrap_or_else(|e| panic!("{e}"))
    }

    /// All values whose names start with `prefix`, in the order of `modules`.
    fn adapter(&self, prefix: &str, modules: &[String]) -> Vec<f64> {
        let mut all = Vec::new();
        for module in modules {
            for factor in ["lora_A", "lora_B"] {
                let values = self.values(&format!("{prefix}.{module}.{factor}.weight"));
                all.extend(values.into_iter().map(f64::from));
            }
        }
        all
    }
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// How near a run has to be.
#[derive(Clone, Copy)]
struct Bars {
    gradient: f64,
    /// Of the adapter's change, [faint](Faint) values aside.
    change: f64,
}

const PREFERENCE: Bars = Bars { gradient: 1e-3, change: 5e-3 };

/// Tell the reader, past the harness, which hides what passing tests print.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("an open stderr");
}

/// Train on every folder that holds `train_{run}` and hold each step against it.
fn follows(run: &str, graph: &str, sets: &[&str], bars: Bars) {
    for folder in folders() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = folder.join(format!("train_{run}.safetensors"));
        let of_a_u_net = name.starts_with("sdxl_");
        if !of_a_u_net && !name.starts_with("flux_") {
            say(&format!("skipped: {name}: is no case of a denoiser"));
        } else if !file.exists() {
            say(&format!("skipped: {name}: has no train_{run}.safetensors"));
        } else {
            say(&format!("{name}: train_{run}"));
            let golden = Golden(TensorFiles::open(&file).expect("a golden file"));
            let graph = if of_a_u_net { format!("sdxl_{graph}") } else { graph.to_owned() };
            trains_as(&folder, &golden, &graph, sets, bars);
        }
    }
}

fn trains_as(folder: &Path, golden: &Golden, graph: &str, sets: &[&str], bars: Bars) {
    let mut sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
    sets.push(format!("case.path={}", folder.display()));
    let loaded = spec::load(&root().join("graphs/replay").join(graph), &sets, &Registry::standard())
        .unwrap_or_else(|e| panic!("{e:?}"));
    let graph = Arc::new(loaded.graph);
    let plan = Plan::new(&graph, &PlanOptions::default()).expect("a plan");
    let cpu = Cpu::new(2).expect("two threads");
    let mut runner = Runner::new(graph.clone(), plan, RunOptions::new(0, cpu)).expect("a runner");
    let lora = graph.wire::<Adapter>("lora").expect("the adapter");
    runner.keep(lora.endpoint()).expect("kept");
    runner.keep(lora.cotangent().endpoint()).expect("kept");

    let losses = golden.values("log.loss");
    let margins = golden.values("log.margin");
    let coverages = golden.values("log.coverage");
    let batch = margins.len() / losses.len();
    let mut modules = Vec::new();
    let mut start = Vec::new();
    let mut faint = Faint::default();
    for (step, &loss) in losses.iter().enumerate() {
        let out = runner.step().unwrap_or_else(|e| panic!("{e}"));
        if step == 0 {
            let adapter = out.value(lora).expect("kept");
            modules = adapter.layout.modules.iter().map(|m| m.name.clone()).collect();
            start = doubles(&adapter.values.host().unwrap());
            assert_eq!(start, golden.adapter("init", &modules), "the run starts from the case's adapter");
        }
        let gradient = out.cotangent(lora.cotangent()).expect("a gradient");
        if step == 0 {
            let off =
                relative(&doubles(&gradient.values.host().unwrap()), &golden.adapter("grad0", &modules));
            say(&format!("    the first gradient is off by {off:.1e}"));
            assert!(off <= bars.gradient, "the first gradient is off by {off:e}");
        }
        faint.see(&gradient, number(&out.effects, "lr"));
        let found = out.loss.expect("a loss");
        let floor = f64::from(loss.abs()).max(1e-2);
        let off = f64::from((found - loss).abs());
        assert!(off <= 1e-3 * floor, "step {step}: the loss is {found}, it should be {loss}");
        let logits = per_sample(&out.effects, "logit");
        for (i, logit) in logits.iter().enumerate() {
            let golden = f64::from(margins[step * batch + i]);
            assert!((logit - golden).abs() <= 5e-3, "step {step}: logit {i} is {logit}, should be {golden}");
        }
        // Where the mask has the cells of the case, it has as many of them.
        for (i, found) in per_sample(&out.effects, "coverage").iter().enumerate() {
            let golden = f64::from(coverages[step * batch + i]);
            assert!(
                (found - golden).abs() <= 1e-6,
                "step {step}: coverage {i} is {found}, should be {golden}"
            );
        }
    }
    let cells = runner.cells().expect("cells");
    let mut end = Vec::new();
    for module in &modules {
        for factor in ["lora_A", "lora_B"] {
            let tensor = cells["lora"].tensor(&format!("{module}.{factor}.weight")).expect("a factor");
            end.extend(doubles(&tensor.values));
        }
    }
    let change = |end: &[f64]| end.iter().zip(&start).map(|(a, b)| a - b).collect::<Vec<f64>>();
    let off = faint.compare(&change(&end), &change(&golden.adapter("final", &modules)), bars.change);
    say(&format!("    the adapter's change is off by {off:.1e}"));
}

fn number(effects: &[(String, Effect)], name: &str) -> f64 {
    let mut records = effects.iter().filter_map(|(_, e)| match e {
        Effect::Record(metrics) => metrics.get(name)?.mean(),
        _ => None,
    });
    records.next_back().unwrap_or_else(|| panic!("the run logs no `{name}`"))
}

fn per_sample(effects: &[(String, Effect)], name: &str) -> Vec<f64> {
    let record = effects.iter().find_map(|(_, e)| match e {
        Effect::Record(metrics) => Some(metrics),
        _ => None,
    });
    match record.and_then(|m: &Metrics| m.get(name)) {
        Some(Metric::PerSample(values)) => values.clone(),
        _ => Vec::new(),
    }
}

#[test]
fn supervised_fine_tuning_follows_the_golden_run() {
    follows("sft", "sft.ron", &[], Bars { gradient: 1e-5, change: 1e-4 });
}

#[test]
fn diffusion_dpo_follows_the_golden_run() {
    follows("diffusion_dpo", "diffusion_dpo.ron", &[], PREFERENCE);
}

#[test]
fn focusdpo_follows_the_golden_run() {
    follows("focusdpo", "focusdpo.ron", &[], PREFERENCE);
}

#[test]
fn focusdpo_in_both_branches_of_the_fusion_follows_the_golden_run() {
    follows("focusdpo_tau_mid", "focusdpo.ron", &["fuse.tau=@case.tau_mid", "case.tau=None"], PREFERENCE);
}

#[test]
fn focusdpo_with_unconstrained_detail_follows_the_golden_run() {
    let sets = ["fuse.tau=@case.tau_mid", "case.tau=None", "fuse.constrain=false"];
    follows("focusdpo_unconstrained_tau_mid", "focusdpo.ron", &sets, PREFERENCE);
}

#[test]
fn focusdpo_on_the_prior_alone_follows_the_golden_run() {
    follows("focusdpo_prior_only", "focusdpo.ron", &["fuse.mode=prior"], PREFERENCE);
}

#[test]
fn focusdpo_on_detail_alone_follows_the_golden_run() {
    follows("focusdpo_detail_only", "focusdpo.ron", &["fuse.mode=detail"], PREFERENCE);
}

#[test]
fn focusdpo_on_detail_inside_the_prior_follows_the_golden_run() {
    follows("focusdpo_detail_in_prior", "focusdpo.ron", &["fuse.mode=detail_in_prior"], PREFERENCE);
}

#[test]
fn focusdpo_reduced_over_the_mask_follows_the_golden_run() {
    let sets = ["loss.reduction=mask_mean", "case.reduction=None"];
    follows("focusdpo_mask_mean", "focusdpo.ron", &sets, Bars { change: 2e-2, ..PREFERENCE });
}

#[test]
fn patchdpo_follows_the_golden_run() {
    follows("patchdpo", "patchdpo.ron", &[], Bars { gradient: 1e-5, change: 1e-4 });
}
