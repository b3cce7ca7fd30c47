//! Checks the settings of a graph against those that a case was computed with.

use serde_json::{Map, Value, json};

use super::ReplaySettings;

/// Does the case say what the graph states?
///
/// # Errors
/// Naming the first key that differs, both values, and the `--set` that would make them agree.
pub(super) fn check(settings: &ReplaySettings, case: &Map<String, Value>) -> Result<(), String> {
    let s = settings;
    // Two keys of a case are sentences: what matters is how they begin, or what they name.
    let text = |key: &str| case.get(key).and_then(Value::as_str).unwrap_or_default();
    let entropy = text("entropy").split(' ').next().unwrap_or_default().to_owned();
    let hooks = match (text("hooks").contains("double"), text("hooks").contains("single")) {
        (true, true) => "all",
        _ if text("hooks").starts_with("cross-attention queries") => "all",
        (true, false) => "double",
        (false, true) => "single",
        (false, false) => "off",
    };
    let plain = |key: &str| case.get(key).cloned().unwrap_or(Value::Null);
    let stated = [
        ("reduction", json!(s.reduction), plain("reduction")),
        ("entropy", json!(s.entropy), json!(entropy)),
        ("hooks", json!(s.hooks), json!(hooks)),
        ("beta", json!(s.beta), plain("beta")),
        ("lr", json!(s.lr), plain("lr")),
        ("betas", json!(s.betas), plain("betas")),
        ("eps", json!(s.eps), plain("eps")),
        ("weight_decay", json!(s.weight_decay), plain("weight_decay")),
        ("tau", json!(s.tau), plain("tau")),
        ("gamma", json!(s.gamma), plain("gamma")),
    ];
    for (key, graph, case) in stated {
        if graph.is_null() || same(&graph, &case) {
            continue;
        }
        let (graph, case) = (show(&graph), show(&case));
        return Err(format!(
            "the case was computed with {key} {case}, the graph states {graph}: use `--set {}={case}`",
            usual_place(key)
        ));
    }
    Ok(())
}

/// Where the shipped graphs keep what a key stands for.
fn usual_place(key: &str) -> String {
    let node = match key {
        "reduction" | "beta" => "loss",
        "entropy" => return "detail.kind".into(),
        "hooks" => "policy",
        "tau" | "gamma" => "fuse",
        _ => "update",
    };
    format!("{node}.{key}")
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ if a == b => true,
        // 4 and 4.0 are one number, and a reader of JSON may be off by the last bit.
        _ => a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() <= f64::EPSILON * b.abs()),
    }
}

/// As RON has it: enums bare, pairs of numbers in parentheses.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("({})", items.iter().map(show).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
