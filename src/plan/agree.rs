//! What nodes must agree in and none of them can see alone: encoders that fit the network, one guidance for all passes that
//! are compared.

use std::collections::HashMap;

use prefgraph_ops::{Part, Toy, ports::BackboneShape};

use super::{PlanError, Variant};
use crate::graph::{Endpoint, Graph, Node, NodeId};

/// Check all of it.
pub(super) fn check(graph: &Graph, variant: &Variant) -> Result<(), PlanError> {
    let parts: Vec<(NodeId, &Node, Part)> =
        graph.nodes().map(|(id, node)| (id, node, node.op.part())).collect();
    encoders(graph, variant, &parts)?;
    guidance(graph, &parts)
}

/// Is one of its inputs a network of FLUX.1's widths?
fn reads_flux1(graph: &Graph, variant: &Variant, node: &Node) -> bool {
    let published = |from: &Endpoint| {
        let shape = variant.shape(graph, *from);
        shape.get::<BackboneShape>().is_some_and(|b| b.layout().has_the_widths_of_flux1())
    };
    node.wires.iter().flatten().any(published)
}

/// A network of FLUX.1's widths neither reads nor feeds a toy.
fn encoders(graph: &Graph, variant: &Variant, parts: &[(NodeId, &Node, Part)]) -> Result<(), PlanError> {
    if !parts.iter().any(|(.., part)| matches!(part, Part::Toy(_))) {
        return Ok(());
    }
    let network: Vec<bool> = parts.iter().map(|(_, node, _)| reads_flux1(graph, variant, node)).collect();
    let Some(reader) = network.iter().position(|reads| *reads) else { return Ok(()) };
    // Nodes stand in an order in which each comes after all that it reads.
    let (mut feeds, mut fed) = (network.clone(), network);
    for (id, node, _) in parts.iter().rev() {
        if feeds[id.index()] {
            node.wires.iter().flatten().for_each(|from| feeds[from.node.index()] = true);
        }
    }
    for (id, node, _) in parts {
        fed[id.index()] |= node.wires.iter().flatten().any(|from| fed[from.node.index()]);
    }
    let toys: Vec<(NodeId, &str, &Toy)> = parts
        .iter()
        .filter(|(id, ..)| feeds[id.index()] || fed[id.index()])
        .filter_map(|(id, node, part)| match part {
            Part::Toy(toy) => Some((*id, node.id.as_str(), toy)),
            _ => None,
        })
        .collect();
    let Some((first, ..)) = toys.first() else { return Ok(()) };
    Err(PlanError::new(graph, *first, refusal(&toys, &parts[reader].1.id)))
}

/// All toys in one message: whoever mends one has to mend the others, too. What to set is said for the first of each kind,
/// which others usually refer to.
fn refusal(toys: &[(NodeId, &str, &Toy)], reader: &str) -> String {
    let chosen: Vec<String> =
        toys.iter().map(|(_, id, toy)| format!("`{id}` (`{}`)", toy.chosen_by)).collect();
    let mut instead = Vec::new();
    for (at, (_, id, toy)) in toys.iter().enumerate() {
        if toys[..at].iter().all(|(.., other)| other.chosen_by != toy.chosen_by) {
            instead.extend(toy.instead.iter().map(|setting| format!("--set {id}.{setting}")));
        }
    }
    let allowed: Vec<String> = toys.iter().map(|(_, id, _)| format!("--set {id}.allow_toy=true")).collect();
    format!(
        "the network that `{reader}` reads has FLUX.1's widths and was trained with FLUX's own encoders; with a fixed \
         transform or hashed words in their place it would learn from noise. This concerns {}. Set\n  {}\nand the same where \
         a node does not refer to these; or, if toys are what you want,\n  {}",
        chosen.join(", "),
        instead.join(" "),
        allowed.join(" "),
    )
}

/// Passes over the same noised latents have the same guidance: a policy that is compared with a reference under another one
/// differs from it before anything is learned.
fn guidance(graph: &Graph, parts: &[(NodeId, &Node, Part)]) -> Result<(), PlanError> {
    let mut first: HashMap<Endpoint, (&Node, Option<f64>)> = HashMap::new();
    for (id, node, part) in parts {
        let Part::Pass { guidance } = part else { continue };
        let Some(input) = node.inputs.iter().position(|i| i.name == "x_t") else { continue };
        let Some(&latents) = node.wires[input].first() else { continue };
        let (other, stated) = *first.entry(latents).or_insert((node, *guidance));
        if stated != *guidance {
            let said = |g: Option<f64>| g.map_or("none".to_owned(), |g| format!("guidance {g}"));
            let message = format!(
                "it has {}, but `{}` has {} for the same latents `{}`: their predictions are compared, so they need one \
                 guidance, as in `guidance: \"@{}.guidance\"`",
                said(*guidance),
                other.id,
                said(stated),
                graph.path(latents),
                other.id
            );
            return Err(PlanError::new(graph, *id, message));
        }
    }
    Ok(())
}
