//! `graph-run ops`: the operators, with ports, settings and metrics.

use prefgraph_ops::Arity;

use super::{Failure, system};
use crate::{
    registry::{Entry, Registry},
    spec::unknown_operator,
};

/// List all operators, or show one.
pub(super) fn ops(name: Option<&str>, registry: &Registry) -> Result<u8, Failure> {
    let text = match name {
        None => list(registry),
        Some(name) => match registry.get(name) {
            Some(entry) => show(entry),
            None => return Err(Failure::new(unknown_operator(name, registry))),
        },
    };
    system::print(&text)?;
    Ok(0)
}

fn list(registry: &Registry) -> String {
    let width = registry.iter().map(|e| e.name.len()).max().unwrap_or(0);
    registry.iter().map(|e| format!("{:<width$}  {}\n", e.name, first_sentence(e.doc))).collect()
}

fn first_sentence(doc: &str) -> String {
    let doc = one_line(doc);
    // A reference to an equation does not end a sentence, and an example does not, either.
    let end = doc
        .match_indices(". ")
        .find(|(at, _)| !["Eq", "e.g", "i.e"].iter().any(|short| doc[..*at].ends_with(short)));
    end.map_or(doc.trim_end_matches('.'), |(at, _)| &doc[..at]).to_owned()
}

fn one_line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn show(entry: &Entry) -> String {
    let mut text = format!("{}\n\n{}\n", entry.name, one_line(entry.doc));
    let inputs = entry.inputs.iter().map(|i| {
        let arity = match i.arity {
            Arity::One => "",
            Arity::Optional => "may be left out",
            Arity::Many => "any number",
        };
        [i.name.to_owned(), i.ty.to_string(), arity.to_owned()]
    });
    table(&mut text, "inputs", inputs.collect());
    let outputs = entry.outputs.iter().map(|o| {
        let gradient = if o.ty.differentiable { "" } else { "no gradient" };
        [o.name.to_owned(), o.ty.to_string(), gradient.to_owned()]
    });
    table(&mut text, "outputs", outputs.collect());
    let settings = entry
        .settings
        .iter()
        .map(|s| [format!("{}: {}", s.doc.name, s.default), s.doc.kind.clone(), one_line(s.doc.doc)]);
    table(&mut text, "settings, with their defaults", settings.collect());
    let metrics = entry.metrics.iter();
    let metrics = metrics.map(|m| [m.name.to_owned(), m.kind.describe().to_owned(), one_line(m.doc)]);
    table(&mut text, "metrics, as metrics.jsonl has them", metrics.collect());
    text
}

fn table(text: &mut String, title: &str, rows: Vec<[String; 3]>) {
    if rows.is_empty() {
        return;
    }
    *text += &format!("\n{title}\n");
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0).min(40);
    let widths = [width(0), width(1)];
    for [a, b, c] in &rows {
        let line = format!("  {a:<w0$}  {b:<w1$}  {c}", w0 = widths[0], w1 = widths[1]);
        *text += line.trim_end();
        text.push('\n');
    }
}
