//! Measurements: what a step has found of pairs that are not trained on.

use std::sync::Arc;

use prefgraph_nn::{Adapter, lora::AdapterFormat};

use crate::{choices, ports::time::Process};

choices! {
    /// Which measurement is the best. None is whose winners have a larger error than the frozen network's, under the mask or over the
    /// whole picture.
    pub enum Criterion {
        /// The lowest loss.
        Loss = "loss",
        /// The lowest error on the winners.
        Winner = "winner",
    }
}

/// A pair, as one step has measured it.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredPair {
    /// Its id.
    pub id: String,
    /// The time at which it was measured, on the scale of the process.
    pub time: f32,
    /// What was found, by name.
    pub figures: Vec<(String, f64)>,
}

/// The pairs that one step has measured, of a set that takes several steps.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// Written before every name, with a dot.
    pub prefix: String,
    /// The scale of the times.
    pub process: Process,
    /// Levels of noise that figures are given by; 0 is none.
    pub levels: usize,
    /// The pairs of this step.
    pub pairs: Arc<[MeasuredPair]>,
    /// Steps that measure all pairs.
    pub over: u64,
    /// Is this step the last of them?
    pub ends: bool,
    /// What is kept of the best measurement.
    pub best: Option<Candidate>,
}

/// An adapter that is kept if its measurement is the best so far.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// As the step leaves it.
    pub adapter: Adapter,
    /// What is best.
    pub criterion: Criterion,
    /// A file for each.
    pub formats: Vec<AdapterFormat>,
}
