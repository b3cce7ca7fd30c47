//! `measure`: pairs that are not trained on, summed up by level of noise; and the adapter of the best measurement.
//!
//! A set is read batch by batch, a batch a step. An operator sees one step: what it returns is its part of the measurement, and the run
//! sums the parts up.
//!
//! ```text
//!  levels    parts of the scale of times, and their names
//!  summary   every pair once; means over all, and by level; what is best
//! ```

mod levels;
mod summary;
#[cfg(test)]
mod tests;

use prefgraph_nn::{Adapter, lora::AdapterFormat};

use super::{
    due::{Due, often},
    export::Format,
    tensors::same,
};
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    part::{Part, Sum},
    ports::{
        Candidate, Criterion, Effect, Effects, EffectsShape, MeasuredPair, Measurement, Metric, MetricDoc,
        Metrics, Texts, Timesteps,
    },
    settings,
    words::count,
};

pub use levels::{MOST, level_of, name_of};
pub use summary::{ALL, pooled, summary};

settings! {
    /// Settings of [`Measure`].
    pub struct MeasureSettings {
        /// Levels of noise, equal parts of the scale of times, that every figure is given by beside its mean over all pairs; 0 is none.
        pub levels: usize = 4,
        /// Which measurement is the best; the earlier of two that are equal.
        pub criterion: Criterion = Criterion::Loss,
        /// Files of the best adapter, as `export` writes them.
        pub formats: Vec<Format> = vec![Format::Diffusers],
        /// Measure every so many steps, counted from the first; 0 means only at the end of the run.
        pub every: u64 = 50,
        /// Steps that measure all pairs: as many as the set has batches. They end at each of those steps.
        pub over: u64 = 1,
        /// Steps of the whole run: it ends with a measurement. 0 means unknown.
        pub steps: u64 = 0,
        /// Written before every name, with a dot.
        pub prefix: String = String::new(),
    }
}

/// Sums up, by level of noise, what is measured of pairs over some steps.
pub struct Measure {
    settings: MeasureSettings,
    formats: Vec<AdapterFormat>,
}

/// What is summed up, where it is measured: the name of the sum, and that of the metric.
const FIGURES: [(&str, &str); 10] = [
    ("loss", "pair_loss"),
    ("w_diff", "w_diff"),
    ("l_diff", "l_diff"),
    ("plain_w_diff", "plain_w_diff"),
    ("plain_l_diff", "plain_l_diff"),
    ("err_w", "err_w"),
    ("err_l", "err_l"),
    ("coverage", "coverage"),
    ("mask_mean", "mask_mean"),
    ("prior_mean", "prior_mean"),
];

/// The loss that the frozen network would have.
const REF_LOSS: &str = "ref_loss";

/// A pair's share of the accuracy: does the policy prefer the winner, more than the reference does where there is one?
fn won(figures: &[(String, f64)]) -> Option<f64> {
    let figure = |name: &str| figures.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
    let both = |w: &str, l: &str| Some(figure(l)? - figure(w)?);
    let margin = both("w_diff", "l_diff").or_else(|| both("err_w", "err_l"))?;
    Some(match margin {
        _ if margin.is_nan() => f64::NAN,
        0.0 => 0.5,
        _ => f64::from(u8::from(margin > 0.0)),
    })
}

impl Measure {
    /// The steps at which it measures.
    fn rows(&self) -> Due {
        let MeasureSettings { every, over, steps, .. } = self.settings;
        Due { every, over, steps }
    }

    /// The pairs of a batch with their figures.
    fn pairs(metrics: &[Metrics], times: &Timesteps, ids: &Texts) -> Result<Vec<MeasuredPair>, OpError> {
        let samples = ids.0.len();
        let mut pairs: Vec<MeasuredPair> = ids
            .0
            .iter()
            .zip(times.values.iter())
            .map(|(id, time)| MeasuredPair { id: id.clone(), time: *time, figures: Vec::new() })
            .collect();
        for (figure, name) in FIGURES {
            let mut found = metrics.iter().filter_map(|metrics| metrics.get(name));
            let (Some(metric), other) = (found.next(), found.next()) else { continue };
            if other.is_some() {
                return Err(OpError::new(format!(
                    "two of the connected metrics have `{name}`: which one is meant is not known"
                )));
            }
            let Metric::PerSample(values) = metric else {
                return Err(OpError::new(format!("`{name}` is not a number a sample")));
            };
            if values.len() != samples {
                return Err(OpError::new(format!(
                    "the metric `{name}` has {} and `ids` {samples}: connect the `ids` and `t` of the samples that it was \
                     measured of. How many samples a metric has shows only when it is measured",
                    count(values.len(), "sample")
                )));
            }
            for (pair, value) in pairs.iter_mut().zip(values) {
                pair.figures.push((figure.to_owned(), *value));
            }
        }
        // Of a whole batch: what a policy would have that is still the frozen network.
        let mut of_frozen = metrics.iter().filter_map(|metrics| match metrics.get(REF_LOSS) {
            Some(Metric::Number(value)) => Some(*value),
            _ => None,
        });
        if let (Some(value), None) = (of_frozen.next(), of_frozen.next()) {
            pairs.iter_mut().for_each(|pair| pair.figures.push((REF_LOSS.into(), value)));
        }
        for pair in &mut pairs {
            if let Some(won) = won(&pair.figures) {
                pair.figures.push(("implicit_acc".into(), won));
            }
        }
        Ok(pairs)
    }

    /// How the best measurement is told.
    fn sum(&self) -> Sum {
        let (chosen_by, takes): (_, &[_]) = match self.settings.criterion {
            Criterion::Loss => ("criterion: loss", &["pair_loss"]),
            Criterion::Winner => ("criterion: winner", &["w_diff", "err_w"]),
        };
        Sum { over: self.settings.over, chosen_by, takes }
    }

