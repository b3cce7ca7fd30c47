//! The loss against dfdx's tape, finite differences and a golden case.

use dfdx::{
    shapes::{Axes3, Const},
    tensor::OnesTensor,
    tensor_ops::MeanTo,
};
use prefgraph_nn::files::TensorFiles;

use super::*;
use crate::{
    closure::Closure,
    operators::testing::{Bench, assert_close, case, latents, mask_of},
    port::{T, take},
    ports::{Metric, Process},
    testing::GradientCheck,
    vjp::Traced,
};

const SHAPE: (usize, usize, usize, usize) = (4, 3, 4, 4);

fn mask(ctx: &Ctx<'_>) -> Mask {
    mask_of(ctx, (2, 2, 2), &[1.0, 0.0, 0.5, 0.25, 0.0, 1.0, 1.0, 0.75])
}

fn op(settings: MaskedLossSettings) -> MaskedLoss {
    MaskedLoss::new(settings).unwrap()
}

/// Policy, target and reference of two pairs.
fn predictions(ctx: &Ctx<'_>) -> [Latents; 3] {
    [1, 2, 3].map(|seed| latents(ctx, SHAPE, seed))
}

#[test]
fn with_equal_networks_the_logit_is_zero_and_the_loss_ln_2() {
    let bench = Bench::new();
    let ctx = bench.ctx();
    let [policy, target, _] = predictions(&ctx);
    for mask in [None, Some(mask(&ctx))] {
        let inputs =
            (policy.clone().into(), target.clone().into(), Some(policy.clone().into()), mask, None, None);
        let ((loss, metrics), _) = op(Default::default()).forward(&ctx, inputs).unwrap();
        assert_eq!(loss.as_vec(), [std::f32::consts::LN_2]);
        assert_eq!(metrics.get("logit"), Some(&Metric::PerSample(vec![0.0, 0.0])));
        assert_eq!(metrics.get("implicit_acc").unwrap().mean(), Some(0.5));
    }
}

#[test]
fn with_equal_networks_the_loss_is_that_of_the_reference_to_the_bit_for_every_objective_and_batch() {
    use Objective::*;
    let bench = Bench::new();
    let ctx = bench.ctx();
    for objective in [Dpo, Cdpo, Ipo, Hinge, Dpop, Kto, Dmpo] {
        for pairs in [1, 2, 3, 5, 6, 7, 10, 12] {
            let shape = (2 * pairs, 3, 4, 4);
            let policy: Latents = latents(&ctx, shape, 1);
            let target: Target = latents(&ctx, shape, 2);
            let settings =
                MaskedLossSettings { objective, anchor: 0.3, sft_weight: 0.7, ..Default::default() };
            let loss = |reference: &Latents| {
                let (policy, reference) = (policy.clone().into(), Some(reference.clone().into()));
                let inputs = (policy, target.clone(), reference, None, None, None);
                let ((_, metrics), _) = op(settings.clone()).forward(&ctx, inputs).unwrap();
                ["loss", "ref_loss"].map(|name| metrics.get(name).unwrap().mean().unwrap())
            };
            let [found, expected] = loss(&policy);
            assert_eq!(found.to_bits(), expected.to_bits(), "{objective:?}, {pairs} pairs");
            let inputs = (
                policy.clone().into(),
                target.clone(),
                Some(latents::<Prediction>(&ctx, shape, 3)),
                None,
                None,
                None,
            );
            let ((_, metrics), _) = op(settings.clone()).forward(&ctx, inputs).unwrap();
            let mean = |name: &str| metrics.get(name).unwrap().mean().unwrap();
            assert!((mean("pair_loss") - mean("loss")).abs() <= 1e-12 * mean("loss").abs(), "{objective:?}");
            let [elsewhere, beginning] = loss(&latents(&ctx, shape, 3));
            assert!(elsewhere != beginning && beginning == expected, "{objective:?}");
        }
    }
}

#[test]
fn the_plain_error_counts_from_the_references_where_there_is_one() {
    let bench = Bench::new();
    let ctx = bench.ctx();
    let [policy, target, reference] = predictions(&ctx);
    let loss = |sft_weight, objective, reference: Option<&Latents>| {
        let reference = reference.cloned().map(Prediction::from);
        let inputs = (policy.clone().into(), target.clone().into(), reference, None, None, None);
        let settings = MaskedLossSettings { sft_weight, objective, ..Default::default() };
        op(settings).forward(&ctx, inputs).unwrap().0.1.get("loss").unwrap().mean().unwrap()
    };
    let error = |x: &Latents| {
        let winners = x.as_vec().into_iter().zip(target.as_vec()).take(2 * 48);
        winners.map(|(x, t)| f64::from(x - t).powi(2)).sum::<f64>() / 96.0
    };
    let added = loss(1.0, Objective::Dpo, Some(&reference)) - loss(0.0, Objective::Dpo, Some(&reference));
    assert!((added - (error(&policy) - error(&reference))).abs() < 1e-5, "{added}");
    let added = loss(1.0, Objective::Simpo, None) - loss(0.0, Objective::Simpo, None);
    assert!((added - error(&policy)).abs() < 1e-5, "{added}");
}

