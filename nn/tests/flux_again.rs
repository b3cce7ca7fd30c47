//! Blocks of FLUX that run again for their backward, and what a pass holds: for networks of both kinds of blocks and of one, whatever is
//! adapted and whatever a probe asks.

#[allow(dead_code, reason = "shared with the golden test, which uses the rest")]
#[path = "golden/case.rs"]
mod case;
#[path = "golden/flux.rs"]
mod flux;
#[allow(dead_code, reason = "of the U-Net's cases")]
#[path = "golden/image_tokens.rs"]
mod image_tokens;
#[path = "small_unet/numbers.rs"]
mod numbers;
mod slopes;

use std::{path::Path, sync::Arc};

use case::{Case, Network, cases};
use flux::{adapter, inputs_and_cotangent};
use prefgraph_nn::{
    Adapter, Backbone, Cpu, DeviceKind, Inputs, PassCost, Probe,
    backbone::{Latents, Scoring},
    files::{NamedTensor, TensorFiles, write_safetensors},
    models::{Checkpointing, FluxOptions, FluxUno},
};
use serde_json::Value;
use slopes::along_every_factor;

/// The last one is all linears but the modulations.
const ADAPTED: [&[&str]; 6] = [
    &["*"],
    &["attn.to_q"],
    &["ff.net.2"],
    &["single_transformer_blocks.1.proj_mlp"],
    &["single_transformer_blocks.*.proj_out"],
    &[],
];

fn open(folder: &Path, checkpointing: Checkpointing) -> FluxUno {
    let options = FluxOptions { checkpointing, ..FluxOptions::default() };
    FluxUno::open_with(Cpu::new(2).unwrap(), folder, options).unwrap()
}

fn cost(model: &FluxUno, inputs: &Inputs, adapter: Option<&Adapter>) -> PassCost {
    let (n, _, h, w) = inputs.x_t.shape();
    let grids: Vec<_> = inputs.references.iter().map(|r| (r.shape().2, r.shape().3)).collect();
    model.cost(DeviceKind::Cpu, n, (h, w), &grids, inputs.text.shape().1, adapter.map(|a| &*a.layout))
}

fn gradient(
    model: &FluxUno,
    (inputs, cotangent): &(Inputs, Latents),
    adapter: &Adapter,
    probe: &Probe<'_>,
) -> Vec<f32> {
    let (_, saved) = model.predict_saving(inputs, adapter, probe).unwrap();
    model.backward(saved, adapter, cotangent).unwrap().values.host().unwrap().to_vec()
}

#[test]
fn a_pass_and_its_backward_hold_no_more_than_is_declared_whatever_is_adapted() {
    for case in cases(Network::Flux) {
        let (inputs, cotangent) = inputs_and_cotangent(&case);
        for checkpointing in Checkpointing::ALL {
            for patterns in ADAPTED {
                let name = format!("{} {checkpointing:?} {patterns:?}", case.name);
                let model = open(&case.folder.join("transformer"), checkpointing);
                model.load().unwrap();
                let adapter = adapter(model.layout(), patterns, 0.2);
                let cost = cost(&model, &inputs, Some(&adapter));
                // Without a backward first: the most is that of all passes of a model so far.
                model.predict(&inputs, Some(&adapter), &Probe::NOTHING).unwrap();
                let adapter_bytes = adapter.layout.len() * size_of::<f32>();
                let share = |declared: usize| model.working_memory().1 as f64 / declared as f64;
                let alone = share(cost.scratch_bytes + adapter_bytes);
                assert!((0.75..=1.0).contains(&alone), "{name}: a forward held {alone} of what was declared");
                let (_, saved) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
                model.backward(saved, &adapter, &cotangent).unwrap();
                // A pass has its own copy of the adapter, and the gradient.
                let both = share(cost.saved_bytes + cost.backward_scratch_bytes + 2 * adapter_bytes);
                assert!((0.75..=1.0).contains(&both), "{name}: held {both} of what was declared");
            }
        }
    }
}

