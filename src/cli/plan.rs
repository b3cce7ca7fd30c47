//! `graph-run plan`: what a run would do, and whether it fits into memory.

use prefgraph_ops::words::count;
use serde_json::{Value, json};

use super::{
    Failure,
    absent::{self, StandIns},
    args, calibrate, fits,
    forecast::{self, Forecast},
    prepare::{Prepared, prepare},
    sweep, system,
};
use crate::{
    cache::{NodeStatus, State},
    plan::{Memory, Place, Rates},
    registry::Registry,
    sweep::Cost,
};

/// Print the plan; an error after it if it does not fit.
pub(super) fn plan(args: &args::Plan, registry: &Registry) -> Result<u8, Failure> {
    if !args.without_files {
        let may_stand_in = |failure: Failure| match absent::is_named(failure.message(), args, registry) {
            true => failure.help("to plan before the files are here, add --without-files"),
            false => failure,
        };
        return plan_of(args, None, registry).map_err(may_stand_in);
    }
    let stand_ins = absent::stand_in(args, registry)?;
    let sets = [&args.graph.sets[..], &stand_ins.sets].concat();
    let args = args::Plan { graph: args::Graph { sets, ..args.graph.clone() }, ..args.clone() };
    plan_of(&args, Some(&stand_ins), registry).map_err(|failure| match stand_ins.are_in(failure.message()) {
        true => failure.help(&format!(
            "with --without-files, what is below `{}` stood in for files that are not here",
            stand_ins.place()
        )),
        false => failure,
    })
}

/// The same of a graph whose files are here, or others for them.
fn plan_of(args: &args::Plan, stand_ins: Option<&StandIns>, registry: &Registry) -> Result<u8, Failure> {
    if !args.over.is_empty() {
        return sweep::plan(args, stand_ins, registry);
    }
    let mut prepared = prepare(&args.graph, registry)?;
    prepared.notes = StandIns::noted(stand_ins, prepared.notes);
    let room = fits::room(args, &prepared)?;
    // A debug build says nothing of the speed of the one that will run.
    let is_measured = args.calibrate || !cfg!(debug_assertions);
    if is_measured {
        let rates = calibrate::rates(prepared.run.threads, args.calibrate)?;
        let of_gpu = calibrate::gpu_rates(&prepared.run.device, args.calibrate)?;
        prepared = prepared.at(rates, of_gpu)?;
    }
    let forecast = match is_measured {
        true => Forecast::of(&prepared.graph, &prepared.plan, prepared.run.steps),
        false => None,
    };
    let text = match args.json {
        true => format!("{:#}\n", json(&prepared, forecast, room)),
        false => listing(&prepared, forecast, room, is_measured),
    };
    system::print(&text)?;
    fits::check(&prepared, room, registry)?;
    Ok(0)
}

fn listing(p: &Prepared, forecast: Option<Forecast>, room: Option<u64>, is_measured: bool) -> String {
    let mut text = p.plan.explain(&p.graph).to_string();
    text += "\n";
    for note in &p.notes {
        text += &format!("{note}\n");
    }
    for line in p.cache_lines() {
        text += &format!("{line}\n");
    }
    text += &format!("{} trainable values, {:.3e} FLOP a step\n", p.trainable(), p.flops());
    let there = system::machine_memory().map(|m| format!(" of {}", system::bytes(m))).unwrap_or_default();
    text += &format!("predicted peak memory {}{there}\n", system::bytes(p.plan.memory().peak as u64));
    if let Some((gpu, need)) = fits::on_gpu(&p.plan) {
        let there = match room {
            Some(room) => format!(" of {}", system::bytes(room)),
            None => "; how much it has is not known here: state it with --gpu-memory".to_owned(),
        };
        text += &format!("predicted peak memory of {gpu} {need}{there}\n");
    }
    text += &match (forecast, is_measured) {
        (Some(forecast), _) => time(p, forecast),
        (None, true) => unknown(p),
        (None, false) => "no forecast: debug builds are not timed unless --calibrate is given\n".into(),
    };
    text
}

/// Floating-point operations a second of a GPU that nobody has measured: the times of others follow by a division.
const RECKONED_WITH: f64 = 1e14;

/// What can be said of a GPU that is not here.
fn unknown(p: &Prepared) -> String {
    let all = Cost::of(&p.graph, &p.plan, p.run.steps).flops;
    format!(
        "no forecast: {} is not here, so that its speed is unknown. At {:.0} TFLOP/s a step would take at least {}, and {} {}, with what is drawn \
         and measured on the way; streamed weights come on top\n",
        p.plan.options().networks(),
        RECKONED_WITH / 1e12,
        system::seconds(p.flops() / RECKONED_WITH),
        count(p.run.steps, "step"),
        system::seconds(all / RECKONED_WITH),
    )
}

