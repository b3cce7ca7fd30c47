//! Which measurement is the best, and which is none.

use prefgraph_nn::{AdapterLayout, LinearLayout, models::flux::NAMES};
use prefgraph_ops::ports::Process;

use super::*;

fn adapter(value: f32) -> Adapter {
    let module = LinearLayout { name: "m".into(), inputs: 2, outputs: 1, window: None };
    let layout = Arc::new(AdapterLayout::of_factors(&NAMES, vec![module], 1, 1.0));
    Adapter { layout, values: vec![value; 3].into() }
}

fn pair(id: &str, time: f32, loss: f64, w_diff: f64) -> MeasuredPair {
    let figures = vec![("loss".to_owned(), loss), ("w_diff".to_owned(), w_diff)];
    MeasuredPair { id: id.into(), time, figures }
}

/// A part of which every step is one; `made` steps have been made with it.
fn part(made: u64, over: u64, ends: bool, pairs: &[MeasuredPair]) -> Measurement {
    Measurement {
        prefix: "held_out".into(),
        process: Process::Flow,
        levels: 2,
        pairs: pairs.to_vec().into(),
        over,
        ends,
        best: Some(Candidate {
            adapter: adapter(made as f32),
            criterion: Criterion::Loss,
            formats: vec![AdapterFormat::Diffusers],
        }),
    }
}

fn measured() -> Measured {
    let at = Endpoint::value(crate::graph::NodeId::new(0), 0);
    Measured { folder: "best".into(), adapter: Some(at), ..Measured::default() }
}

/// Measurements one after the other, each of one step: losses and the winner's error.
fn after(all: &[(f64, f64)]) -> Measured {
    let mut measured = measured();
    for (made, (loss, w_diff)) in (1u64..).zip(all) {
        let pairs = [pair("a", 0.5, *loss, *w_diff)];
        measured.observe(made - 1, &part(made, 1, true, &pairs)).unwrap();
    }
    measured
}

fn best(measured: &Measured) -> Option<(u64, f64)> {
    measured.compared.best.as_ref().map(|best| (best.at.made, best.at.value))
}

#[test]
fn the_lowest_value_is_the_best_and_of_two_that_are_equal_the_earlier() {
    let found = after(&[(0.7, -1.0), (0.5, -1.0), (0.5, -2.0), (0.6, -1.0)]);
    assert_eq!(best(&found), Some((2, 0.5)));
    let kept = found.compared.best.as_ref().unwrap();
    assert_eq!(*kept.adapter.values.host().unwrap(), [2.0; 3], "the adapter is that of the best step");
    let said = found.sentence(Path::new("r"), 4).unwrap();
    assert_eq!(
        said,
        "best step 2 of 4 by held-out loss 0.5000 (last 0.6000), of 4 measurements: `r/best/adapter.safetensors`"
    );
}

#[test]
fn the_best_is_told_beside_the_frozen_network_and_a_lower_last_one_with_why_it_is_not_the_best() {
    let said = |rows: &[(f64, f64)], frozen: f64| {
        let mut found = measured();
        for (step, (loss, w_diff)) in (0..).zip(rows) {
            let mut pair = pair("a", 0.5, *loss, *w_diff);
            pair.figures.push(("ref_loss".into(), frozen));
            found.observe(step, &part(step + 1, 1, true, &[pair])).unwrap();
        }
        found.sentence(Path::new("r"), rows.len() as u64).unwrap()
    };
    let better = said(&[(0.5, -1.0), (0.6, -1.0)], 0.7);
    assert!(
        better.starts_with(
            "best step 1 of 2 by held-out loss 0.5000 (last 0.6000; the frozen network 0.7000), of 2"
        ),
        "{better}"
    );
    let worse = said(&[(0.8, -1.0)], 0.7);
    assert!(worse.contains("the frozen network 0.7000, and none was better than that)"), "{worse}");
    let barred = said(&[(0.5, -1.0), (0.4, 1e-9)], 0.7);
    assert!(
        barred.contains("(last 0.4000, with an error on winners above the frozen network's; the frozen"),
        "{barred}"
    );
}

#[test]
fn what_is_no_number_or_has_worse_winners_never_wins() {
    let found = after(&[(f64::NAN, -1.0), (0.6, -1.0), (f64::NAN, -1.0), (0.1, 1e-9), (0.1, f64::NAN)]);
    assert_eq!(best(&found), Some((2, 0.6)));
    let none = after(&[(f64::NEG_INFINITY, -1.0), (0.1, 1e-9)]);
    assert_eq!(best(&none), None);
    let said = none.sentence(Path::new("r"), 2).unwrap();
    assert!(said.starts_with("no best step: ") && said.ends_with("in all 2 measurements"), "{said}");
}

#[test]
fn a_measurement_takes_all_of_its_steps_and_a_shorter_run_has_none() {
    let (a, b) = ([pair("a", 0.25, 1.0, -1.0)], [pair("b", 0.75, 3.0, -1.0)]);
    let mut found = measured();
    assert!(found.observe(0, &part(1, 3, false, &a)).unwrap().0.is_empty());
    // The run ends after two steps, but it takes three to see every pair.
    assert!(found.observe(1, &part(2, 3, true, &b)).unwrap().0.is_empty());
    assert!(best(&found).is_none() && found.sentence(Path::new("r"), 2).is_none());

    let mut found = measured();
    found.observe(8, &part(9, 2, false, &a)).unwrap();
    let sums = found.observe(9, &part(10, 2, true, &b)).unwrap();
    let number = |name: &str| sums.get(name).and_then(Metric::mean);
    assert_eq!((number("held_out.all.loss"), number("held_out.all.pairs")), (Some(2.0), Some(2.0)));
    assert_eq!(number("held_out.sigma_0-0.5.loss"), Some(1.0));
    assert!(found.changed);
    assert_eq!(best(&found), Some((10, 2.0)));
}

#[test]
fn other_pairs_or_other_times_are_not_compared_with_those_before() {
    for other in [pair("b", 0.5, 9.0, -1.0), pair("a", 0.25, 9.0, -1.0)] {
        let mut found = after(&[(0.5, -1.0)]);
        found.observe(1, &part(2, 1, true, &[other])).unwrap();
        assert_eq!(best(&found), Some((2, 9.0)));
        found.changed = false;
        let worse = pair("c", 0.5, 1.0, 1.0);
        found.observe(2, &part(3, 1, true, &[worse])).unwrap();
        assert!(found.changed, "the files must go");
        assert_eq!(found.aside, None, "the run did not begin with it");
        assert_eq!(best(&found), None);
    }
}

#[test]
fn an_adapter_that_is_out_of_range_is_not_kept() {
    let mut found = measured();
    let mut spoilt = part(1, 1, true, &[pair("a", 0.5, 0.1, -1.0)]);
    if let Some(candidate) = &mut spoilt.best {
        candidate.adapter = adapter(f32::NAN);
    }
    assert!(found.observe(0, &spoilt).is_err());
    assert_eq!(best(&found), None);
}
