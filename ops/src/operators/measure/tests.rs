//! `measure` by its ports: which pairs a step hands on, when, and what is refused.

use std::sync::Arc;

use prefgraph_nn::{AdapterLayout, LinearLayout, models::flux::NAMES};

use super::*;
use crate::{Port, operators::testing::Bench, ports::Process};

fn adapter() -> Adapter {
    let module =
        LinearLayout { name: "transformer_blocks.0.attn.to_q".into(), inputs: 4, outputs: 4, window: None };
    let layout = Arc::new(AdapterLayout::of_factors(&NAMES, vec![module], 1, 1.0));
    Adapter { values: vec![0.5; layout.len()].into(), layout }
}

fn metrics(names: &[(&str, &[f64])]) -> Metrics {
    let mut metrics = Metrics::default();
    names.iter().for_each(|(name, values)| metrics.per_sample(name, values.to_vec()));
    metrics
}

fn measure(settings: MeasureSettings) -> Measure {
    Measure::new(settings).unwrap()
}

/// What two pairs give at a step.
fn at(
    op: &Measure,
    step: u64,
    adapter: Option<Adapter>,
    metrics: Vec<Metrics>,
) -> Result<Vec<Measurement>, OpError> {
    let times = Timesteps::new(Process::Flow, vec![0.25, 0.75]);
    let ids = Texts(vec!["a".to_owned(), "b".to_owned()].into());
    let ((effects,), ()) = op.forward(&Bench::new().at(step), (adapter, metrics, times, ids))?;
    let parts = effects.0.into_iter().map(|effect| match effect {
        Effect::Measure(part) => part,
        other => panic!("{other:?} is no measurement"),
    });
    Ok(parts.collect())
}

#[test]
fn a_step_gives_the_figures_of_its_pairs_and_a_tie_is_half_won() {
    let op = measure(MeasureSettings { every: 2, over: 2, ..Default::default() });
    let losses = metrics(&[
        ("pair_loss", &[1.0, 2.0]),
        ("w_diff", &[-1.0, 0.5]),
        ("l_diff", &[1.0, 0.5]),
        ("logit", &[9.0; 2]),
    ]);
    let masks = metrics(&[("coverage", &[0.25, 0.5])]);
    let parts = at(&op, 0, None, vec![losses, masks]).unwrap();
    let [part] = &parts[..] else { panic!("one part") };
    assert!(!part.ends && part.best.is_none() && (part.over, part.levels) == (2, 4));
    let pairs: Vec<(&str, f32)> = part.pairs.iter().map(|p| (p.id.as_str(), p.time)).collect();
    assert_eq!(pairs, [("a", 0.25), ("b", 0.75)]);
    let named = |figures: &[(&str, f64)]| -> Vec<(String, f64)> {
        figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    };
    assert_eq!(
        part.pairs[0].figures,
        named(&[("loss", 1.0), ("w_diff", -1.0), ("l_diff", 1.0), ("coverage", 0.25), ("implicit_acc", 1.0)])
    );
    assert_eq!(part.pairs[1].figures.last().unwrap(), &("implicit_acc".to_owned(), 0.5));
}

#[test]
fn a_row_of_steps_ends_at_every_so_many_and_with_the_run() {
    let op = measure(MeasureSettings { every: 4, over: 2, steps: 7, ..Default::default() });
    let loss = || vec![metrics(&[("pair_loss", &[1.0, 2.0])])];
    let found: Vec<(u64, bool)> = (0..8)
        .flat_map(|step| {
            at(&op, step, Some(adapter()), loss()).unwrap().into_iter().map(move |part| (step, part.ends))
        })
        .collect();
    // The eighth step would be one of the next row: the run has been given more steps than it says.
    assert_eq!(found, [(2, false), (3, true), (5, false), (6, true), (7, true)]);
}

#[test]
fn what_cannot_be_told_is_refused() {
    let op = measure(MeasureSettings { every: 1, ..Default::default() });
    let refused = |adapter: Option<Adapter>, metrics: Vec<Metrics>| {
        at(&op, 0, adapter, metrics).unwrap_err().to_string()
    };
    let loss = metrics(&[("pair_loss", &[1.0, 2.0])]);
    assert!(refused(None, vec![loss.clone(), loss.clone()]).contains("two of the connected metrics"));
    assert!(refused(None, vec![metrics(&[("w_diff", &[1.0])])]).contains("`w_diff` has 1 sample and"));
    assert!(refused(Some(adapter()), vec![metrics(&[("w_diff", &[1.0, 1.0])])]).contains("`pair_loss`"));
    let winner = measure(MeasureSettings { every: 1, criterion: Criterion::Winner, ..Default::default() });
    assert!(
        at(&winner, 0, Some(adapter()), vec![loss]).unwrap_err().to_string().contains("`w_diff` or `err_w`")
    );
    for settings in [
        MeasureSettings { levels: MOST + 1, ..Default::default() },
        MeasureSettings { formats: vec![], ..Default::default() },
        MeasureSettings { over: 0, ..Default::default() },
        MeasureSettings { every: 0, ..Default::default() },
        MeasureSettings { every: 5, over: 6, ..Default::default() },
    ] {
        assert!(Measure::new(settings.clone()).is_err(), "{settings:?}");
    }
}

#[test]
fn a_format_that_cannot_hold_the_adapter_is_refused_before_the_run() {
    let op = measure(MeasureSettings { formats: vec![Format::Uno], ..Default::default() });
    let times = Timesteps::new(Process::Flow, vec![0.5]).shape();
    let ids = Texts(vec![String::new()].into()).shape();
    let shapes = (Some(adapter().shape()), vec![], times, ids);
    assert!(op.shapes(shapes, 0).unwrap_err().to_string().contains("UNO's names"));
}
