//! The check of the first step of a preference run: policy and reference are still the same network, and the numbers must agree.

use prefgraph_nn::Adapter;
use prefgraph_ops::ports::{Metric, Metrics};

/// Are all B factors zero, and all that is trained whole, so that the adapter changes nothing?
pub(super) fn changes_nothing(adapter: &Adapter) -> bool {
    let values = adapter.values.host().unwrap();
    let factors = adapter.layout.ranges().into_iter().map(|(_, b)| b);
    factors.chain(adapter.layout.whole_ranges()).all(|range| values[range].iter().all(|v| *v == 0.0))
}

/// What the first step says, if there is anything to say: a sentence, and whether it is a warning.
pub(super) fn check(adapters: &[Adapter], metrics: &Metrics) -> Option<(bool, String)> {
    let (Some(logit), Some(loss)) = (metrics.get("logit"), metrics.get("loss").and_then(Metric::mean)) else {
        return None;
    };
    // Only an objective that compares with a reference reports the reference's errors.
    if metrics.get("ref_w").is_none() || adapters.is_empty() {
        return None;
    }
    if !adapters.iter().all(changes_nothing) {
        return Some((
            false,
            "the adapter does not start at zero, so the first step cannot show that policy and reference agree".into(),
        ));
    }
    let logits: &[f64] = match logit {
        Metric::Number(x) => std::slice::from_ref(x),
        Metric::PerSample(xs) => xs,
        Metric::Texts(_) => return None,
    };
    // The mean of equal numbers may be rounded: what counts is what the loss's own arithmetic makes of equal networks.
    let expected = metrics.get("ref_loss").and_then(Metric::mean);
    let zero = logits.iter().all(|l| *l == 0.0);
    if zero && expected.is_none_or(|expected| loss == expected) {
        let amount = match loss as f32 {
            std::f32::consts::LN_2 => "exactly ln 2".to_owned(),
            _ => format!("{loss}, the frozen network's"),
        };
        let text =
            format!("step 0: every logit is exactly 0 and the loss {amount}: policy and reference agree");
        return Some((false, text));
    }
    let should = expected.map(|expected| format!(" and the loss {expected}")).unwrap_or_default();
    Some((
        true,
        format!(
            "step 0: the adapter is zero, so every logit must be exactly 0{should}, but the logits are {logits:?} and the loss \
             is {loss}: policy and reference are not the same computation, and a large beta will amplify the difference"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prefgraph_nn::{AdapterLayout, LinearLayout, models::flux::NAMES};

    use super::*;

    fn adapter(b: f32) -> Adapter {
        let module = LinearLayout { name: "m".into(), inputs: 2, outputs: 1, window: None };
        let layout = Arc::new(AdapterLayout::of_factors(&NAMES, vec![module], 1, 1.0));
        Adapter { layout, values: vec![0.5, 0.25, b].into() }
    }

    fn metrics(logit: f64, loss: f64) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.number("loss", loss);
        metrics.per_sample("logit", vec![0.0, logit]);
        metrics.per_sample("ref_w", vec![1.0, 1.0]);
        metrics.number("ref_loss", std::f64::consts::LN_2);
        metrics
    }

    #[test]
    fn a_zero_adapter_must_give_logit_zero_and_the_loss_of_the_reference() {
        let zero = [adapter(0.0)];
        let (warning, text) = check(&zero, &metrics(0.0, std::f64::consts::LN_2)).unwrap();
        assert!(!warning && text.contains("every logit is exactly 0 and the loss exactly ln 2"), "{text}");
        assert!(check(&zero, &metrics(1e-12, std::f64::consts::LN_2)).unwrap().0);
        assert!(check(&zero, &metrics(0.0, 0.69)).unwrap().0);
        let (warning, text) = check(&[adapter(0.1)], &metrics(3.0, 0.1)).unwrap();
        assert!(!warning && text.contains("does not start at zero"), "{text}");
    }

    #[test]
    fn another_objective_begins_at_another_loss() {
        let mut hinge = metrics(0.0, 1.0);
        hinge.0.retain(|(name, _)| name != "ref_loss");
        let (warning, text) = check(&[adapter(0.0)], &hinge).unwrap();
        assert!(!warning && text.contains("the loss 1, the frozen network's"), "{text}");
        hinge.number("ref_loss", 1.0);
        assert!(!check(&[adapter(0.0)], &hinge).unwrap().0);
    }

    #[test]
    fn a_mean_that_is_rounded_is_no_alarm() {
        for pairs in 1..=16u32 {
            // As the loss adds and divides.
            let sum: f64 = (0..pairs).map(|_| std::f64::consts::LN_2).sum();
            let loss = sum * (1.0 / f64::from(pairs));
            let mut metrics = Metrics::default();
            metrics.number("loss", loss);
            metrics.per_sample("logit", vec![0.0; pairs as usize]);
            metrics.per_sample("ref_w", vec![1.0; pairs as usize]);
            metrics.number("ref_loss", loss);
            let (warning, text) = check(&[adapter(0.0)], &metrics).unwrap();
            assert!(!warning && text.contains("exactly ln 2"), "{pairs}: {text}");
        }
    }

    #[test]
    fn an_objective_without_a_reference_is_not_checked() {
        let mut metrics = Metrics::default();
        metrics.number("loss", 1.0);
        metrics.number("logit", 1.0);
        assert!(check(&[adapter(0.0)], &metrics).is_none());
    }
}
