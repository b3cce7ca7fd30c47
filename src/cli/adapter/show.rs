//! The contents of an adapter file.

use std::{collections::BTreeMap, path::Path};

use prefgraph_nn::lora::AdapterFile;
use prefgraph_ops::words::{count, form, printable};

use super::{opened::Opened, paths};
use crate::cli::{Failure, system};

/// Say what a file holds.
pub(super) fn show(path: &Path) -> Result<u8, Failure> {
    paths::no_checkpoint(path)?;
    let file = Opened::open(path, true)?.file;
    paths::no_cells(&file)?;
    system::print(&listing(&file))?;
    Ok(0)
}

fn listing(file: &AdapterFile) -> String {
    let modules = file.modules();
    let values: usize = modules.iter().map(|m| m.rank * (m.linear.inputs + m.linear.outputs)).sum();
    let mut text = format!(
        "{}: {}, {} of {}, {}\n",
        file.path().display(),
        file.names(),
        count(modules.len(), "linear"),
        count(file.kinds().len(), "kind"),
        count(values, "value"),
    );
    // Most files have one rank and one alpha; those of others are listed with how often they occur.
    let mut sizes: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for module in &modules {
        *sizes.entry((module.rank, module.alpha.to_string())).or_default() += 1;
    }
    for ((rank, alpha), linears) in &sizes {
        let all = if sizes.len() == 1 { String::new() } else { format!(" ({})", count(*linears, "linear")) };
        text += &format!("  rank {rank}, alpha {alpha}{all}\n");
    }
    if let Some(alpha) = file.trained_alpha() {
        text += &format!("  trained with alpha {alpha}: alpha / rank is in the factors\n");
    }
    if file.left_out() > 0 {
        let (left, are) = (file.left_out(), form(file.left_out(), "is", "are"));
        text += &format!("  {} of text encoders, which {are} not read\n", count(left, "tensor"));
    }
    for (kind, linears) in file.kinds() {
        text += &format!("  {linears:>4}  {}\n", printable(&kind));
    }
    if !file.metadata().is_empty() {
        text += "header:\n";
    }
    for (key, value) in file.metadata() {
        text += &format!("  {}: {}\n", printable(key), printable(&short(value)));
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
