//! Blocks of a U-Net that run again for their backward: bits, memory and operations.

mod small_unet;

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, Backbone, DeviceKind, PassCost, Probe,
    lora::AdapterLayout,
    models::{Checkpointing, SdxlUNet, UNetOptions},
};
use small_unet::{Small, config, cotangent, gradient, inputs, numbers};

/// What is adapted decides what a block that runs again keeps, and what it leaves out.
const ADAPTED: [&[&str]; 11] = [
    &["*", "conv*"],
    &["attn1.to_k"],
    &["attn1.to_out.0"],
    &["attn2.to_q"],
    &["attn2.to_k_ip"],
    &["attn2.to_out.0"],
    &["ff.net.0.proj"],
    &["ff.net.2"],
    &["*.conv1"],
    &["*.conv2", "*.conv_shortcut"],
    &["conv_in"],
];

fn model(small: &Small, checkpointing: Checkpointing) -> SdxlUNet {
    small.model(UNetOptions { checkpointing, ..small.options() })
}

fn adapter(model: &SdxlUNet, targets: &[&str]) -> Adapter {
    let layout = AdapterLayout::matching(&model.layout().linears, targets, 3, 4.5).unwrap().0;
    let values: Vec<f32> = numbers(layout.len(), 2).iter().map(|v| 0.2 * v).collect();
    Adapter { layout: Arc::new(layout), values: values.into() }
}

/// Of a pass over the inputs, with image tokens as of one reference: more than the inputs have.
fn cost(model: &SdxlUNet, adapter: &Adapter) -> PassCost {
    model.cost(DeviceKind::Cpu, 2, (4, 6), &[(4, 6)], 3, Some(&adapter.layout))
}

#[test]
fn what_a_pass_keeps_changes_no_bit_whatever_is_adapted() {
    let small = Small::new(&config());
    let [all, others @ ..] = Checkpointing::ALL.map(|checkpointing| model(&small, checkpointing));
    for targets in ADAPTED {
        let adapter = adapter(&all, targets);
        let expected = gradient(&all, &inputs(), &adapter);
        assert!(expected.iter().any(|g| *g != 0.0), "{targets:?}");
        for other in &others {
            assert_eq!(gradient(other, &inputs(), &adapter), expected, "{targets:?}");
        }
    }
}

#[test]
fn a_pass_and_its_backward_hold_no_more_than_is_declared_whatever_is_adapted() {
    let small = Small::new(&config());
    for checkpointing in Checkpointing::ALL {
        for targets in ADAPTED {
            let model = model(&small, checkpointing);
            model.load().unwrap();
            let (before, adapter) = (model.working_memory().0, adapter(&model, targets));
            let (_, saved) = model.predict_saving(&inputs(), &adapter, &Probe::NOTHING).unwrap();
            model.backward(saved, &adapter, &cotangent()).unwrap();
            let held = (model.working_memory().1 - before) as f64;
            let cost = cost(&model, &adapter);
            // A pass has its own copy of the adapter, and the gradient.
            let adapter = 2 * adapter.layout.len() * size_of::<f32>();
            let declared = (cost.saved_bytes + cost.backward_scratch_bytes + adapter) as f64;
            assert!(
                (0.25..1.0).contains(&(held / declared)),
                "{checkpointing:?} {targets:?}: {held} held, {declared} declared"
            );
        }
    }
}

#[test]
fn what_a_block_that_runs_again_keeps_of_what_adapted_linears_read_is_declared() {
    let small = Small::new(&config());
    let model = model(&small, Checkpointing::Blocks);
    let scratch = |targets: &[&str]| cost(&model, &adapter(&model, targets)).backward_scratch_bytes;
    let (rows, channels, blocks, rank) = (12, 16, 2, 3);
    for (linear, width) in [
        ("attn1.to_q", channels),
        ("attn1.to_out.0", 0),
        ("attn2.to_q", channels),
        ("attn2.to_out.0", channels),
        ("ff.net.0.proj", channels),
        ("ff.net.2", 4 * channels),
    ] {
        let found = scratch(&["conv_in", linear]) - scratch(&["conv_in"]);
        // Beside what is read there is the adapter's `x A^T`, which is counted for all blocks of a transformer.
        assert_eq!(found, 4 * rows * (width + blocks * rank), "{linear}");
    }
}