/// How long it takes, and what that is reckoned from.
fn time(p: &Prepared, forecast: Forecast) -> String {
    let (options, steps) = (p.plan.options(), p.run.steps);
    let end = forecast::end(forecast.run).map(|end| format!("; started now, it ends on {end}"));
    let gpu = options.gpu.and_then(|gpu| Some((gpu.place(), gpu.rates?)));
    // A GPU's rates are those of single operations, which no whole pass reaches.
    let about = if gpu.is_some() { "at least" } else { "about" };
    let mut text = format!(
        "a step takes {about} {}, {} {about} {}{}\n  at {}, as measured on this machine\n",
        system::seconds(forecast.step),
        count(steps, "step"),
        system::seconds(forecast.run),
        end.unwrap_or_default(),
        speeds(options.rates),
    );
    if let Some((place, rates)) = gpu {
        text += &format!("  and on {place} at {}; what is streamed to it comes on top\n", speeds(rates));
    }
    text
}

fn speeds(rates: Rates) -> String {
    format!(
        "{:.0} GFLOP/s in f32, {:.0} in bf16 and {:.1} GB/s from memory",
        rates.flops / 1e9,
        rates.flops_bf16 / 1e9,
        rates.bytes / 1e9,
    )
}

fn json(p: &Prepared, forecast: Option<Forecast>, room: Option<u64>) -> Value {
    let (graph, plan) = (&p.graph, &p.plan);
    let nodes: Vec<Value> = graph
        .nodes()
        .map(|(id, node)| {
            let shapes = node.outputs.iter().zip(plan.largest().outputs(id));
            let outputs: Vec<Value> = shapes
                .map(|(o, shape)| {
                    json!({"name": o.name, "role": o.ty.role, "shape": shape.describe(), "bytes": shape.bytes()})
                })
                .collect();
            let inputs = node.inputs.iter().zip(&node.wires);
            let inputs: serde_json::Map<String, Value> = inputs
                .map(|(i, w)| (i.name.to_owned(), w.iter().map(|w| graph.path(*w)).collect()))
                .collect();
            let cost = plan.cost(id);
            json!({
                "id": node.id, "op": node.op.name(), "place": plan.place(id).to_string(), "inputs": inputs, "outputs": outputs,
                "cell": plan.is_cell(id), "runs_ahead": plan.runs_ahead(id),
                "forward_flops": cost.forward_flops, "backward_flops": cost.backward_flops,
                "saved_bytes": cost.saved_bytes, "resident_bytes": cost.resident_bytes,
                "shared_bytes": cost.shared.map_or(0, |s| s.bytes),
            })
        })
        .collect();
    let tasks: Vec<Value> = plan
        .order()
        .iter()
        .map(|&id| {
            let task = &plan.tasks()[id];
            json!({
                "node": graph[task.task.node()].id, "direction": task.task.direction(),
                "phase": task.phase.to_string(), "lane": task.lane, "place": task.place.to_string(),
                "seconds": plan.is_timed().then_some(task.seconds),
            })
        })
        .collect();
    let memory = plan.memory();
    let cache = p.cache.as_ref().map(|(cache, status)| {
        json!({
            "path": cache.folder(), "fill_bytes": p.fill_bytes(), "nodes": status.iter().map(node_status).collect::<Vec<_>>(),
        })
    });
    let speeds =
        |rates: Rates| json!({"flops": rates.flops, "flops_bf16": rates.flops_bf16, "bytes": rates.bytes});
    let options = plan.options();
    let forecast = forecast.map(|f| {
        json!({
            "step_seconds": f.step, "run_seconds": f.run, "rates": speeds(options.rates),
            "gpu_rates": options.gpu.and_then(|gpu| gpu.rates).map(speeds),
        })
    });
    let places: Vec<Value> = plan
        .memory_by_place()
        .iter()
        .map(|(place, memory)| match place {
            Place::Cpu => place_memory(*place, memory, system::machine_memory()),
            Place::Cuda(_) => place_memory(*place, memory, room),
        })
        .collect();
    json!({
        "forecast": forecast,
        "cache": cache,
        "name": graph.name, "nodes": nodes, "tasks": tasks, "notes": p.notes,
        "trainable_values": p.trainable(), "flops": p.flops(), "seconds": plan.is_timed().then(|| plan.seconds()),
        "lanes": plan.options().lanes, "ahead": plan.options().ahead, "variants": plan.variants().len(),
        "memory": {
            "process": memory.process, "peak": memory.peak, "resident": memory.resident, "cells": memory.cells, "ahead": memory.ahead,
            "machine": system::machine_memory(),
        },
        "places": places,
    })
}

/// `there` is `null` where nobody knows it.
fn place_memory(place: Place, memory: &Memory, there: Option<u64>) -> Value {
    json!({
        "place": place.to_string(), "peak": memory.peak, "resident": memory.resident, "cells": memory.cells,
        "queues": memory.queues, "ahead": memory.ahead, "process": memory.process, "there": there,
    })
}

fn node_status(s: &NodeStatus) -> Value {
    let state = match s.state() {
        State::Hit => "hit",
        State::Miss => "miss",
        State::Unknown => "unknown",
    };
    json!({
        "node": s.node, "state": state, "samples": s.samples, "present": s.present, "missing": s.missing,
        "unindexed": s.unindexed, "why": s.why,
    })
}
