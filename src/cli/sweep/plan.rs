//! `graph-run plan --over`: what the variants of a sweep share, and what that saves.

use prefgraph_ops::words::count;
use serde_json::{Value, json};

use super::{
    fits,
    variants::{Sweep, load},
};
use crate::{
    cli::{Failure, absent::StandIns, args, calibrate, fits::room, system},
    graph::{Node, NodeId},
    plan::{Plan, Rates},
    registry::Registry,
    sweep::{Cost, Saved},
};

/// Print the plan of a sweep; an error after it if it does not fit.
pub(in crate::cli) fn plan(
    args: &args::Plan,
    stand_ins: Option<&StandIns>,
    registry: &Registry,
) -> Result<u8, Failure> {
    let mut sweep = load(&args.graph, &args.over, registry)?;
    sweep.all.notes = StandIns::noted(stand_ins, sweep.all.notes);
    let room = room(args, &sweep.all)?;
    // A debug build says nothing of the speed of the one that will run.
    let is_measured = args.calibrate || !cfg!(debug_assertions);
    if is_measured {
        let rates = calibrate::rates(sweep.all.run.threads, args.calibrate)?;
        let of_gpu = calibrate::gpu_rates(&sweep.all.run.device, args.calibrate)?;
        sweep = at(sweep, rates, of_gpu)?;
    }
    let saved = saved(&sweep);
    let text = match args.json {
        true => format!("{:#}\n", json(&sweep, &saved, is_measured)),
        false => listing(&sweep, &saved, is_measured),
    };
    system::print(&text)?;
    fits::check(&sweep, room, registry)?;
    Ok(0)
}

/// The same with all plans at these rates.
fn at(sweep: Sweep, rates: Rates, of_gpu: Option<Rates>) -> Result<Sweep, Failure> {
    let all = sweep.all.at(rates, of_gpu)?;
    let mut variants = sweep.variants;
    for variant in &mut variants {
        variant.plan = Plan::new(&variant.loaded.graph, all.plan.options()).map_err(Failure::new)?;
    }
    Ok(Sweep { all, variants, ..sweep })
}

/// What a run of all variants at once costs against one of each.
pub(super) fn saved(sweep: &Sweep) -> Saved {
    let steps = sweep.all.run.steps;
    let together = Cost::of(&sweep.all.graph, &sweep.all.plan, steps);
    let mut apart = Cost { seconds: Some(0.0), ..Cost::default() };
    for variant in &sweep.variants {
        let one = Cost::of(variant.graph(), &variant.plan, steps);
        apart.flops += one.flops;
        apart.peak = apart.peak.max(one.peak);
        apart.gpu_peak = apart.gpu_peak.max(one.gpu_peak);
        apart.seconds = apart.seconds.zip(one.seconds).map(|(all, one)| all + one);
    }
    Saved { together, apart }
}

/// The nodes of a variant by how many copies of them there are: all that are shared, some that are, none.
fn by_copies(sweep: &Sweep) -> [Vec<(NodeId, &Node)>; 3] {
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    let count = sweep.variants.len();
    for (id, node) in sweep.variants[0].graph().nodes() {
        let copies = sweep.joined.copies(id);
        let place = if copies == 1 {
            0
        } else if copies < count {
            1
        } else {
            2
        };
        found[place].push((id, node));
    }
    found
}

