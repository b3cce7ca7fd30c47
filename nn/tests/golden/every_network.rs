//! What holds of the passes of every network.

use prefgraph_nn::{Cpu, Probe, device::Precision, layers::Loading};

use crate::{
    case::{Case, Network, cases, relative},
    training,
};

/// The cases of a network; those of a U-Net with its resampler outside and inside.
pub fn every_case(network: Network) -> Vec<Case> {
    let inside = cases(network).into_iter().filter(|case| case.network == Network::UNet);
    cases(network).into_iter().chain(inside.map(Case::with_resampler)).collect()
}

/// A prediction has the same bits on other threads, with a probe, while saving, and with an adapter whose B is zero.
pub fn depends_on_its_inputs_alone(network: Network) {
    for case in every_case(network) {
        let values = case.file("forward.safetensors");
        let inputs = case.inputs(&values, "", &["x_t"]);
        let [one, three] = [1, 3].map(|threads| {
            let cpu = Cpu::new(threads).unwrap();
            let model = case.open(cpu.clone(), cpu, Loading::default());
            model.predict(&inputs, None, &Probe::NOTHING).unwrap().latents
        });
        assert_eq!(one.values(), three.values(), "{}: on three threads", case.name);
        for (device, model) in case.on_every_device() {
            let of = format!("{} on {device}", case.name);
            let expected = model.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
            let probe = Probe { tokens: 0..model.layout().blocks, ..Probe::NOTHING };
            let seen = model.predict(&inputs, None, &probe).unwrap().latents;
            assert_eq!(seen.values(), expected.values(), "{of}: with a probe");
            let adapter = case.adapter_with_zero_b(&*model);
            let adapted = model.predict(&inputs, Some(&adapter), &Probe::NOTHING).unwrap().latents;
            assert_eq!(adapted.values(), expected.values(), "{of}: with B = 0");
            let (saving, _) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
            assert_eq!(saving.latents.values(), expected.values(), "{of}: while saving");
        }
    }
}

/// In bf16 the prediction and the first gradient are off by roundings, and by no more.
pub fn stays_near_in_bf16(network: Network) {
    for case in every_case(network) {
        let values = case.file("forward.safetensors");
        let inputs = case.inputs(&values, "", &["x_t"]);
        let expected = values.read("pred").unwrap();
        for (device, model) in case.on_every_device_in(Precision::Bf16) {
            let of = format!("{} on {device} in bf16", case.name);
            let found = model.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
            let off = relative(found.values(), &expected);
            eprintln!("{of}: prediction off by {off:.1e}");
            // A rounding to bf16 is off by at most 4e-3, and activations are rounded after every operation on a GPU.
            assert!(off > 1e-5 && off < 2e-2, "{of}: prediction off by {off:e}");
            // Runs of the reference train a U-Net's resampler, too.
            if network == Network::UNet && !case.resampler {
                continue;
            }
            let objective = training::Objective::Supervised;
            let name = "train_sft.safetensors";
            let Some(step) = training::first_step(&case, name, objective, &*model) else { continue };
            let off = step.gradient_off;
            eprintln!("{of}: first gradient off by {off:.1e}");
            assert!(off > 1e-5 && off < 5e-2, "{of}: first gradient off by {off:e}");
        }
    }
}
