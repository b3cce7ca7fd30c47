//! `graph-run plan`: what a run would do, and whether it fits into memory.

use serde_json::{Value, json};

use super::{
    Failure, args, calibrate,
    forecast::{self, Forecast},
    prepare::{Prepared, prepare},
    system,
};
use crate::{
    cache::{NodeStatus, State},
    registry::Registry,
};

/// Print the plan; an error after it if it does not fit.
pub(super) fn plan(
    args: &args::Graph,
    as_json: bool,
    calibrate: bool,
    registry: &Registry,
) -> Result<u8, Failure> {
    let mut prepared = prepare(args, registry)?;
    // A debug build says nothing of the speed of the one that will run.
    let is_measured = calibrate || !cfg!(debug_assertions);
    if is_measured {
        let rates = calibrate::rates(prepared.run.threads, calibrate)?;
        prepared = prepared.at(rates)?;
    }
    let forecast = is_measured.then(|| Forecast::of(&prepared.graph, &prepared.plan, prepared.run.steps));
    let text = match as_json {
        true => format!("{:#}\n", json(&prepared, forecast)),
        false => listing(&prepared, forecast),
    };
    system::print(&text)?;
    prepared.check_memory(registry)?;
    Ok(0)
}

fn listing(p: &Prepared, forecast: Option<Forecast>) -> String {
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
    text += &match forecast {
        Some(forecast) => time(p, forecast),
        None => "no forecast: debug builds are not timed unless --calibrate is given\n".into(),
    };
    text
}

/// How long it takes, and what that is reckoned from.
fn time(p: &Prepared, forecast: Forecast) -> String {
    let (rates, steps) = (p.plan.options().rates, p.run.steps);
    let end = forecast::end(forecast.run).map(|end| format!("; started now, it ends on {end}"));
    format!(
        "a step takes about {}, {steps} steps about {}{}\n  at {:.0} GFLOP/s in f32, {:.0} in bf16 and {:.1} GB/s from memory, as \
         measured on this machine\n",
        system::seconds(forecast.step),
        system::seconds(forecast.run),
        end.unwrap_or_default(),
        rates.flops / 1e9,
        rates.flops_bf16 / 1e9,
        rates.bytes / 1e9,
    )
}

fn json(p: &Prepared, forecast: Option<Forecast>) -> Value {
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
                "id": node.id, "op": node.op.name(), "inputs": inputs, "outputs": outputs,
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
                "phase": task.phase.to_string(), "lane": task.lane, "seconds": task.seconds,
            })
        })
        .collect();
    let memory = plan.memory();
    let cache = p.cache.as_ref().map(|(cache, status)| {
        json!({
            "path": cache.folder(), "fill_bytes": p.fill_bytes(), "nodes": status.iter().map(node_status).collect::<Vec<_>>(),
        })
    });
    let rates = plan.options().rates;
    let forecast = forecast.map(|f| {
        json!({
            "step_seconds": f.step, "run_seconds": f.run,
            "rates": {"flops": rates.flops, "flops_bf16": rates.flops_bf16, "bytes": rates.bytes},
        })
    });
    json!({
        "forecast": forecast,
        "cache": cache,
        "name": graph.name, "nodes": nodes, "tasks": tasks, "notes": p.notes,
        "trainable_values": p.trainable(), "flops": p.flops(), "seconds": plan.seconds(),
        "lanes": plan.options().lanes, "ahead": plan.options().ahead, "variants": plan.variants().len(),
        "memory": {
            "process": memory.process, "peak": memory.peak, "resident": memory.resident, "cells": memory.cells, "ahead": memory.ahead,
            "machine": system::machine_memory(),
        },
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
