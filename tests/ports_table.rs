//! The table of ports in the documentation of the operators is what the operators say.

use std::{fmt::Write, fs, path::Path};

use prefgraph::Registry;
use prefgraph_ops::Arity;

fn table() -> String {
    let mut table = String::from("| operator | inputs | outputs |\n|---|---|---|\n");
    for entry in Registry::standard().iter() {
        let inputs = entry.inputs.iter().map(|input| {
            let wires = match input.arity {
                Arity::One => "",
                Arity::Optional => "?",
                Arity::Many => "...",
            };
            format!("`{}{wires}: {}`", input.name, input.ty)
        });
        let outputs = entry.outputs.iter().map(|output| format!("`{}: {}`", output.name, output.ty));
        let (inputs, outputs) = (inputs.collect::<Vec<_>>(), outputs.collect::<Vec<_>>());
        writeln!(table, "| `{}` | {} | {} |", entry.name, inputs.join("<br>"), outputs.join("<br>"))
            .expect("a string takes any text");
    }
    table
}

#[test]
fn the_documentation_lists_the_ports_of_every_operator_as_they_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/src/operators/ports.md");
    let text = fs::read_to_string(&path).expect("a table");
    let start = text.find("| operator |").expect("a table");
    let current = format!("{}{}", &text[..start], table());
    if std::env::var_os("PREFGRAPH_WRITE_PORTS").is_some() {
        fs::write(&path, current).expect("written");
    } else {
        assert!(text == current, "ports have changed: PREFGRAPH_WRITE_PORTS=1 cargo test --test ports_table");
    }
}
