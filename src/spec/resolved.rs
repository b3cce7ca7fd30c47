//! A graph as one flat file: no parent, no references, every default written out.

use std::fmt::Write as _;

use super::{CacheSettings, RunSettings, merge::Merged, syntax::quote, text};
use crate::graph::Graph;

/// The text; loading it gives the same plan. `settings` are those of the merged nodes, in order.
pub(super) fn resolved(
    graph: &Graph,
    merged: &Merged,
    settings: &[Vec<(String, String)>],
    run: &RunSettings,
    cache: &CacheSettings,
) -> Result<String, String> {
    let mut out = String::from("// A resolved graph: every setting stated, every path absolute.\nGraph(\n");
    let name = quote(&merged.name.value);
    let _ = writeln!(out, "    name: {name},\n    nodes: [");
    for (spec, settings) in merged.nodes.iter().zip(settings) {
        let node = &graph[graph.find(&spec.id.value).map_err(|e| e.to_string())?];
        let _ = write!(out, "        (id: {}, op: {}", quote(&node.id), quote(node.op.name()));
        let mut inputs = Vec::new();
        for (input, wires) in node.inputs.iter().zip(&node.wires) {
            let paths: Vec<String> = wires.iter().map(|w| quote(&graph.path(*w))).collect();
            match (input.arity, &paths[..]) {
                (prefgraph_ops::Arity::Many, _) => {
                    inputs.push((input.name.to_owned(), format!("[{}]", paths.join(", "))));
                }
                (_, [path]) => inputs.push((input.name.to_owned(), path.clone())),
                _ => {}
            }
        }
        block(&mut out, "in", &inputs);
        block(&mut out, "with", settings);
        out += "),\n";
    }
    out += "    ],\n";
    if let Some(loss) = graph.loss() {
        let _ = writeln!(out, "    loss: {},", quote(&graph.path(loss)));
    }
    out += "    carry: {";
    let carries = graph.carries().iter();
    let carries: Vec<String> =
        carries.map(|c| format!("{}: {}", quote(&graph.path(c.cell)), quote(&graph.path(c.next)))).collect();
    let _ = writeln!(out, "{}}},", carries.join(", "));
    let fields = |text: &str| -> Result<String, String> {
        let fields = text::fields(text)?.into_iter().map(|(k, v)| format!("{k}: {v}"));
        Ok(fields.collect::<Vec<_>>().join(", "))
    };
    if !cache.nodes.is_empty() {
        let _ = writeln!(out, "    cache: ({}),", fields(&text::write(cache)?)?);
    }
    let _ = writeln!(out, "    run: ({}),\n)", fields(&text::write(run)?)?);
    Ok(out)
}

/// `, name: (key: value, ...)`, on one line if it is short.
fn block(out: &mut String, name: &str, entries: &[(String, String)]) {
    if entries.is_empty() {
        return;
    }
    let entries: Vec<String> = entries.iter().map(|(k, v)| format!("{k}: {v}")).collect();
    let line = entries.join(", ");
    if line.len() <= 80 {
        let _ = write!(out, ",\n            {name}: ({line})");
    } else {
        let _ = write!(
            out,
            ",\n            {name}: (\n                {},\n            )",
            entries.join(",\n                ")
        );
    }
}