fn listing(sweep: &Sweep, saved: &Saved, is_measured: bool) -> String {
    let (variants, steps) = (count(sweep.variants.len(), "variant"), count(sweep.all.run.steps, "step"));
    let mut text = format!("sweep of `{}`: {variants}, {steps}\n", sweep.all.graph.name);
    for (names, values) in sweep.overs.axes() {
        text += &format!("  {} = {}\n", names.join(", "), values.join(" | "));
    }
    let [shared, some, own] = by_copies(sweep);
    let list = |title: String, nodes: &[(NodeId, &Node)], copies: bool| {
        let name = |(id, node): &(NodeId, &Node)| match copies {
            true => format!("{} ({})", node.id, count(sweep.joined.copies(*id), "copy")),
            false => node.id.clone(),
        };
        match nodes {
            [] => String::new(),
            nodes => format!("{title}\n{}", wrapped(&nodes.iter().map(name).collect::<Vec<_>>())),
        }
    };
    text += &list(format!("shared by all variants, {}:", count(shared.len(), "node")), &shared, false);
    text += &list(format!("shared by some, {}:", count(some.len(), "node")), &some, true);
    text += &list(format!("one copy for each variant, {}:", count(own.len(), "node")), &own, false);
    for note in &sweep.all.notes {
        text += &format!("{note}\n");
    }
    for line in sweep.all.cache_lines() {
        text += &format!("{line}\n");
    }
    let Saved { together, apart } = saved;
    let bytes = |b: usize| system::bytes(b as u64);
    text += &format!(
        "\n{:<24}  {:>14}  {:>20}  share\n",
        "",
        "the sweep",
        format!("{} in turn", count(sweep.variants.len(), "run"))
    );
    text += &format!(
        "{:<24}  {:>14}  {:>20}  {:.3}\n",
        "FLOP of all steps",
        format!("{:.3e}", together.flops),
        format!("{:.3e}", apart.flops),
        saved.ratio()
    );
    if let (true, Some(together), Some(apart)) = (is_measured, together.seconds, apart.seconds) {
        text += &format!(
            "{:<24}  {:>14}  {:>20}  {:.3}\n",
            "time",
            system::seconds(together),
            system::seconds(apart),
            together / apart.max(f64::MIN_POSITIVE)
        );
    }
    let mut peak = |of: String, together: usize, apart: usize| {
        let share = together as f64 / apart.max(1) as f64;
        text += &format!("{of:<24}  {:>14}  {:>20}  {share:.2}\n", bytes(together), bytes(apart));
    };
    peak("predicted peak memory".into(), together.peak, apart.peak);
    if let (Some(together), Some(apart)) = (together.gpu_peak, apart.gpu_peak) {
        peak(format!("  of {}", sweep.all.plan.options().networks()), together, apart);
    }
    if !is_measured {
        text += "no forecast: debug builds are not timed unless --calibrate is given\n";
    }
    text
}

/// Names on lines that fit a screen.
fn wrapped(names: &[String]) -> String {
    const COLUMNS: usize = 100;
    let mut lines = vec![String::from("  ")];
    for (at, name) in names.iter().enumerate() {
        let comma = if at + 1 < names.len() { ", " } else { "" };
        let last = lines.last().map_or(0, |line| line.len());
        if last > 2 && last + name.len() + comma.len() > COLUMNS {
            lines.push(String::from("  "));
        }
        if let Some(line) = lines.last_mut() {
            *line += &format!("{name}{comma}");
        }
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn json(sweep: &Sweep, saved: &Saved, is_measured: bool) -> Value {
    let first = &sweep.variants[0];
    let nodes: Vec<Value> = first
        .graph()
        .nodes()
        .map(|(id, node)| {
            let cost = first.plan.cost(id);
            json!({
                "id": node.id, "op": node.op.name(), "copies": sweep.joined.copies(id), "shared": sweep.joined.is_shared(id),
                "forward_flops": cost.forward_flops, "backward_flops": cost.backward_flops,
            })
        })
        .collect();
    let variants: Vec<Value> = sweep
        .variants
        .iter()
        .map(|v| {
            let settings: serde_json::Map<String, Value> =
                v.values.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
            json!({"number": v.number, "folder": v.folder, "settings": settings})
        })
        .collect();
    let cost = |cost: &Cost| json!({"flops": cost.flops, "peak_bytes": cost.peak, "gpu_peak_bytes": cost.gpu_peak, "seconds": cost.seconds.filter(|_| is_measured)});
    json!({
        "name": sweep.all.graph.name, "steps": sweep.all.run.steps, "variants": variants, "nodes": nodes,
        "together": cost(&saved.together), "apart": cost(&saved.apart), "flops_ratio": saved.ratio(),
        "trainable_values": sweep.all.trainable(), "notes": sweep.all.notes,
    })
}
