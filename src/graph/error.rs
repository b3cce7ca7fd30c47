//! Errors of building a graph. They use names, not numbers, because the reader wrote names.

use prefgraph_ops::Arity;

/// A connection that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An id that could not be told from a path or an expression.
    #[error(
        "`{id}` cannot be the id of a node: lower-case letters, digits, `_` and `-` can, e.g. `{suggestion}`"
    )]
    Id {
        /// As given.
        id: String,
        /// The same with what is not allowed replaced.
        suggestion: String,
    },
    /// Two nodes of the same id.
    #[error("node `{id}` is defined twice; ids are unique in a graph")]
    Duplicate {
        /// Of both.
        id: String,
    },
    /// Too few or too many inputs.
    #[error("node `{node}` (`{op}`) takes {} inputs ({}), got {got}", .expected.len(), .expected.join(", "))]
    Inputs {
        /// The node that was to be added.
        node: String,
        /// Its operator.
        op: String,
        /// Names of the inputs.
        expected: Vec<&'static str>,
        /// How many were given.
        got: usize,
    },
    /// Too few or too many wires at one input.
    #[error("input `{input}` of node `{node}` (`{op}`) takes {}, got {got}", wires(*.arity))]
    Arity {
        /// The node that was to be added.
        node: String,
        /// Its operator.
        op: String,
        /// Name of the input.
        input: &'static str,
        /// What it takes.
        arity: Arity,
        /// How many were given.
        got: usize,
    },
    /// A wire between ports of different types.
    #[error("input `{input}` of node `{node}` (`{op}`) takes {expected}, but `{from}` carries {found}")]
    Mismatch {
        /// The node that was to be added.
        node: String,
        /// Its operator.
        op: String,
        /// Name of the input.
        input: &'static str,
        /// Path of the output.
        from: String,
        /// What the input takes.
        expected: Box<str>,
        /// What the output carries.
        found: Box<str>,
    },
    /// The cotangent of a discrete port.
    #[error("`{from}` does not exist: the port carries {found}, and that has no derivative")]
    Discrete {
        /// Path of the cotangent.
        from: String,
        /// What the output carries.
        found: String,
    },
    /// No node of that id.
    #[error("there is no node `{id}`{}", among("the graph has", .known))]
    UnknownNode {
        /// As given.
        id: String,
        /// Ids of all nodes, nearest first.
        known: Vec<String>,
    },
    /// No output of that name.
    #[error("node `{node}` (`{op}`) has no output `{port}`{}", among("it has", .known))]
    UnknownPort {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// As given.
        port: String,
        /// Names of its outputs.
        known: Vec<String>,
    },
    /// A node where one of its several outputs had to be named.
    #[error("node `{node}` (`{op}`) has {} outputs, say which: {}", .known.len(), paths(.node, .known))]
    WhichPort {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// Names of its outputs.
        known: Vec<String>,
    },
    /// An endpoint of another graph.
    #[error("output {port} of node number {node} is not in this graph, which has {nodes} nodes")]
    Foreign {
        /// Number of the node.
        node: usize,
        /// Index of the output.
        port: usize,
        /// Nodes of this graph.
        nodes: usize,
    },
    /// A port that was asked for at another type.
    #[error("`{path}` carries {found}, not {expected}")]
    WireType {
        /// The path.
        path: String,
        /// What was asked for.
        expected: String,
        /// What it carries.
        found: String,
    },
    /// A loss that is not one number.
    #[error("the loss must carry f32[], one number, but `{from}` carries {found}")]
    Loss {
        /// Path of the output.
        from: String,
        /// What it carries.
        found: String,
    },
    /// A cell of a kind that cannot be saved.
    #[error(
        "`{cell}` cannot be carried to the next step: {found} has no form in a checkpoint; tensors, adapters and moments \
         have one"
    )]
    NotCarried {
        /// Path of the cell.
        cell: String,
        /// What it carries.
        found: String,
    },
    /// A carry that changes the type of its cell.
    #[error("cell `{cell}` holds {expected}, but `{from}`, its next value, carries {found}")]
    Carry {
        /// Path of the cell.
        cell: String,
        /// Path of the next value.
        from: String,
        /// What the cell holds.
        expected: String,
        /// What the next value is.
        found: String,
    },
    /// A cell whose next value is itself.
    #[error(
        "cell `{cell}` is carried from itself: it would never change. Carry it from the node that makes its next value, as `update.adapter` is that of an adapter"
    )]
    CarriesItself {
        /// Path of the cell.
        cell: String,
    },
    /// A cell with two next values.
    #[error("cell `{cell}` is carried twice: from `{first}` and from `{second}`")]
    CarriedTwice {
        /// Path of the cell.
        cell: String,
        /// The next value that it has.
        first: String,
        /// The one too many.
        second: String,
    },
}

fn wires(arity: Arity) -> &'static str {
    match arity {
        Arity::One => "exactly one wire",
        Arity::Optional => "one wire or none",
        Arity::Many => "any number of wires",
    }
}

/// At most eight names: a list that nobody reads helps nobody.
fn among(intro: &str, known: &[String]) -> String {
    match known {
        [] => String::new(),
        known if known.len() > 8 => {
            format!("; {intro} {} and {} more", known[..8].join(", "), known.len() - 8)
        }
        known => format!("; {intro} {}", known.join(", ")),
    }
}

fn paths(node: &str, ports: &[String]) -> String {
    ports.iter().map(|port| format!("`{node}.{port}`")).collect::<Vec<_>>().join(", ")
}
