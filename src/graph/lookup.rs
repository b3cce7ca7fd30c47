//! Finding nodes and ports by name, and naming them.

use std::ops::Index;

use prefgraph_ops::{Port, PortType};

use super::{Endpoint, Graph, GraphError, Node, NodeId, Path, Tap, Wire};

impl Graph {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Has it no nodes?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes, in the order in which they were added; a producer comes before its readers.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.dag.node_indices().zip(self.dag.node_weights())
    }

    /// The node of that id.
    ///
    /// # Errors
    /// If there is none; the message lists those there are, nearest first.
    pub fn find(&self, id: &str) -> Result<NodeId, GraphError> {
        self.by_id.get(id).copied().ok_or_else(|| {
            let mut known: Vec<String> = self.dag.node_weights().map(|n| n.id.clone()).collect();
            known.sort_by_cached_key(|name| strsim::osa_distance(id, name));
            GraphError::UnknownNode { id: id.into(), known }
        })
    }

    /// What a path names: `node.port`, or `node` where there is one output; `grad:` before it is its cotangent.
    ///
    /// # Errors
    /// If there is no such node or output, or one of several outputs had to be named.
    pub fn endpoint(&self, path: &str) -> Result<Endpoint, GraphError> {
        let Path { tap, id, port, .. } = Path::parse(path);
        let node = self.find(id)?;
        let outputs = &self[node].outputs;
        let known = || outputs.iter().map(|o| o.name.to_owned()).collect();
        let op = || self[node].op.name().to_owned();
        let port = match port {
            Some(port) => outputs.iter().position(|o| o.name == port).ok_or_else(|| {
                GraphError::UnknownPort { node: id.into(), op: op(), port: port.into(), known: known() }
            })?,
            None if outputs.len() == 1 => 0,
            None => return Err(GraphError::WhichPort { node: id.into(), op: op(), known: known() }),
        };
        Ok(Endpoint { node, port, tap })
    }

    /// A typed wire to the port that a path names, e.g. to read a graph file's ports from Rust. `P` is the port's type
    /// with its role: what a wire says of itself is what the graph knows of it.
    ///
    /// # Errors
    /// As [`endpoint`](Self::endpoint), or if the port carries another type or role, or the path names a cotangent.
    pub fn wire<P: Port>(&self, path: &str) -> Result<Wire<P>, GraphError> {
        let at = self.endpoint(path)?;
        let (found, expected) = (self.port_type(at)?, PortType::of::<P>());
        if at.tap == Tap::Cotangent || *found != expected {
            let (expected, found) = (expected.to_string(), super::carried(at, found));
            return Err(GraphError::WireType { path: path.into(), expected, found });
        }
        Ok(Wire::new(at))
    }

    /// The path of an endpoint: what [`endpoint`](Self::endpoint) finds.
    pub fn path(&self, at: Endpoint) -> String {
        let node = &self[at.node];
        let grad = if at.tap == Tap::Cotangent { "grad:" } else { "" };
        if node.outputs.len() == 1 {
            format!("{grad}{}", node.id)
        } else {
            format!("{grad}{}.{}", node.id, node.outputs[at.port].name)
        }
    }

    /// The type of the port of an endpoint; of the value, also where the cotangent is read.
    ///
    /// # Errors
    /// If the endpoint is of another graph.
    pub fn port_type(&self, at: Endpoint) -> Result<&PortType, GraphError> {
        let output = self.dag.node_weight(at.node).and_then(|node| node.outputs.get(at.port));
        output.map(|o| &o.ty).ok_or_else(|| GraphError::Foreign {
            node: at.node.index(),
            port: at.port,
            nodes: self.len(),
        })
    }

    /// Is this node a cell: are its outputs carried from step to step?
    pub fn is_cell(&self, node: NodeId) -> bool {
        self.by_cell.range(Endpoint::value(node, 0)..).next().is_some_and(|(cell, _)| cell.node == node)
    }
}

impl Index<NodeId> for Graph {
    type Output = Node;

    fn index(&self, node: NodeId) -> &Node {
        &self.dag[node]
    }
}