    /// Can the criterion be told by what was measured? A plan refuses what is known never to have it, which leaves operators that
    /// declare no metrics, or more than they measure.
    fn check(&self, pairs: &[MeasuredPair]) -> Result<(), OpError> {
        let sum = self.sum();
        let taken =
            |figure: &str| FIGURES.iter().any(|(f, metric)| *f == figure && sum.takes.contains(metric));
        if pairs.iter().all(|pair| pair.figures.iter().any(|(figure, _)| taken(figure))) {
            return Ok(());
        }
        let why = sum.cannot_be_told("no connected node has measured");
        Err(OpError::new(format!(
            "{why}. A plan sees only what connected nodes declare that they may measure"
        )))
    }
}

impl Operator for Measure {
    const NAME: &'static str = "measure";
    const DOC: &'static str = "Sum up what was measured of pairs over some steps, each pair once: means over all pairs and by level of \
                               noise. With an adapter, have that of the best measurement written to the run's folder, in `best`.";
    const IN: [&'static str; 4] = ["adapter", "metrics", "t", "ids"];
    const OUT: [&'static str; 1] = ["summary"];
    const METRICS: &'static [MetricDoc] = &[
        MetricDoc::number(
            "all.pairs",
            "Pairs that the means are over, each counted once. What follows stands at the last of the steps that measure them.",
        ),
        MetricDoc::number("all.loss", "Mean of `pair_loss`."),
        MetricDoc::number("all.ref_loss", "Mean of `ref_loss`, from which `all.loss` began."),
        MetricDoc::number(
            "all.implicit_acc",
            "Share of the pairs whose margin l_diff - w_diff is above 0, ties counted as a half.",
        ),
        MetricDoc::number("all.w_diff", "Mean of `w_diff`; likewise:"),
        MetricDoc::number("all.l_diff", "the loser's error against the frozen network's,"),
        MetricDoc::number("all.plain_w_diff", "the winner's without the mask,"),
        MetricDoc::number("all.plain_l_diff", "the loser's without the mask,"),
        MetricDoc::number("all.err_w", "the policy's error on the winner,"),
        MetricDoc::number("all.err_l", "the policy's error on the loser,"),
        MetricDoc::number("all.coverage", "the share of the subject that the policy has *not* found,"),
        MetricDoc::number(
            "all.mask_mean",
            "the share of the picture in the focus mask, as the policy has it now,",
        ),
        MetricDoc::number("all.prior_mean", "and the share of the picture in the prior."),
    ];
    type Settings = MeasureSettings;
    type In = (Option<Adapter>, Vec<Metrics>, Timesteps, Texts);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: MeasureSettings) -> Result<Self, OpError> {
        let s = &settings;
        Due { every: s.every, over: s.over, steps: s.steps }.check("measured")?;
        if s.levels > MOST {
            return Err(OpError::new(format!("levels {}: at most {MOST} are told apart", s.levels)));
        }
        if s.formats.is_empty() {
            return Err(OpError::new("formats: at least one is needed, e.g. [diffusers]"));
        }
        let formats = s.formats.iter().copied().map(AdapterFormat::from).collect();
        Ok(Self { settings, formats })
    }

    fn due(&self, step: u64) -> bool {
        self.rows().at(step)
    }

    fn shapes(&self, (adapter, _, t, ids): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        same("the batch of `ids`", ids.batch, "that of `t`", t.batch)?;
        let Some(adapter) = adapter else { return Ok((EffectsShape { bytes: 1024 },)) };
        // Before the first step rather than at the first measurement.
        self.formats.iter().try_for_each(|format| adapter.0.writable(*format))?;
        // The best one is kept in memory, too: a checkpoint holds it.
        Ok((EffectsShape { bytes: adapter.0.len() * size_of::<f32>() },))
    }

    fn part(&self) -> Part {
        Part::Sum(self.sum())
    }

    fn notes(&self, (adapter, ..): &InShapes<Self>) -> Vec<String> {
        let MeasureSettings { every, over, steps, criterion, .. } = self.settings;
        if (1..over).contains(&steps) {
            let kept = if adapter.is_some() { ", and no best adapter is kept" } else { "" };
            return vec![format!(
                "nothing is summed up{kept}: a measurement takes {}, and the run has {}",
                count(over, "step"),
                count(steps, "step")
            )];
        }
        let mut at = Vec::new();
        if every > 0 {
            at.push(often(every));
        }
        if steps > 0 {
            at.push(format!("after step {steps}"));
        }
        let best = match (adapter, criterion) {
            (None, _) => "",
            (Some(_), Criterion::Loss) => "; kept: the adapter with the lowest loss",
            (Some(_), Criterion::Winner) => "; kept: the adapter with the lowest error on winners",
        };
        vec![format!("measured over {}, {}{best}", count(over, "step"), at.join(" and "))]
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (adapter, metrics, times, ids): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        if !self.due(ctx.step) {
            return Ok(((Effects::default(),), ()));
        }
        let MeasureSettings { levels, criterion, over, prefix, .. } = &self.settings;
        let pairs = Self::pairs(&metrics, &times, &ids)?;
        let best = adapter.map(|adapter| Candidate {
            adapter,
            criterion: *criterion,
            formats: self.formats.clone(),
        });
        if best.is_some() {
            self.check(&pairs)?;
        }
        let measurement = Measurement {
            prefix: prefix.clone(),
            process: times.process,
            levels: *levels,
            pairs: pairs.into(),
            over: *over,
            ends: self.rows().ends(ctx.step),
            best,
        };
        Ok(((Effects(vec![Effect::Measure(measurement)]),), ()))
    }
}
