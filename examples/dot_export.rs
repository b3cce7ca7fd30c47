//! Print the plan of a recipe as DOT, from Rust.
//!
//!     cargo run --example dot_export | dot -Tsvg > focusdpo.svg

use std::{error::Error, io::Write, path::Path};

use prefgraph::{Plan, PlanOptions, Registry, spec};

fn main() -> Result<(), Box<dyn Error>> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/focusdpo.ron");
    let graph = spec::load(&recipe, &[], &Registry::standard())?.graph;
    let plan = Plan::new(&graph, &PlanOptions::default())?;
    write!(std::io::stdout(), "{}", plan.to_dot(&graph))?;
    Ok(())
}