#[test]
fn what_adapted_linears_read_is_kept_and_declared_where_all_is() {
    let small = Small::new(&config());
    let [all, selected] =
        [Checkpointing::None, Checkpointing::Selective].map(|checkpointing| model(&small, checkpointing));
    for targets in ADAPTED {
        let adapter = adapter(&all, targets);
        let kept = [&all, &selected].map(|model| {
            model.load().unwrap();
            let before = model.working_memory().0;
            let (_, saved) = model.predict_saving(&inputs(), &adapter, &Probe::NOTHING).unwrap();
            let kept = model.working_memory().0 - before;
            drop(saved);
            kept
        });
        // Its inputs have no image tokens, of which a declaration counts those of a reference.
        let declared = [&all, &selected].map(|model| cost(model, &adapter).saved_bytes);
        assert!(kept[0] >= kept[1], "{targets:?}: {kept:?}");
        let (more, more_declared) = (kept[0] - kept[1], declared[0] - declared[1]);
        assert!(
            // Memory may be lent that is longer than what it holds.
            more <= more_declared + more_declared / 10 && more_declared <= more + more / 4,
            "{targets:?}: {more} more kept, {more_declared} declared"
        );
    }
}

#[test]
fn operations_of_blocks_that_run_again_are_those_that_their_backwards_need() {
    let small = Small::new(&config());
    let repeated = |targets: &[&str]| {
        let of = |checkpointing| {
            let model = model(&small, checkpointing);
            cost(&model, &adapter(&model, targets)).backward_flops
        };
        of(Checkpointing::Blocks) - of(Checkpointing::None)
    };
    let model = small.model(small.options());
    // The upper level has 48 pixels in two samples, the lower one 12.
    let pixels =
        |name: &str| if name.contains("down_blocks.0") || name.contains("up_blocks.1") { 48 } else { 12 };
    let (text, images) = (2 * 3, 2 * 16);
    let linears = &model.layout().linears;
    let products = linears.iter().map(|l| {
        let rows = match l
            .name
            .rsplit_once("transformer_blocks.0.")
            .or_else(|| l.name.rsplit_once("transformer_blocks.1."))
        {
            Some((_, "ff.net.2")) => 0,
            Some((_, "attn2.to_k" | "attn2.to_v")) => text,
            Some((_, "attn2.to_k_ip" | "attn2.to_v_ip")) => images,
            Some(_) => pixels(&l.name),
            None if l.name.ends_with(".conv1") => pixels(&l.name),
            None => 0,
        };
        2 * rows * l.inputs * l.outputs
    });
    // Eight blocks of 16 channels, of which each pixel looks at all pixels, text tokens and image tokens of its sample.
    let attention = 8 * 4 * 12 * 16 * (12 + text + images) / 2;
    assert_eq!(repeated(&["conv_in"]), (products.sum::<usize>() + attention) as f64);

    // Where a block's last linear has factors, its `x A^T` is made again.
    let inner = 8 * 2 * 12 * 64 * 3;
    assert_eq!(repeated(&["conv_in", "ff.net.2"]) - repeated(&["conv_in"]), inner as f64);
    // A first convolution makes its result again with its factors; of the others nothing is made again.
    let factors: usize = linears
        .iter()
        .filter(|l| l.name.ends_with(".conv1"))
        .map(|l| 2 * pixels(&l.name) * 3 * (l.inputs + l.outputs))
        .sum();
    assert_eq!(repeated(&["conv_in", "*.conv1"]) - repeated(&["conv_in"]), factors as f64);
    assert_eq!(repeated(&["conv_in", "*.conv2", "*.conv_shortcut"]), repeated(&["conv_in"]));
    assert_eq!(repeated(&["conv_out"]), 0.0);
}

#[test]
fn operations_before_the_first_adapted_linear_are_none_of_a_backward() {
    let model = model(&Small::new(&config()), Checkpointing::Blocks);
    let last = cost(&model, &adapter(&model, &["conv_out"])).backward_flops;
    let (pixels, terms, outputs, rank) = (48, 9 * 8, 4, 3);
    let by_factors = 3 * 2 * pixels * rank * (terms + outputs);
    assert_eq!(last, (2 * pixels * terms * outputs + by_factors) as f64);
}
