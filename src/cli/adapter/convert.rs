//! Converts an adapter file to another format.

use std::path::PathBuf;

use prefgraph_nn::lora::AdapterFile;
use prefgraph_ops::words::{count, form};

use super::{opened::Opened, paths, report};
use crate::cli::{Failure, args, say::say};

/// Write an adapter in another format.
pub(super) fn convert(args: &args::Convert) -> Result<u8, Failure> {
    let args::Convert { input, output, to, weights, drop_text_encoders } = args;
    paths::no_checkpoint(input)?;
    let opened = Opened::open(input, *drop_text_encoders)?;
    let file = &opened.file;
    paths::no_cells(file)?;
    let read = AdapterFile::files_at(&file.path());
    paths::can_be_written(output, read.iter().chain(weights).map(PathBuf::as_path))?;
    let linears = weights.as_ref().map(|weights| opened.linears(weights)).transpose()?;
    let adapter = file.adapter(linears.as_deref()).map_err(Failure::new)?;
    // Where it comes from stays with it; rank, alpha and targets are written anew.
    const KEPT: [&str; 3] = ["prefgraph.base", "prefgraph.graph", "prefgraph.step"];
    let about: Vec<(String, String)> = KEPT
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), file.metadata().get(key)?.clone())))
        .collect();
    let written = adapter.write(output, *to, &about).map_err(Failure::new)?;
    report(&adapter, *to, output, written);
    if file.left_out() > 0 {
        let left = file.left_out();
        say!("{} of text encoders {} left out", count(left, "tensor"), form(left, "was", "were"));
    }
    Ok(0)
}
