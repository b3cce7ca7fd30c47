//! What the coordinator is told, by the runner and by the lanes.

use std::{collections::BTreeMap, sync::Arc};

use crossbeam_channel::Sender;
use prefgraph_ops::Value;

use super::{RunError, StepOutput, work::Done};
use crate::{graph::Endpoint, plan::Plan};

/// The answer to a request for a step.
pub(super) type Answer = Result<(StepOutput, Option<Arc<Plan>>), RunError>;

/// A message to the coordinator.
pub(super) enum Message {
    /// Run the next step.
    Step(Sender<Answer>),
    /// From a lane.
    Done(Done),
    /// Nothing is to run beyond this step.
    Last(Option<u64>),
    /// Keep this to the end of every step.
    Keep(Endpoint),
    /// The values of all cells; empty before the first step.
    Cells(Sender<BTreeMap<Endpoint, Value>>),
    /// Start again at this step with these cells.
    Restore(u64, BTreeMap<Endpoint, Value>),
    Stop,
}
