//! The adapters that a run trains, and their files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    Adapter,
    files::TensorFiles,
    lora::{AdapterFile, AdapterFormat},
    naming::Names,
};
use prefgraph_ops::{NamedState, PortType};

use super::{Failure, prepare::Prepared, say::say};
use crate::{
    checkpoint::{Checkpoint, check_range},
    folder::RunFolder,
    graph::{CarryWire, Endpoint, Graph},
    plan::Plan,
};

/// A cell that holds an adapter.
#[derive(Clone, Debug)]
pub(super) struct AdapterCell {
    /// Its node.
    pub node: String,
    /// What checkpoints call it.
    pub path: String,
    /// Its value in a step.
    pub value: Endpoint,
    /// The one that the step leaves.
    pub next: Endpoint,
}

/// The cells that hold adapters.
pub(super) fn adapter_cells(graph: &Graph) -> Vec<AdapterCell> {
    let ty = PortType::of::<Adapter>();
    let carries = graph.carries().iter();
    let adapters = carries.filter(|c| graph.port_type(c.cell).is_ok_and(|t| t.fits(&ty)));
    let cell = |c: &CarryWire| AdapterCell {
        node: graph[c.cell.node].id.clone(),
        path: graph.path(c.cell),
        value: c.cell,
        next: c.next,
    };
    adapters.map(cell).collect()
}

/// The settings that are learning rates, as `--set` names them.
pub(super) fn rates(graph: &Graph) -> Vec<String> {
    let updates = graph.nodes().filter(|(_, node)| node.op.name() == "lora-update");
    updates.map(|(_, node)| format!("{}.lr", node.id)).collect()
}

/// What adapter files say of where they come from: the graph, and the sizes of the network it was trained on.
pub(super) fn origin(graph: &Graph) -> Vec<(String, String)> {
    let mut about = vec![("prefgraph.graph".to_owned(), graph.name.clone())];
    let backbones = graph.nodes().filter(|(_, node)| node.op.name() == "backbone");
    for (_, node) in backbones.take(1) {
        let facts = node.op.exports();
        let fact = |name: &str| facts.iter().find(|(n, _)| n == name).map(|(n, v)| format!("{v} {n}"));
        let facts = ["parameters", "blocks", "width"].into_iter().filter_map(fact);
        about.push(("prefgraph.base".to_owned(), facts.collect::<Vec<_>>().join(", ")));
    }
    about
}

/// Key of an adapter's header: the steps that made it.
const STEP: &str = "prefgraph.step";

/// Name of the file of a node's adapter, without the suffix, where a run has so many: one of several must not replace another's.
pub(super) fn stem(node: &str, adapters: usize) -> String {
    if adapters <= 1 { "adapter".into() } else { format!("adapter-{node}") }
}

/// What the header of an adapter says of where it comes from, after so many steps.
pub(super) fn about(origin: &[(String, String)], made: u64) -> Vec<(String, String)> {
    origin.iter().cloned().chain([(STEP.into(), made.to_string())]).collect()
}

/// Are all its factors in range?
pub(super) fn check_adapter(adapter: &Adapter) -> Result<(), String> {
    let values = adapter.values.host().map_err(|e| e.to_string())?;
    check_range(&values, |at| adapter.layout.module_at(at).to_owned())
}

/// Write the adapters that a complete run lacks, or has from an earlier step; returns their files.
pub(super) fn complete(
    folder: &RunFolder,
    graph: &Graph,
    plan: &Plan,
    checkpoint: &Checkpoint,
) -> Result<Vec<PathBuf>, Failure> {
    let cells = adapter_cells(graph);
    let mut written = Vec::new();
    for cell in &cells {
        let Some(state) = checkpoint.cells.get(&cell.path) else { continue };
        let adapter = restored(graph, plan, cell.value, state)?;
        let stem = stem(&cell.node, cells.len());
        let made = checkpoint.step.to_string();
        let names = adapter.layout.names;
        let there = |format: AdapterFormat| {
            is_of_step(&folder.path().join(format.file_name(&stem)), (format, names), &made)
        };
        let mut missing = adapter.layout.formats();
        missing.retain(|format| !there(*format));
        if missing.is_empty() {
            continue;
        }
        check_adapter(&adapter)
            .map_err(|e| Failure::new(format!("the adapter is out of range and is not written: {e}")))?;
        let about = about(&origin(graph), checkpoint.step);
        for format in missing {
            let path = folder.write_adapter(&stem, &adapter, format, &about);
            written.push(path.map_err(Failure::new)?);
        }
    }
    Ok(written)
}

/// Is there the file of an adapter, and from this step?
pub(super) fn is_of_step(path: &Path, (format, names): (AdapterFormat, &'static Names), step: &str) -> bool {
    let says = |metadata: &BTreeMap<String, String>| metadata.get(STEP).is_some_and(|found| found == step);
    match format {
        AdapterFormat::IpAdapter => TensorFiles::open(path).is_ok_and(|f| says(f.metadata())),
        _ => AdapterFile::open(path, "", names).is_ok_and(|f| says(f.metadata())),
    }
}

/// An adapter as a checkpoint holds it.
pub(super) fn restored(
    graph: &Graph,
    plan: &Plan,
    cell: Endpoint,
    state: &NamedState,
) -> Result<Adapter, Failure> {
    let fault = |e: &dyn std::fmt::Display| Failure::new(format!("cell `{}`: {e}", graph.path(cell)));
    let carry = graph.port_type(cell).map_err(|e| fault(&e))?.carry;
    let restore = carry.ok_or_else(|| fault(&"it cannot be carried"))?.restore;
    let value = restore(&plan.shape(graph, cell), state).map_err(|e| fault(&e))?;
    value.downcast_ref::<Adapter>().cloned().ok_or_else(|| fault(&"it is no adapter"))
}

/// Warn before the first step where the run would train nothing, or write nothing.
pub(super) fn warn_of_nothing(prepared: &Prepared) {
    let graph = &prepared.graph;
    let adapters = adapter_cells(graph);
    if graph.carries().is_empty() {
        let word = if graph.loss().is_some() { "warning" } else { "note" };
        say!(
            "{word}: the graph carries nothing from step to step, so nothing is trained and no adapter is written"
        );
    } else if prepared.trainable() == 0 {
        say!("warning: nothing reads a gradient of what the graph carries, so nothing is trained");
    } else if adapters.is_empty() {
        let cells: Vec<String> =
            graph.carries().iter().map(|c| format!("`{}`", graph.path(c.cell))).collect();
        say!(
            "warning: what is trained ({}) is not an adapter: it is written to checkpoints only",
            cells.join(", ")
        );
    }
}
