//! Turns names of nodes and ports into wires of a [`Graph`].

use std::collections::HashMap;

use prefgraph_ops::{Arity, InputSpec, OutputSpec, PortType};

use super::{
    merge::Merged,
    nearest::advice,
    parse::Wiring,
    source::{At, Sources, Span, SpecError},
};
use crate::{
    graph::{Endpoint, Graph, NodeId, Path, Tap},
    registry::Built,
};

/// One wire as stated: output `port` of node `node`, by indices of the file.
#[derive(Clone, Copy)]
struct Wire<'a> {
    node: usize,
    port: usize,
    tap: Tap,
    at: &'a At<String>,
}

struct Wirer<'a> {
    sources: &'a Sources,
    merged: &'a Merged,
    index: HashMap<&'a str, usize>,
    inputs: Vec<Vec<InputSpec>>,
    outputs: Vec<Vec<OutputSpec>>,
}

/// The graph of these operators; nodes may stand in the file in any order.
pub(super) fn wire(sources: &Sources, merged: &Merged, built: Vec<Built>) -> Result<Graph, Box<SpecError>> {
    let wirer = Wirer {
        sources,
        merged,
        index: merged.nodes.iter().enumerate().map(|(i, n)| (n.id.value.as_str(), i)).collect(),
        inputs: built.iter().map(|b| b.op.inputs()).collect(),
        outputs: built.iter().map(|b| b.op.outputs()).collect(),
    };
    let wires = (0..merged.nodes.len()).map(|n| wirer.inputs_of(n)).collect::<Result<Vec<_>, _>>()?;
    let order = wirer.order(&wires)?;
    let mut ops: Vec<_> = built.into_iter().map(|b| Some(b.op)).collect();
    let mut ids: Vec<Option<NodeId>> = vec![None; ops.len()];
    let mut graph = Graph::new(&merged.name.value);
    let internal = || SpecError::nowhere("internal error, please report it: a node is out of order");
    for node in order {
        let at = &merged.nodes[node].id;
        let endpoint = |w: &Wire<'_>| {
            let node = ids[w.node].ok_or_else(internal)?;
            Ok::<_, Box<SpecError>>(Endpoint { node, port: w.port, tap: w.tap })
        };
        let inputs = wires[node].iter().map(|ws| ws.iter().map(endpoint).collect::<Result<Vec<_>, _>>());
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let op = ops[node].take().ok_or_else(internal)?;
        let id = graph.insert(&at.value, op, &inputs);
        ids[node] = Some(id.map_err(|e| sources.error(e.to_string(), at.span, "this node"))?);
    }
    let endpoint = |at| {
        let wire = wirer.endpoint(at)?;
        let node = ids[wire.node].ok_or_else(internal)?;
        Ok::<_, Box<SpecError>>(Endpoint { node, port: wire.port, tap: wire.tap })
    };
    if let Some(loss) = &merged.loss {
        let error = |e: crate::GraphError| sources.error(e.to_string(), loss.span, "the loss");
        graph.set_loss_at(endpoint(loss)?).map_err(error)?;
    }
    for (cell, next) in &merged.carry {
        graph.carry_at(endpoint(cell)?, endpoint(next)?).map_err(|e| {
            let error = sources.error(e.to_string(), cell.span, "this cell");
            sources.also(error, next.span, "its next value")
        })?;
    }
    Ok(graph)
}

