//! `graph-run adapter`: adapter files, what they hold, and the names that other programs read.

use std::{collections::BTreeMap, path::Path};

use prefgraph_nn::{
    lora::{AdapterFile, AdapterFormat},
    models::flux::FluxFiles,
};

use super::{Failure, say::say, system};

/// Say what a file holds.
pub(super) fn show(path: &Path) -> Result<u8, Failure> {
    let file = AdapterFile::open(path, "").map_err(Failure::new)?;
    system::print(&listing(&file))?;
    Ok(0)
}

fn listing(file: &AdapterFile) -> String {
    let modules = file.modules();
    let values: usize = modules.iter().map(|m| m.rank * (m.linear.inputs + m.linear.outputs)).sum();
    let mut text = format!(
        "{}: {} names, {} linears of {} kinds, {values} values\n",
        file.path().display(),
        file.format().name(),
        modules.len(),
        file.kinds().len(),
    );
    // Most files have one rank and one alpha; those of others are listed with how often they occur.
    let mut sizes: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for module in &modules {
        *sizes.entry((module.rank, module.alpha.to_string())).or_default() += 1;
    }
    for ((rank, alpha), count) in &sizes {
        let all = if sizes.len() == 1 { String::new() } else { format!(" ({count} linears)") };
        text += &format!("  rank {rank}, alpha {alpha}{all}\n");
    }
    for (kind, count) in file.kinds() {
        text += &format!("  {count:>4}  {kind}\n");
    }
    if !file.metadata().is_empty() {
        text += "header:\n";
    }
    for (key, value) in file.metadata() {
        text += &format!("  {key}: {}\n", short(value));
    }
    text
}

/// The beginning of a long value.
fn short(value: &str) -> String {
    const SHOWN: usize = 80;
    match value.char_indices().nth(SHOWN) {
        None => value.into(),
        Some((end, _)) => format!("{}... ({} bytes)", &value[..end], value.len()),
    }
}

/// Write an adapter in another format.
pub(super) fn convert(
    input: &Path,
    output: &Path,
    to: AdapterFormat,
    weights: Option<&Path>,
) -> Result<u8, Failure> {
    let file = AdapterFile::open(input, "").map_err(Failure::new)?;
    let linears = match weights {
        None => None,
        Some(weights) => Some(FluxFiles::open(weights).map_err(Failure::new)?.0.layout().linears),
    };
    let adapter = file.adapter(linears.as_deref()).map_err(Failure::new)?;
    // Where it comes from stays with it; rank, alpha and targets are written anew.
    const KEPT: [&str; 3] = ["prefgraph.base", "prefgraph.graph", "prefgraph.step"];
    let about: Vec<(String, String)> = KEPT
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), file.metadata().get(key)?.clone())))
        .collect();
    adapter.write(output, to, &about).map_err(Failure::new)?;
    say!(
        "{} linears of rank {} in `{}` ({} names), read back and compared",
        adapter.layout.modules.len(),
        adapter.layout.rank,
        output.display(),
        to.name()
    );
    Ok(0)
}