/// The loss as a dfdx expression, for predictions whose batch is winners or losers only.
#[test]
fn loss_and_gradient_are_those_of_dfdx() {
    let bench = Bench::new();
    let ctx = bench.ctx();
    let beta = 3.0f32;
    let [policy, target, reference] = predictions(&ctx);
    let half = |x: &Latents, side: usize| {
        let size = x.as_vec().len() / 2;
        tensor(&ctx, (2, 3, 4, 4), x.as_vec()[side * size..(side + 1) * size].to_vec()).unwrap()
    };
    let weight: Vec<f32> = mask(&ctx)
        .as_vec()
        .chunks_exact(4)
        .flat_map(|m| {
            let squared = squared_on_grid(m, 2, (4, 4));
            (0..3).flat_map(move |_| squared.clone()).map(|w| w.sqrt() as f32).collect::<Vec<_>>()
        })
        .collect();
    let weight: Latents = tensor(&ctx, (2, 3, 4, 4), weight).unwrap();
    let constants: Vec<Latents> = (0..2).flat_map(|s| [half(&target, s), half(&reference, s)]).collect();
    type Row = Traced<(usize, usize, usize, usize)>;
    let description = Closure::<(Latents, Latents), _>::new("description", move |w: Row, l: Row| {
        let error = |x: Row, target: &Latents| {
            ((x - target.clone()) * weight.clone()).square().mean::<(usize,), Axes3<1, 2, 3>>()
        };
        let frozen = |side: usize| {
            let x = constants[2 * side + 1].clone() - constants[2 * side].clone();
            (x * weight.clone()).square().mean::<(usize,), Axes3<1, 2, 3>>()
        };
        let margin = (error(w, &constants[0]) - frozen(0)) - (error(l, &constants[2]) - frozen(1));
        // Cross-entropy with ones is -log sigmoid.
        let ones: T<(usize,)> = crate::tensor::host().ones_like(&(2,));
        (margin * (-0.5 * beta)).bce_with_logits(ones).mean()
    });
    let inputs: Vec<Vec<crate::Value>> =
        (0..2).map(|s| vec![std::sync::Arc::new(half(&policy, s)) as crate::Value]).collect();
    let (out, saved) = crate::DynOperator::forward(&description, &ctx, &inputs).unwrap();
    let one = std::sync::Arc::new(tensor(&ctx, (), vec![1.0]).unwrap());
    let grads = crate::DynOperator::backward(&description, &ctx, &[true, true], saved, &[Some(one)]).unwrap();

    let op = op(MaskedLossSettings { beta: f64::from(beta), ..Default::default() });
    let ((loss, _), saved) = op
        .forward(&ctx, (policy.into(), target.into(), Some(reference.into()), Some(mask(&ctx)), None, None))
        .unwrap();
    assert_close(loss.as_vec()[0], take::<Scalar>(&out[0]).as_vec()[0], 1e-5);
    let wanted = [true, false, false, false, false, false];
    let one = tensor(&ctx, (), vec![1.0]).unwrap();
    let found = Operator::backward(&op, &ctx, &wanted, saved, (Some(one), None)).unwrap().0.unwrap().as_vec();
    let expected: Vec<f32> =
        grads.iter().flat_map(|g| take::<Latents>(g[0].as_ref().unwrap()).as_vec()).collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-6 + 1e-4 * expected.abs(), "{found} {expected}");
    }
}

#[test]
fn the_gradient_is_that_of_finite_differences_for_every_objective_reduction_and_extra_term() {
    use Objective::*;
    let bench = Bench::new();
    let ctx = bench.ctx();
    let [policy, target, reference] = predictions(&ctx);
    // A reference that is better on the whole: KTO's baseline, which is held constant, is then zero all around.
    let near = target.as_vec().iter().zip(reference.as_vec()).map(|(t, r)| 0.7 * t + 0.3 * r).collect();
    let reference = tensor(&ctx, SHAPE, near).unwrap();
    for objective in [Dpo, Cdpo, Ipo, Hinge, Dpop, Simpo, Mapo, Kto, Dmpo, Sft] {
        for reduction in [Reduction::FullMean, Reduction::MaskMean, Reduction::Sum] {
            let beta = if reduction == Reduction::Sum { 0.01 } else { 0.7 };
            let settings = MaskedLossSettings {
                objective,
                reduction,
                beta,
                mapo_t: 2.0,
                anchor: 0.3,
                sft_weight: 0.2,
                ..Default::default()
            };
            let op = op(settings);
            let mask =
                if objective == Sft { mask_of(&ctx, (4, 1, 1), &[1.0, 0.5, 0.0, 0.75]) } else { mask(&ctx) };
            let inputs = (
                policy.clone().into(),
                target.clone().into(),
                Some(reference.clone().into()),
                Some(mask),
                None,
                None,
            );
            GradientCheck::default()
                .inputs(&["policy"])
                .run(&op, inputs)
                .unwrap_or_else(|e| panic!("{objective:?} {reduction:?}: {e}"));
        }
    }
}