impl<'a> Wirer<'a> {
    /// The wires of every input of a node, in the operator's order.
    fn inputs_of(&self, node: usize) -> Result<Vec<Vec<Wire<'a>>>, Box<SpecError>> {
        let (spec, specs) = (&self.merged.nodes[node], &self.inputs[node]);
        let op = spec.op.as_ref().map_or("", |op| op.value.as_str());
        for (name, _) in &spec.inputs {
            if !specs.iter().any(|s| s.name == name.value) {
                let message = format!("`{op}` has no input `{}`", name.value);
                let help = advice("inputs", &name.value, specs.iter().map(|s| s.name));
                return Err(self.sources.error(message, name.span, "not an input").help(help));
            }
        }
        specs.iter().map(|s| self.input(node, op, s)).collect()
    }

    fn input(&self, node: usize, op: &str, spec: &InputSpec) -> Result<Vec<Wire<'a>>, Box<SpecError>> {
        let stated = &self.merged.nodes[node];
        let wiring = stated.inputs.iter().find(|(name, _)| name.value == spec.name);
        let missing = |span: Span, label: &str| {
            let message = format!("node `{}` (`{op}`) needs its input `{}`", stated.id.value, spec.name);
            let fitting = self.fitting(spec, node);
            self.sources.error(message, span, label).help(match &fitting[..] {
                [] => format!("it takes {}, and no node of this graph gives that", spec.ty),
                some => format!("it takes {}, which {} give", spec.ty, some.join(", ")),
            })
        };
        let wires: Vec<&At<String>> = match wiring {
            None | Some((_, Wiring::Nothing(_))) if spec.arity != Arity::One => Vec::new(),
            None => return Err(missing(stated.op.as_ref().map_or(stated.id.span, |o| o.span), "needs it")),
            Some((_, Wiring::Nothing(span))) => return Err(missing(*span, "not optional")),
            Some((_, Wiring::One(path))) => vec![path],
            Some((_, Wiring::List(paths, _))) if spec.arity == Arity::Many => paths.iter().collect(),
            Some((_, Wiring::List(paths, _))) if paths.len() == 1 => vec![&paths[0]],
            Some((_, Wiring::List(_, span))) => {
                let message = format!("input `{}` of `{op}` takes one wire, not a list", spec.name);
                return Err(self.sources.error(message, *span, "a list"));
            }
        };
        wires.into_iter().map(|at| self.checked(self.endpoint(at)?, node, op, spec)).collect()
    }

    /// What a path means: `node`, `node.port` or `grad:node.port`.
    fn endpoint(&self, at: &'a At<String>) -> Result<Wire<'a>, Box<SpecError>> {
        let path = at.value.as_str();
        let Path { tap, id, id_at, port } = Path::parse(path);
        let id_at = at.span.part(path, id_at..id_at + id.len());
        let Some(&node) = self.index.get(id) else {
            let error = self.sources.error(format!("there is no node `{id}`"), id_at, "not a node");
            return Err(match self.merged.removed.iter().find(|r| r.value == id) {
                Some(removed) => self.sources.also(error, removed.span, "it was removed here"),
                None => error.help(advice("nodes", id, self.merged.ids())),
            });
        };
        let outputs = &self.outputs[node];
        let found = match port {
            None if outputs.len() == 1 => Some(0),
            None => None,
            Some(port) => outputs.iter().position(|o| o.name == port),
        };
        let op = self.merged.nodes[node].op.as_ref().map_or("", |op| op.value.as_str());
        let port = found.ok_or_else(|| match port {
            Some(port) => {
                let span = at.span.part(path, path.len() - port.len()..path.len());
                let message = format!("node `{id}` (`{op}`) has no output `{port}`");
                let help = advice("outputs", port, outputs.iter().map(|o| o.name));
                self.sources.error(message, span, "not an output").help(help)
            }
            None => {
                let all: Vec<String> = outputs.iter().map(|o| format!("`{id}.{}`", o.name)).collect();
                let message = format!("node `{id}` (`{op}`) has {} outputs", outputs.len());
                self.sources
                    .error(message, id_at, "which one?")
                    .help(format!("name one of {}", all.join(", ")))
            }
        })?;
        Ok(Wire { node, port, tap, at })
    }

    /// The wire, if its type is what the input takes.
    fn checked(
        &self,
        wire: Wire<'a>,
        node: usize,
        op: &str,
        input: &InputSpec,
    ) -> Result<Wire<'a>, Box<SpecError>> {
        let found = &self.outputs[wire.node][wire.port].ty;
        if wire.tap == Tap::Cotangent && !found.differentiable {
            let message = format!("`{}` does not exist: {found} has no derivative", wire.at.value);
            return Err(self.sources.error(message, wire.at.span, "not differentiable"));
        }
        if fits(found, wire.tap, &input.ty) {
            return Ok(wire);
        }
        let grad = if wire.tap == Tap::Cotangent { "grad " } else { "" };
        let message = format!(
            "input `{}` of node `{}` (`{op}`) takes {}, but `{}` carries {grad}{found}",
            input.name, self.merged.nodes[node].id.value, input.ty, wire.at.value
        );
        let error = self.sources.error(message, wire.at.span, format!("carries {grad}{found}"));
        let mut help = Vec::new();
        if found.differs_in_role(&input.ty) {
            help.push("the axes agree, the roles do not".to_owned());
        }
        let fitting = self.fitting(input, node);
        if !fitting.is_empty() {
            help.push(format!("{} would fit", fitting.join(", ")));
        }
        Err(if help.is_empty() { error } else { error.help(help.join("; ")) })
    }

    /// Some outputs that an input of `node` would take: those in its very role before those without one.
    fn fitting(&self, input: &InputSpec, node: usize) -> Vec<String> {
        let mut found = Vec::new();
        for (i, outputs) in self.outputs.iter().enumerate().filter(|(i, _)| *i != node) {
            for output in outputs {
                let id = &self.merged.nodes[i].id.value;
                let path = if outputs.len() == 1 { id.clone() } else { format!("{id}.{}", output.name) };
                for (tap, prefix) in [(Tap::Value, ""), (Tap::Cotangent, "grad:")] {
                    if fits(&output.ty, tap, &input.ty) {
                        found.push((output.ty.role != input.ty.role, format!("`{prefix}{path}`")));
                    }
                }
            }
        }
        found.sort_by_key(|(other_role, _)| *other_role);
        found.truncate(8);
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// An order in which every node comes after what it reads: that of the file, where that is one.
    fn order(&self, wires: &[Vec<Vec<Wire<'a>>>]) -> Result<Vec<usize>, Box<SpecError>> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let reads: Vec<Vec<Wire<'a>>> = wires.iter().map(|w| w.iter().flatten().copied().collect()).collect();
        let mut mark = vec![Mark::New; reads.len()];
        let mut order = Vec::with_capacity(reads.len());
        // A stack of its own: a chain of nodes may be longer than the thread's stack is deep.
        let mut stack: Vec<(usize, usize)> = Vec::new();
        for root in 0..reads.len() {
            if mark[root] != Mark::New {
                continue;
            }
            mark[root] = Mark::Open;
            stack.push((root, 0));
            while let Some((node, next)) = stack.last_mut() {
                let Some(wire) = reads[*node].get(*next) else {
                    mark[*node] = Mark::Done;
                    order.push(*node);
                    stack.pop();
                    continue;
                };
                *next += 1;
                match mark[wire.node] {
                    Mark::Done => {}
                    Mark::New => {
                        mark[wire.node] = Mark::Open;
                        stack.push((wire.node, 0));
                    }
                    Mark::Open => {
                        let start = stack.iter().position(|(n, _)| *n == wire.node).unwrap_or(0);
                        let around: Vec<&Wire<'a>> =
                            stack[start..].iter().map(|(n, next)| &reads[*n][next - 1]).collect();
                        return Err(self.cycle(wire.node, &around));
                    }
                }
            }
        }
        Ok(order)
    }

    fn cycle(&self, first: usize, around: &[&Wire<'a>]) -> Box<SpecError> {
        let id = |n: usize| format!("`{}`", self.merged.nodes[n].id.value);
        let names: Vec<String> =
            std::iter::once(first).chain(around.iter().map(|w| w.node)).map(id).collect();
        let message = format!("the graph has a cycle: {}", names.join(" reads "));
        let mut error = self.sources.error(message, around[0].at.span, "in the cycle");
        for wire in &around[1..] {
            error = self.sources.also(error, wire.at.span, "in the cycle");
        }
        error.help("state goes from one step to the next through `carry`, not through a wire")
    }
}

fn fits(found: &PortType, tap: Tap, input: &PortType) -> bool {
    match tap {
        Tap::Value => found.fits(input),
        Tap::Cotangent => found.differentiable && found.cotangent_fits(input),
    }
}
