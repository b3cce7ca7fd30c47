//! Errors of a run.

use prefgraph_ops::OpError;

/// A run that cannot go on from here. The cells are those of the last step that finished.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// An operator failed.
    #[error("step {step}: {direction} of node `{node}` (`{op}`) failed: {source}")]
    Node {
        /// The step that it belongs to.
        step: u64,
        /// `forward` or `backward`.
        direction: &'static str,
        /// Id of the node.
        node: String,
        /// Its operator.
        op: String,
        /// What it said.
        source: OpError,
    },
    /// A cell whose device has failed.
    #[error("cell `{cell}` cannot be saved: {source}")]
    Save {
        /// Its key: the id of the node, or `node.port`.
        cell: String,
        /// What the device said.
        source: OpError,
    },
    /// A saved state that is not one of this graph.
    #[error("cell `{cell}` cannot be restored: {source}")]
    Restore {
        /// Its key: the id of the node, or `node.port`.
        cell: String,
        /// What is wrong.
        source: OpError,
    },
    /// A value that no step has.
    #[error("`{path}` cannot be kept: {reason}")]
    Keep {
        /// Path of the endpoint.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// The operating system gives no thread.
    #[error("no thread for {name}: {reason}")]
    Thread {
        /// What it was to be.
        name: String,
        /// What the system said.
        reason: String,
    },
    /// A plan of another graph.
    #[error("the plan is of another graph: it has {planned} nodes, the graph {nodes}")]
    Plan {
        /// Nodes of the plan.
        planned: usize,
        /// Nodes of the graph.
        nodes: usize,
    },
    /// A defect of this library.
    #[error("internal error, please report it: the coordinator of the run has stopped")]
    Stopped,
}
