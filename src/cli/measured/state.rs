//! What a checkpoint holds of the measurements of a node: numbers as their bits, so that none is rounded on the way.

use std::sync::Arc;

use prefgraph_nn::lora::AdapterFormat;
use prefgraph_ops::{
    NamedState,
    port::Carried,
    ports::{Criterion, MeasuredPair, Metric, Metrics},
};
use serde::{Deserialize, Serialize};

use super::{Best, Compared, Measured, Part, Point};
use crate::{
    checkpoint::Kept,
    cli::{Failure, trained::restored},
    graph::Graph,
    plan::Plan,
};

/// A number by its bits.
type Bits = u64;

#[derive(Serialize, Deserialize)]
struct State {
    subject: u64,
    count: u64,
    last: Option<PointState>,
    best: Option<BestState>,
    parts: Vec<PartState>,
}

#[derive(Serialize, Deserialize)]
struct PointState {
    made: u64,
    value: Bits,
}

#[derive(Serialize, Deserialize)]
struct BestState {
    at: PointState,
    criterion: Criterion,
    summary: Vec<(String, Bits)>,
    formats: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct PartState {
    step: u64,
    over: u64,
    pairs: Vec<PairState>,
}

#[derive(Serialize, Deserialize)]
struct PairState {
    id: String,
    time: u32,
    figures: Vec<(String, Bits)>,
}

impl From<Point> for PointState {
    fn from(point: Point) -> Self {
        Self { made: point.made, value: point.value.to_bits() }
    }
}

impl From<PointState> for Point {
    fn from(state: PointState) -> Self {
        Self { made: state.made, value: f64::from_bits(state.value) }
    }
}

fn to_bits<'a>(figures: impl IntoIterator<Item = (&'a String, f64)>) -> Vec<(String, Bits)> {
    figures.into_iter().map(|(name, value)| (name.clone(), value.to_bits())).collect()
}

fn from_bits(figures: Vec<(String, Bits)>) -> Vec<(String, f64)> {
    figures.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))).collect()
}

fn fault(node: &str, e: impl std::fmt::Display) -> Failure {
    Failure::new(format!("what the checkpoint remembers of `{node}` is of no use: {e}"))
}

/// What a checkpoint remembers of a node that measures other pairs from now on: no part of a measurement, and of those that were compared
/// what the best was, which the next one is not compared with.
///
/// # Errors
/// If it is of no use.
pub(in crate::cli) fn of_other_pairs(node: &str, text: &str) -> Result<String, Failure> {
    let state: State = serde_json::from_str(text).map_err(|e| fault(node, e))?;
    // Another one each time, however often it is asked for: a generator of period 2^64.
    let subject = state.subject.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let other = State { subject, parts: Vec::new(), ..state };
    serde_json::to_string(&other).map_err(|e| fault(node, e))
}

impl Measured {
    /// After so many steps; nothing if nothing was measured. The tensors are those of the best adapter.
    pub(super) fn kept(&self, made: u64) -> Result<Option<Kept>, String> {
        let Compared { subject, count, last, best } = &self.compared;
        let part = |part: &Part| PartState {
            step: part.step,
            over: part.over,
            pairs: part
                .pairs
                .iter()
                .map(|pair| PairState {
                    id: pair.id.clone(),
                    time: pair.time.to_bits(),
                    figures: to_bits(pair.figures.iter().map(|(name, value)| (name, *value))),
                })
                .collect(),
        };
        // The next step is number `made`: what no measurement from then on has a use for is forgotten.
        let parts: Vec<PartState> = self.parts.iter().filter(|p| p.step + p.over > made).map(part).collect();
        if parts.is_empty() && *count == 0 {
            return Ok(None);
        }
        let number = |(name, metric): &'_ (String, Metric)| match metric {
            Metric::Number(value) => Some((name.clone(), value.to_bits())),
            _ => None,
        };
        let state = State {
            subject: *subject,
            count: *count,
            last: last.map(PointState::from),
            best: best.as_ref().map(|best| BestState {
                at: best.at.into(),
                criterion: best.criterion,
                summary: best.summary.0.iter().filter_map(number).collect(),
                formats: best.formats.iter().map(|format| format.name().to_owned()).collect(),
            }),
            parts,
        };
        let text = serde_json::to_string(&state).map_err(|e| e.to_string())?;
        let tensors = match best {
            Some(best) => best.adapter.save().map_err(|e| e.to_string())?.tensors,
            None => Vec::new(),
        };
        Ok(Some(Kept { tensors, text }))
    }

    /// Go on from it.
    pub(super) fn recall(
        &mut self,
        node: &str,
        graph: &Graph,
        plan: &Plan,
        kept: &Kept,
    ) -> Result<(), Failure> {
        let fault = |e: String| fault(node, e);
        let State { subject, count, last, best, parts } =
            serde_json::from_str(&kept.text).map_err(|e| fault(e.to_string()))?;
        let part = |part: PartState| {
            let pair = |pair: PairState| MeasuredPair {
                id: pair.id,
                time: f32::from_bits(pair.time),
                figures: from_bits(pair.figures),
            };
            let pairs: Arc<[MeasuredPair]> = part.pairs.into_iter().map(pair).collect();
            Part { step: part.step, over: part.over, pairs }
        };
        self.parts = parts.into_iter().map(part).collect();
        let Some(at) = self.adapter else { return Ok(()) };
        let best = match best {
            Some(best) => {
                let state = NamedState { tensors: kept.tensors.clone(), counters: Vec::new() };
                let number = |(name, value)| (name, Metric::Number(value));
                Some(Best {
                    at: best.at.into(),
                    criterion: best.criterion,
                    summary: Metrics(from_bits(best.summary).into_iter().map(number).collect()),
                    adapter: restored(graph, plan, at, &state)?,
                    formats: best
                        .formats
                        .iter()
                        .map(|name| format(name))
                        .collect::<Result<_, _>>()
                        .map_err(fault)?,
                })
            }
            None => None,
        };
        self.recalled = best.as_ref().map(|best| best.at.made);
        self.compared = Compared { subject, count, last: last.map(Point::from), best };
        Ok(())
    }
}

fn format(name: &str) -> Result<AdapterFormat, String> {
    let mut all = AdapterFormat::ALL.into_iter().chain([AdapterFormat::IpAdapter]);
    all.find(|format| format.name() == name).ok_or_else(|| format!("`{name}` is no format of an adapter"))
}
