//! The very first step of a preference run: policy and reference are the same network, and the numbers must say so.

use prefgraph_nn::Adapter;
use prefgraph_ops::ports::{Metric, Metrics};

/// Are all B factors zero, so that the adapter changes nothing?
pub(super) fn changes_nothing(adapter: &Adapter) -> bool {
    adapter.layout.ranges().into_iter().all(|(_, b)| adapter.values[b].iter().all(|v| *v == 0.0))
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
    let ln_2 = std::f64::consts::LN_2;
    let exact = logits.iter().all(|l| *l == 0.0) && (loss == ln_2 || loss == f64::from(ln_2 as f32));
    Some(match exact {
        true => (
            false,
            "step 0: every logit is exactly 0 and the loss exactly ln 2: policy and reference agree".into(),
        ),
        false => (
            true,
            format!(
                "step 0: the adapter is zero, so every logit must be exactly 0 and the loss ln 2 = {ln_2}, but the logits \
                 are {logits:?} and the loss is {loss}: policy and reference are not the same computation, and a large \
                 beta will amplify the difference"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prefgraph_nn::{AdapterLayout, lora::AdaptedLinear};

    use super::*;

    fn adapter(b: f32) -> Adapter {
        let module = AdaptedLinear { name: "m".into(), inputs: 2, outputs: 1 };
        let layout = Arc::new(AdapterLayout { modules: vec![module], rank: 1, alpha: 1.0 });
        Adapter { layout, values: Arc::new(vec![0.5, 0.25, b]) }
    }

    fn metrics(logit: f64, loss: f64) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.number("loss", loss);
        metrics.per_sample("logit", vec![0.0, logit]);
        metrics.per_sample("ref_w", vec![1.0, 1.0]);
        metrics
    }

    #[test]
    fn a_zero_adapter_must_give_logit_zero_and_ln_2() {
        let zero = [adapter(0.0)];
        let good = metrics(0.0, f64::from(std::f32::consts::LN_2));
        assert!(!check(&zero, &good).unwrap().0);
        assert!(check(&zero, &metrics(1e-12, std::f64::consts::LN_2)).unwrap().0);
        assert!(check(&zero, &metrics(0.0, 0.69)).unwrap().0);
        let (warning, text) = check(&[adapter(0.1)], &metrics(3.0, 0.1)).unwrap();
        assert!(!warning && text.contains("does not start at zero"), "{text}");
    }

    #[test]
    fn an_objective_without_a_reference_is_not_checked() {
        let mut metrics = Metrics::default();
        metrics.number("loss", 1.0);
        metrics.number("logit", 1.0);
        assert!(check(&[adapter(0.0)], &metrics).is_none());
    }
}
