//! `graph-run adapter`: showing, converting and exporting adapter files.
//!
//! ```text
//! show     what a file holds            export   the adapter of a checkpoint as a file
//! convert  a file in another format     network  what the graph of a checkpoint says of its network
//!                                       opened   files of every network
//!                                       paths    what a path is, before anything is read or written
//! ```

mod convert;
mod export;
mod network;
mod opened;
mod paths;
mod show;

use prefgraph_nn::{
    Adapter,
    lora::{AdapterFormat, Written},
};
use prefgraph_ops::words::{count, form};

use super::{Failure, args, say::say};

/// The command that was typed.
pub(super) fn adapter(command: &args::Adapter) -> Result<u8, Failure> {
    match command {
        args::Adapter::Show { path } => show::show(path),
        args::Adapter::Convert(convert) => convert::convert(convert),
        args::Adapter::Export(export) => export::export(export),
    }
}

/// Say that a file has been written, and what became of its strength.
fn report(adapter: &Adapter, to: AdapterFormat, output: &std::path::Path, written: Written) {
    let layout = &adapter.layout;
    if to == AdapterFormat::IpAdapter {
        let (whole, factors) = (layout.whole.len(), layout.modules.len());
        let held = layout.ip_adapter.as_ref();
        let outside =
            layout.modules.iter().filter(|m| held.is_none_or(|f| !f.places.contains_key(&m.name))).count();
        let what = match (whole, factors - outside) {
            (whole, 0) => format!("{}, trained whole,", count(whole, "linear")),
            (0, factors) => format!("{} of rank {}", count(factors, "linear"), layout.rank),
            (whole, factors) => {
                format!("{}, trained whole, and {factors} of rank {}", count(whole, "linear"), layout.rank)
            }
        };
        say!("{what} in `{}`, a copy of their IP-Adapter's file, read back and compared", output.display());
        if outside > 0 {
            say!(
                "{} with factors {} not part of an IP-Adapter: `--to diffusers` writes {} to another file",
                count(outside, "linear"),
                form(outside, "is", "are"),
                form(outside, "it", "them")
            );
        }
        return;
    }
    say!(
        "{} of rank {} in `{}` ({} names), read back and compared",
        count(layout.modules.len(), "linear"),
        layout.rank,
        output.display(),
        to.name()
    );
    if to == AdapterFormat::Kohya || layout.alpha == layout.rank as f32 {
        return;
    }
    let rounded = match written.rounding {
        0.0 => "without rounding".to_owned(),
        rounding => format!(
            "which rounds its values by up to {rounding:.1e} of each; kohya's names keep alpha and factors as they are"
        ),
    };
    say!("alpha / rank, {} / {}, is multiplied into B, {rounded}", layout.alpha, layout.rank);
}
