//! A task on its way to a lane, and its result on the way back.

use std::time::Instant;

use prefgraph_ops::{OpError, Value, operator::Residuals};

use crate::plan::{Task, TaskId};

/// One task with everything it reads.
pub(super) struct Work {
    pub epoch: u64,
    pub step: u64,
    pub id: TaskId,
    pub task: Task,
    pub job: Job,
}

pub(super) enum Job {
    /// One entry a wire; `None` is a cotangent that is zero.
    Forward(Vec<Vec<Option<Value>>>),
    /// What forward kept, where the operator is called; for every output the cotangents that came, in the order of
    /// the wires.
    Backward(Option<Residuals>, Vec<Vec<Value>>),
}

pub(super) enum Product {
    Forward {
        outputs: Vec<Value>,
        saved: Option<Residuals>,
    },
    Backward {
        /// For every output, the sum of its cotangents.
        sums: Vec<Option<Value>>,
        /// For every input, one entry a wire; empty if none is wanted.
        to_inputs: Vec<Vec<Option<Value>>>,
    },
}

/// How a task went.
pub(super) struct Done {
    pub lane: usize,
    pub epoch: u64,
    pub step: u64,
    pub id: TaskId,
    pub started: Instant,
    pub seconds: f64,
    pub result: Result<Product, OpError>,
}
