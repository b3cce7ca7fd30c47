//! Every metric that the recipes record is documented, and everything that is documented is recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use prefgraph::{Plan, PlanOptions, Registry, RunOptions, Runner, spec};
use prefgraph_nn::Cpu;
use prefgraph_ops::{
    operators::measure::{pooled, summary},
    ports::{Effect, MetricKind, Metrics},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a graph records in one step on the demo; its held-out pairs are measured in it.
fn recorded(graph: &str, more: &[&str]) -> Metrics {
    let sets: Vec<String> =
        ["run.steps=1", "pairs.batch=1"].iter().chain(more).map(|set| (*set).to_owned()).collect();
    let path = root().join("graphs").join(graph);
    let loaded = spec::load(&path, &sets, &Registry::standard()).unwrap_or_else(|e| panic!("{e:?}"));
    let graph = Arc::new(loaded.graph);
    let plan = Plan::new(&graph, &PlanOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = RunOptions { last: Some(0), ..RunOptions::new(0, Cpu::new(2).unwrap()) };
    let output = Runner::new(graph, plan, options).unwrap().step().unwrap_or_else(|e| panic!("{e}"));
    let mut recorded = Metrics::default();
    for (_, effect) in output.effects {
        match effect {
            Effect::Record(metrics) => recorded.0.extend(metrics.0),
            // As a run sums up a measurement that takes one step.
            Effect::Measure(part) => {
                let pairs = pooled([(0, &*part.pairs)], 1);
                let sums = summary(part.process, part.levels, &pairs);
                let named = sums.0.into_iter().map(|(name, sum)| (format!("{}.{name}", part.prefix), sum));
                recorded.0.extend(named);
            }
            _ => {}
        }
    }
    recorded
}

/// All documented metrics by name. Operators that share a name must mean the same kind of thing.
fn documented() -> BTreeMap<&'static str, MetricKind> {
    let mut all = BTreeMap::new();
    for entry in Registry::standard().iter() {
        for metric in entry.metrics {
            let other = all.insert(metric.name, metric.kind);
            assert!(other.is_none_or(|kind| kind == metric.kind), "`{}` of `{}`", metric.name, entry.name);
        }
    }
    all
}

#[test]
fn what_the_recipes_record_is_what_is_documented() {
    let documented = documented();
    let mut seen = BTreeSet::new();
    let plain: &[&str] = &[];
    for (graph, more) in [
        ("sft.ron", &["update.accumulate=2"][..]),
        ("diffusion_dpo.ron", plain),
        ("focusdpo.ron", plain),
        ("patchdpo.ron", plain),
    ] {
        let metrics = recorded(graph, more);
        assert!(metrics.get("held_out.w_diff").is_some(), "{graph} measures no held-out pairs");
        for (name, metric) in &metrics.0 {
            let in_tensorboard = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            assert!(name.chars().all(in_tensorboard), "{graph}: TensorBoard would rename `{name}`");
            let name = name.strip_prefix("held_out.").unwrap_or(name);
            // The sums of a level of noise are those of all pairs over fewer of them.
            let of_level = name.strip_prefix("sigma_").and_then(|rest| rest.rsplit_once('.'));
            let name = &of_level.map_or(name.to_owned(), |(_, figure)| format!("all.{figure}"));
            let Some((name, kind)) = documented.get_key_value(name.as_str()) else {
                panic!("{graph} records `{name}`, which no operator documents")
            };
            assert_eq!(metric.kind(), *kind, "{graph}: `{name}`");
            seen.insert(*name);
        }
    }
    let never: Vec<_> = documented.keys().filter(|name| !seen.contains(*name)).collect();
    // These come with SDXL, whose recipes need published files (`tests/recipes_sdxl`).
    assert_eq!(never, [&"timestep", &"without_pictures", &"without_text"], "documented, but never recorded");
}

#[test]
fn the_page_of_metrics_says_what_the_operators_say() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for entry in Registry::standard().iter().filter(|e| !e.metrics.is_empty()) {
        let rows = entry.metrics.iter().map(|m| {
            let doc = m.doc.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("| `{}` | {} | {doc} |\n", m.name, m.kind.describe())
        });
        let section =
            format!("## `{}`\n\n| metric | | |\n|---|---|---|\n{}", entry.name, rows.collect::<String>());
        assert!(page.contains(&section), "docs/metrics.md must hold:\n\n{section}");
    }
    // What the command itself adds to every line.
    for name in ["step", "seconds", "data_seconds", "update_loss"] {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}