#[test]
fn a_probe_changes_no_bit_of_the_gradient() {
    for case in cases(Network::Flux) {
        let both = inputs_and_cotangent(&case);
        let masks: Vec<Vec<f32>> = both
            .0
            .references
            .iter()
            .map(|r| {
                let (n, _, h, w) = r.shape();
                vec![1.0; n * h * w / 4]
            })
            .collect();
        for checkpointing in Checkpointing::ALL {
            let model = open(&case.folder.join("transformer"), checkpointing);
            let adapter = adapter(model.layout(), &["*"], 0.2);
            let expected = gradient(&model, &both, &adapter, &Probe::NOTHING);
            // After the last block a probe sees more rows than its backward has.
            let blocks = 0..model.layout().blocks;
            let (samples, cells) = (both.0.x_t.shape().0, None);
            let scores = Scoring { blocks: blocks.clone(), cells, samples, masks: &masks };
            let probe = Probe { scores: Some(scores), tokens: blocks };
            let found = gradient(&model, &both, &adapter, &probe);
            assert_eq!(found, expected, "{} {checkpointing:?}", case.name);
        }
    }
}

/// The folder of a case's network with so many blocks of each kind.
fn with_blocks(case: &Case, double: usize, single: usize) -> tempfile::TempDir {
    let (from, folder) = (case.folder.join("transformer"), tempfile::tempdir().unwrap());
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(from.join("config.json")).unwrap()).unwrap();
    config["num_layers"] = double.into();
    config["num_single_layers"] = single.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    let files = TensorFiles::open(&from.join(weights)).unwrap();
    // `[single_]transformer_blocks.N.` begins the name of what is in a block.
    let is_there = |name: &str| {
        let block = |prefix: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        block("transformer_blocks.").is_none_or(|n| n < double)
            && block("single_transformer_blocks.").is_none_or(|n| n < single)
    };
    let names: Vec<&str> = files.names().filter(|name| is_there(name)).collect();
    let values: Vec<Vec<f32>> = names.iter().map(|name| files.read(name).unwrap()).collect();
    let shape = |name: &str| files.info(name).unwrap().shape.clone();
    let tensors: Vec<_> =
        names.iter().zip(&values).map(|(name, v)| NamedTensor::f32(*name, shape(name), v)).collect();
    write_safetensors(&folder.path().join(weights), &tensors, &[]).unwrap();
    folder
}

#[test]
fn networks_of_one_kind_of_block_have_the_derivative_of_finite_differences_and_the_same_bits_again() {
    let case = &cases(Network::Flux)[0];
    let both = inputs_and_cotangent(case);
    // Behind the last block nobody reads text: of its stream there are only keys and values then.
    let read: &[&str] = &[
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "ff.net.*",
        "norm1.linear",
        "attn.add_k_proj",
        "attn.add_v_proj",
    ];
    for (double, single, patterns) in [(1, 0, read), (0, 1, &["*"])] {
        let folder = with_blocks(case, double, single);
        let [model, others @ ..] = Checkpointing::ALL.map(|checkpointing| open(folder.path(), checkpointing));
        let adapter = adapter(model.layout(), patterns, 0.2);
        let gradient_of = |model| gradient(model, &both, &adapter, &Probe::NOTHING);
        let expected = gradient_of(&model);
        for other in &others {
            assert_eq!(gradient_of(other), expected, "{double} and {single} blocks");
        }
        let value = |values: Vec<f32>| -> f64 {
            let adapter = Adapter { layout: Arc::clone(&adapter.layout), values: values.into() };
            let found = model.predict(&both.0, Some(&adapter), &Probe::NOTHING).unwrap().latents;
            found.values().iter().zip(both.1.values()).map(|(p, c)| f64::from(p * c)).sum()
        };
        let values = adapter.values.host().unwrap().to_vec();
        for found in along_every_factor(&adapter.layout, &values, &expected, |length| 2e-2 / length, value) {
            let (slope, expected) = (found.slope, found.expected());
            assert!(found.error() < 1e-2, "{}: slope {slope}, expected {expected}", found.factor);
        }
    }
}
