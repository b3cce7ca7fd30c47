//! Writes the adapter of a checkpoint as a file.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph_nn::{Adapter, AdapterLayout, lora::AdapterFormat, models::flux, naming::Names};
use prefgraph_ops::{
    Carried, NamedState,
    ports::{AdapterShape, saved_layout},
};

use super::{network::Network, paths, report};
use crate::{
    checkpoint::Checkpoint,
    cli::{Failure, args},
    spec::{self, Stated},
};

/// Write the adapter of a checkpoint.
pub(super) fn export(args: &args::ExportCheckpoint) -> Result<u8, Failure> {
    let args::ExportCheckpoint { checkpoint, output, to, ip_adapter, weights, cell } = args;
    let folder = step_folder(checkpoint)?;
    let read = std::iter::once(&folder).chain(ip_adapter).chain(weights);
    paths::can_be_written(output, read.map(PathBuf::as_path))?;
    let found = Checkpoint::read(&folder).map_err(Failure::new)?;
    let fault = |message: String| Failure::new(format!("checkpoint `{}`: {message}", folder.display()));
    let stated = spec::stated(&found.graph).map_err(|e| fault(format!("its graph cannot be read: {e}")))?;
    let (cell, state) = chosen(&found, cell.as_deref()).map_err(&fault)?;
    let network = Network::of(&stated, cell).map_err(&fault)?;
    let mut layout = layout(&stated, cell, state, network.names()).map_err(&fault)?;
    // What is trained whole goes there, and factors that go elsewhere are those that it does not hold.
    if !layout.whole.is_empty() || *to == Some(AdapterFormat::IpAdapter) {
        let moved = (ip_adapter.as_deref(), weights.as_deref());
        layout.ip_adapter = Some(network.ip_adapter(found.sources.as_ref(), moved).map_err(&fault)?);
    }
    let to = to.or_else(|| layout.formats().first().copied()).unwrap_or(AdapterFormat::Diffusers);
    let shape = AdapterShape(Arc::new(layout));
    let adapter = Adapter::restore(&shape, state).map_err(|e| fault(e.to_string()))?;
    let mut about = vec![("prefgraph.step".to_owned(), found.step.to_string())];
    about.extend(stated.name.map(|name| ("prefgraph.graph".to_owned(), name)));
    let written = adapter.write(output, to, &about).map_err(Failure::new)?;
    report(&adapter, to, output, written);
    Ok(0)
}

/// The folder of a checkpoint, which may be given as one of its files, or as the folder of a run: then it is the newest.
fn step_folder(path: &Path) -> Result<PathBuf, Failure> {
    let [cells, state] = paths::CHECKPOINT;
    let name = path.file_name().and_then(|n| n.to_str());
    if path.is_file() && name.is_some_and(|n| n == cells || n == state) {
        return Ok(path.parent().unwrap_or(Path::new(".")).to_owned());
    }
    if path.join(state).exists() || path.join(cells).exists() {
        return Ok(path.to_owned());
    }
    let inside = path.join("checkpoints");
    let all = if inside.is_dir() { &inside } else { path };
    let steps = fs::read_dir(all).into_iter().flatten().flatten();
    let newest =
        steps.filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok()).max();
    newest.map(|step| all.join(format!("step-{step}"))).ok_or_else(|| {
        let file = path.join("adapter.safetensors");
        let file = file.is_file().then(|| {
            format!("; `adapter convert {}` writes the adapter that is there in other names", file.display())
        });
        Failure::new(format!(
            "`{}` is no checkpoint: expected the folder `checkpoints/step-N` of a run, or the run's own folder{}",
            path.display(),
            file.unwrap_or_default()
        ))
    })
}

/// The cell that is asked for, or the only one with an adapter.
fn chosen<'a>(checkpoint: &'a Checkpoint, wanted: Option<&str>) -> Result<(&'a str, &'a NamedState), String> {
    let cells = checkpoint.cells.iter().map(|(name, state)| (name.as_str(), state));
    let adapters: Vec<_> =
        cells.filter(|(_, state)| saved_layout(state, &flux::NAMES, 1.0).is_some()).collect();
    let names = adapters.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match (wanted, &adapters[..]) {
        (_, []) => Err("none of its cells holds an adapter".into()),
        (None, [one]) => Ok(*one),
        (None, _) => Err(format!("its cells {names} hold adapters: name one by --cell")),
        (Some(wanted), all) => all
            .iter()
            .find(|(name, _)| *name == wanted)
            .copied()
            .ok_or_else(|| format!("`{wanted}` is no cell with an adapter; those are {names}")),
    }
}

/// The layout of a cell's adapter, with the alpha that the checkpoint's graph states.
fn layout(
    stated: &Stated,
    cell: &str,
    state: &NamedState,
    names: &'static Names,
) -> Result<AdapterLayout, String> {
    let node = stated.nodes.get(cell).filter(|node| node.op == "lora").ok_or_else(|| {
        format!("cell `{cell}` is no `lora` node of its graph, which says by what the factors are scaled")
    })?;
    let setting = |name: &str| {
        let text = node.settings.get(name).ok_or_else(|| format!("its graph states no `{cell}.{name}`"))?;
        Ok::<_, String>(text.as_str())
    };
    let fault = |name: &str, e: &dyn std::fmt::Display| format!("`{cell}.{name}` of its graph: {e}");
    let rank: usize = spec::text::read(setting("rank")?).map_err(|e| fault("rank", &e))?;
    let alpha: Option<f64> = spec::text::read(setting("alpha")?).map_err(|e| fault("alpha", &e))?;
    let alpha = alpha.unwrap_or(rank as f64) as f32;
    let layout =
        saved_layout(state, names, alpha).ok_or_else(|| format!("cell `{cell}` holds no adapter"))?;
    if !layout.modules.is_empty() && layout.rank != rank {
        return Err(format!(
            "cell `{cell}` holds factors of rank {}, and its graph says {rank}: they are not of one run",
            layout.rank
        ));
    }
    Ok(layout)
}
