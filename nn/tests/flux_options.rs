//! Options change what a FLUX pass costs, not what it computes: checkpointing, streamed weights, bf16, and an
//! adapter that is part of the frozen network.

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

use std::path::Path;

use case::{Case, Network, cases, relative};
use flux::{adapter, inputs_and_cotangent};
use prefgraph_nn::{
    Adapter, Backbone, Cpu, DeviceKind, Probe,
    cpu::{Isa, Precision},
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
    layers::{Loading, Packing},
    lora::AdapterFormat,
    models::{Checkpointing, FluxOptions, FluxUno, FrozenUse},
};

fn open(case: &Case, options: FluxOptions) -> FluxUno {
    FluxUno::open_with(Cpu::new(2).unwrap(), &case.folder.join("transformer"), options).unwrap()
}

/// Prediction and gradient.
fn pass(model: &FluxUno, case: &Case, adapter: &Adapter) -> (Vec<f32>, Vec<f32>) {
    let (inputs, cotangent) = inputs_and_cotangent(case);
    let (prediction, saved) = model.predict_saving(&inputs, adapter, &Probe::NOTHING).unwrap();
    (
        prediction.latents.into_values(),
        model.backward(saved, adapter, &cotangent).unwrap().values.host().unwrap().to_vec(),
    )
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn what_a_pass_keeps_changes_no_bit_and_is_what_is_declared() {
    for case in cases(Network::Flux) {
        // The adapted linears decide what a block that runs again leaves out: without patterns they are all but the modulations.
        for patterns in [
            &["*"][..],
            &[],
            &["attn.to_q"],
            &["single_transformer_blocks.1.proj_mlp"],
            &["single_transformer_blocks.*.proj_out"],
            &["ff.net.2"],
        ] {
            let whole = open(&case, FluxOptions::default());
            let adapter = adapter(whole.layout(), patterns, 0.2);
            let expected = pass(&whole, &case, &adapter);
            let (inputs, _) = inputs_and_cotangent(&case);
            let (n, _, h, w) = inputs.x_t.shape();
            let grids: Vec<_> = inputs.references.iter().map(|r| (r.shape().2, r.shape().3)).collect();
            let mut most = usize::MAX;
            for checkpointing in Checkpointing::ALL {
                let name = format!("{} {checkpointing:?} {patterns:?}", case.name);
                let model = open(&case, FluxOptions { checkpointing, ..FluxOptions::default() });
                let found = pass(&model, &case, &adapter);
                assert_eq!(bits(&expected.0), bits(&found.0), "{name}: prediction");
                assert_eq!(bits(&expected.1), bits(&found.1), "{name}: gradient");

                let text = inputs.text.shape().1;
                let cost = model.cost(DeviceKind::Cpu, n, (h, w), &grids, text, Some(&adapter.layout));
                let (_, saved) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
                let kept = model.working_memory().0;
                let ratio = kept as f64 / cost.saved_bytes as f64;
                // Where little is adapted, what every pass keeps weighs more.
                let most_declared = if patterns == ["*"] { 1.1 } else { 1.15 };
                assert!((0.9..most_declared).contains(&ratio), "{name}: kept {ratio} of what was declared");
                assert!(kept < most, "{name}: kept {kept}, and {most} with the setting before");
                most = kept;
                drop(saved);
            }
        }
    }
}

#[test]
fn weights_that_are_streamed_from_the_file_give_the_bits_of_resident_ones() {
    for case in cases(Network::Flux) {
        for precision in [Precision::F32, Precision::Bf16] {
            let of = |packing| {
                open(&case, FluxOptions { loading: Loading { precision, packing }, ..FluxOptions::default() })
            };
            let (resident, streamed) = (of(Packing::Resident), of(Packing::Streamed));
            let adapter = adapter(resident.layout(), &["*"], 0.2);
            let (expected, found) = (pass(&resident, &case, &adapter), pass(&streamed, &case, &adapter));
            assert_eq!(bits(&expected.0), bits(&found.0), "{} {precision:?}: prediction", case.name);
            assert_eq!(bits(&expected.1), bits(&found.1), "{} {precision:?}: gradient", case.name);
            assert_eq!(streamed.resident_bytes(DeviceKind::Cpu, Some(&adapter.layout)), 0);
            assert!(
                resident.resident_bytes(DeviceKind::Cpu, Some(&adapter.layout))
                    > resident.resident_bytes(DeviceKind::Cpu, None)
            );
        }
    }
}

#[test]
fn products_in_bf16_stay_near_those_in_f32_and_an_adapter_whose_b_is_zero_changes_no_bit() {
    let loading = Loading { precision: Precision::Bf16, packing: Packing::Resident };
    for case in cases(Network::Flux) {
        let (exact, rounded) = (
            open(&case, FluxOptions::default()),
            open(&case, FluxOptions { loading, ..FluxOptions::default() }),
        );
        let trained = adapter(exact.layout(), &["*"], 0.2);
        let (expected, found) = (pass(&exact, &case, &trained), pass(&rounded, &case, &trained));
        let (prediction, gradient) = (relative(&found.0, &expected.0), relative(&found.1, &expected.1));
        // Rounding to 8 bits, once an operand.
        assert!((1e-5..2e-2).contains(&prediction), "{}: prediction off by {prediction:e}", case.name);
        assert!((1e-5..4e-2).contains(&gradient), "{}: gradient off by {gradient:e}", case.name);

        let mut zero = trained.clone();
        let values = zero.values.host_mut().unwrap();
        zero.layout.ranges().into_iter().for_each(|(_, b)| values[b].fill(0.0));
        let (inputs, _) = inputs_and_cotangent(&case);
        let with = rounded.predict(&inputs, Some(&zero), &Probe::NOTHING).unwrap().latents;
        let without = rounded.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
        assert_eq!(bits(with.values()), bits(without.values()), "{}", case.name);

        let portable = FluxOptions { loading, ..FluxOptions::default() };
        let portable = FluxUno::open_with(
            Cpu::with_isa(1, Isa::Portable).unwrap(),
            &case.folder.join("transformer"),
            portable,
        )
        .unwrap();
        let there = portable.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
        assert_eq!(bits(there.values()), bits(without.values()), "{}: without vectors", case.name);
    }
}

fn with_frozen(case: &Case, file: &Path, how: FrozenUse) -> FluxUno {
    open(case, FluxOptions { adapter: Some((file.into(), how)), ..FluxOptions::default() })
}

#[test]
fn a_frozen_adapter_is_part_of_the_reference_as_a_branch_or_merged() {
    let dir = tempfile::tempdir().unwrap();
    for case in cases(Network::Flux) {
        let plain = open(&case, FluxOptions::default());
        let frozen = adapter(plain.layout(), &["attn.*", "proj_out"], 0.3);
        let file = dir.path().join("frozen.safetensors");
        frozen.write(&file, AdapterFormat::Diffusers, &[]).unwrap();
        let (inputs, _) = inputs_and_cotangent(&case);
        let expected = plain.predict(&inputs, Some(&frozen), &Probe::NOTHING).unwrap().latents;
        let bare = plain.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
        assert!(relative(bare.values(), expected.values()) > 1e-3, "the adapter must be seen");
        for how in [FrozenUse::Branch, FrozenUse::Merged] {
            let model = with_frozen(&case, &file, how);
            let found = model.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
            let error = relative(found.values(), expected.values());
            assert!(error < 1e-5, "{} {how:?}: off by {error:e}", case.name);

            // What is trained on top: off, it leaves the frozen one on; on, its gradient is that beside merged weights.
            let mut zero = adapter(model.layout(), &["*"], 0.2);
            let values = zero.values.host_mut().unwrap();
            zero.layout.ranges().into_iter().for_each(|(_, b)| values[b].fill(0.0));
            let off = model.predict(&inputs, Some(&zero), &Probe::NOTHING).unwrap().latents;
            assert_eq!(bits(off.values()), bits(found.values()), "{} {how:?}", case.name);
        }
        let trained = adapter(plain.layout(), &["*"], 0.2);
        let branch = pass(&with_frozen(&case, &file, FrozenUse::Branch), &case, &trained);
        let merged = pass(&with_frozen(&case, &file, FrozenUse::Merged), &case, &trained);
        let errors = (relative(&branch.0, &merged.0), relative(&branch.1, &merged.1));
        assert!(errors.0 < 1e-5 && errors.1 < 1e-4, "{}: off by {errors:?}", case.name);
    }
}

#[test]
fn a_streamed_weight_that_is_no_number_is_found_in_the_first_pass() {
    let case = &cases(Network::Flux)[0];
    let dir = tempfile::tempdir().unwrap();
    let from = case.folder.join("transformer");
    for file in std::fs::read_dir(&from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let path = dir.path().join("diffusion_pytorch_model.safetensors");
    let damaged = "single_transformer_blocks.1.proj_mlp.weight";
    let tensors: Vec<NamedTensor> = {
        let files = TensorFiles::open(&path).unwrap();
        let tensor = |name: &str| {
            let info = files.info(name).unwrap();
            let mut bytes = files.bytes(name).unwrap().to_vec();
            if name == damaged {
                assert_eq!(info.dtype, Dtype::F32);
                bytes[4 * 77..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            NamedTensor {
                name: name.into(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: bytes.into(),
            }
        };
        files.names().map(tensor).collect()
    };
    write_safetensors(&path, &tensors, &[]).unwrap();
    let options = FluxOptions {
        loading: Loading { packing: Packing::Streamed, ..Loading::default() },
        ..FluxOptions::default()
    };
    let model = FluxUno::open_with(Cpu::new(1).unwrap(), dir.path(), options).unwrap();
    let error = model.predict(&inputs_and_cotangent(case).0, None, &Probe::NOTHING).unwrap_err().to_string();
    for part in ["diffusion_pytorch_model.safetensors", damaged, "NaN at element 77"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_frozen_adapter_is_not_merged_into_weights_that_are_streamed() {
    let case = &cases(Network::Flux)[0];
    let plain = open(case, FluxOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("frozen.safetensors");
    adapter(plain.layout(), &["attn.to_q"], 0.3).write(&file, AdapterFormat::Diffusers, &[]).unwrap();
    let options = FluxOptions {
        loading: Loading { packing: Packing::Streamed, ..Loading::default() },
        adapter: Some((file, FrozenUse::Merged)),
        ..FluxOptions::default()
    };
    let error = FluxUno::open_with(Cpu::new(1).unwrap(), &case.folder.join("transformer"), options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("resident"), "{error}");
}
