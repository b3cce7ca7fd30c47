//! Handles on output ports, erased and typed.

use std::{fmt, marker::PhantomData};

use petgraph::graph::NodeIndex;
use prefgraph_ops::{Grad, Port};

/// A node of one graph; nodes are numbered in the order in which they were added.
pub type NodeId = NodeIndex<u32>;

/// What is read from an output port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tap {
    /// The value that forward computed.
    Value,
    /// The derivative of the loss by that value; there is one once backward has run.
    Cotangent,
}

/// An output port, and what is read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Producer.
    pub node: NodeId,
    /// Index of the output.
    pub port: usize,
    /// What is read.
    pub tap: Tap,
}

impl Endpoint {
    /// The value of an output.
    pub fn value(node: NodeId, port: usize) -> Self {
        Self { node, port, tap: Tap::Value }
    }

    /// The cotangent of an output.
    pub fn cotangent(node: NodeId, port: usize) -> Self {
        Self { node, port, tap: Tap::Cotangent }
    }
}

/// A typed handle on an output port. In Rust it is the only way to connect two operators, so a graph with a shape
/// error in constant axes does not compile.
pub struct Wire<P> {
    endpoint: Endpoint,
    port: PhantomData<fn() -> P>,
}

impl<P> Clone for Wire<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Wire<P> {}

impl<P: Port> fmt::Debug for Wire<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} of output {} of node {}",
            self.endpoint.tap,
            self.endpoint.port,
            self.endpoint.node.index()
        )?;
        write!(f, ": {}", P::label())
    }
}

impl<P> Wire<P> {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, port: PhantomData }
    }

    /// Forget the type.
    pub fn endpoint(self) -> Endpoint {
        self.endpoint
    }
}

impl<P: Port> Wire<P> {
    /// The derivative of the loss by this port, for operators that update.
    pub fn cotangent(self) -> Wire<Grad<P>> {
        Wire::new(Endpoint { tap: Tap::Cotangent, ..self.endpoint })
    }
}