#[test]
fn the_reference_errors_of_a_golden_case_come_out_under_its_mask_and_reduction() {
    let bench = Bench::new();
    let ctx = bench.ctx();
    for (train, reduction) in [
        ("focusdpo", Reduction::FullMean),
        ("focusdpo_tau_mid", Reduction::FullMean),
        ("focusdpo_mask_mean", Reduction::MaskMean),
    ] {
        let folder = case("flux_uno");
        let forward = TensorFiles::open(&folder.join("forward.safetensors")).unwrap();
        let path = folder.join(format!("train_{train}.safetensors"));
        if !path.exists() && train != "focusdpo" {
            // Large, and not kept with the sources.
            continue;
        }
        let log = TensorFiles::open(&path).unwrap();
        let golden =
            |name: &str| -> Latents { tensor(&ctx, (3, 16, 12, 16), forward.read(name).unwrap()).unwrap() };
        let mask = mask_of(&ctx, (3, 12, 16), &log.read("mask0").unwrap());
        let op = op(MaskedLossSettings { reduction, objective: Objective::Sft, ..Default::default() });
        let inputs = (golden("pred").into(), golden("target").into(), None, Some(mask), None, None);
        let ((_, metrics), _) = op.forward(&ctx, inputs).unwrap();
        let Some(Metric::PerSample(found)) = metrics.get("err_w") else { panic!("no err_w") };
        let expected = log.read("log.err_w_ref").unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - f64::from(*expected)).abs() < 1e-5 * found.abs(), "{train}: {found} {expected}");
        }
    }
}

#[test]
fn an_error_that_is_not_finite_names_the_sample_and_its_time() {
    let bench = Bench::new();
    let ctx = bench.ctx();
    let [policy, target, reference] = predictions(&ctx);
    let mut values = policy.as_vec();
    values[3 * 48 + 1] = f32::INFINITY;
    let policy = tensor(&ctx, SHAPE, values).unwrap();
    let ids = Texts(vec!["a".to_string(), "dip-7".to_string()].into());
    let time = Timesteps::new(Process::Flow, vec![0.5, 0.25, 0.5, 0.25]);
    let inputs = (policy.into(), target.into(), Some(reference.into()), None, Some(time), Some(ids));
    let error = op(Default::default()).forward(&ctx, inputs).err().unwrap().to_string();
    assert!(error.contains("sample 1 (`dip-7`) at time 0.25") && error.contains("loser"), "{error}");
}

#[test]
fn what_is_given_has_not_diverged_and_a_first_step_need_not_have() {
    let bench = Bench::new();
    let spoilt = |mut which: [bool; 3], step: u64| {
        let ctx = bench.at(step);
        let [policy, target, reference] = predictions(&ctx).map(|latents| {
            let mut values = latents.row_major();
            if std::mem::take(&mut which[0]) {
                values[5] = f32::NAN;
            }
            which.rotate_left(1);
            tensor(&ctx, SHAPE, values).unwrap()
        });
        let inputs = (policy.into(), target.into(), Some(reference.into()), None, None, None);
        op(Default::default()).forward(&ctx, inputs).err().unwrap()
    };
    use crate::error::Fault;
    let policy = [true, false, false];
    let later = spoilt(policy, 3);
    assert!(later.fault() == Fault::Training && later.to_string().contains("has diverged"), "{later}");
    let first = spoilt(policy, 0);
    assert!(first.fault() == Fault::Training && first.to_string().contains("may be at fault"), "{first}");
    for (which, name) in
        [([false, true, false], "`target` holds"), ([false, false, true], "`reference` holds")]
    {
        let error = spoilt(which, 3);
        assert!(error.fault() == Fault::User && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn shapes_that_do_not_go_together_are_refused_with_both_sides() {
    let paired = op(Default::default());
    let s = (4usize, 16usize, 4usize, 4usize);
    let m = |b, h, w| Some((b, Const::<1>, h, w));
    let refuse = |op: &MaskedLoss, inputs, expected: &str| {
        let error = op.shapes(inputs, 0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse(&paired, (s, s, None, None, None, None), "connect `reference`");
    refuse(&paired, (s, (4, 16, 4, 5), Some(s), None, None, None), "[4, 16, 4, 5]");
    refuse(&paired, (s, s, Some(s), m(2, 3, 4), None, None), "4 x 3 cells (width x height)");
    refuse(&paired, (s, s, Some(s), m(4, 2, 2), None, None), "`mask` has 4 samples, the loss 2");
    let sft = op(MaskedLossSettings { objective: Objective::Sft, ..Default::default() });
    let ids = Some(crate::ports::TextsShape { batch: 2 });
    refuse(&sft, (s, s, None, None, None, ids), "must not read `x0_l`");
    let odd = (3, 16, 4, 4);
    refuse(&paired, (odd, odd, Some(odd), None, None, None), "3 rows");
}
