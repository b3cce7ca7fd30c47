//! `log`: what people want to read about a step.

use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Effect, Effects, EffectsShape, Metrics},
    settings::Nothing,
};

/// All metrics of a step as one record.
pub struct Log;

impl Operator for Log {
    const NAME: &'static str = "log";
    const DOC: &'static str = "Join metrics, in the order of the wires, into one line of metrics.jsonl. A name that \
                               occurs again gets a number.";
    const IN: [&'static str; 1] = ["metrics"];
    const OUT: [&'static str; 1] = ["record"];
    type Settings = Nothing;
    type In = (Vec<Metrics>,);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(&self, (metrics,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((EffectsShape { bytes: metrics.len() * 1024 },))
    }

    fn forward(&self, _: &Ctx<'_>, (metrics,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let mut all = Metrics::default();
        for (name, metric) in metrics.into_iter().flat_map(|m| m.0) {
            let name = match (2..).map(|n| format!("{name}_{n}")).find(|n| all.get(n).is_none()) {
                Some(numbered) if all.get(&name).is_some() => numbered,
                _ => name,
            };
            all.0.push((name, metric));
        }
        Ok(((Effects(vec![Effect::Record(all)]),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;

    #[test]
    fn metrics_are_joined_in_order_and_none_is_lost() {
        let bench = Bench::new();
        let (mut a, mut b) = (Metrics::default(), Metrics::default());
        a.number("loss", 1.0);
        b.per_sample("coverage", vec![0.5]);
        b.number("loss", 2.0);
        let ((effects,), ()) = Log.forward(&bench.ctx(), (vec![a, b],)).unwrap();
        let [Effect::Record(all)] = &effects.0[..] else { panic!("one record") };
        let names: Vec<_> = all.0.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["loss", "coverage", "loss_2"]);
    }
}
