//! `graph-run dot`: the plan as a picture.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::{Failure, args, args::Format, prepare::prepare, system};
use crate::registry::Registry;

/// Print Graphviz text, or what Graphviz makes of it.
pub(super) fn dot(args: &args::Graph, format: Format, registry: &Registry) -> Result<u8, Failure> {
    let prepared = prepare(args, registry)?;
    let text = prepared.plan.to_dot(&prepared.graph).to_string();
    match format {
        Format::Dot => system::print(&text)?,
        Format::Svg => render(&text, "svg")?,
        Format::Png => render(&text, "png")?,
    }
    Ok(0)
}

fn render(text: &str, format: &str) -> Result<(), Failure> {
    let started = Command::new("dot").arg(format!("-T{format}")).stdin(Stdio::piped()).spawn();
    let mut child = started.map_err(|e| {
        Failure::new(format!(
            "cannot start Graphviz (`dot`): {e}; install it, or leave --format out and draw the text elsewhere"
        ))
    })?;
    if let Some(mut input) = child.stdin.take() {
        // Graphviz that stops reading says why by its exit code.
        let _ = input.write_all(text.as_bytes());
    }
    let status = child.wait().map_err(|e| Failure::new(format!("Graphviz: {e}")))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("Graphviz failed: {status}"))) }
}
