//! Errors of planning.

use crate::graph::{Graph, NodeId};

/// A graph that cannot run, and the node to look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node `{node}` (`{op}`){}: {message}", .input.as_ref().map_or(String::new(), |i| format!(", input `{i}`")))]
pub struct PlanError {
    /// Id of the node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Name of the input at fault, if it is one.
    pub input: Option<String>,
    /// What is wrong, with both operands.
    pub message: String,
}

impl PlanError {
    pub(super) fn new(graph: &Graph, node: NodeId, message: impl Into<String>) -> Self {
        let at = &graph[node];
        Self { node: at.id.clone(), op: at.op.name().into(), input: None, message: message.into() }
    }

    pub(super) fn at_input(self, input: &str) -> Self {
        Self { input: Some(input.into()), ..self }
    }
}
