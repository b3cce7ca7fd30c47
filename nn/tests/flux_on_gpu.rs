//! Memory of FLUX on a GPU: what passes hold is what is declared, and streamed weights hold a window only, without a change of bits.
//!
//! Without a GPU, or the stand-in for its driver (`scripts/standin.sh`), these tests say that they are skipped.

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

use std::{
    io::Write,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use case::{Case, Network, cases};
use flux::{adapter, inputs_and_cotangent};
use half::{bf16, f16};
use prefgraph_nn::{
    Adapter, Backbone, Cpu, Device, DeviceKind, Inputs, PassCost, Probe,
    backbone::Latents,
    cpu::Precision,
    cuda::{self, Cuda},
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
    layers::{Loading, Packing},
    models::{Checkpointing, FluxOptions, flux::Flux},
};
use tempfile::TempDir;

/// The memory of a GPU is that of the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The first GPU, for this test alone: its memory is free again before the next test begins. Without one the test is skipped, and says so.
fn gpu() -> Option<(MutexGuard<'static, ()>, Cuda)> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match cuda::is_there() {
        Ok(()) => {
            let gpu = Cuda::open(0).unwrap();
            // Streams with their workspaces, which all passes use one after the other.
            drop([gpu.queue(Precision::F32).unwrap(), gpu.urgent_queue(Precision::F32).unwrap()]);
            Some((alone, gpu))
        }
        Err(why) => {
            // Straight to the stream: the test harness swallows what `eprintln` writes in a test that passes.
            std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
            None
        }
    }
}

/// A model on a GPU with what a pass over it takes.
struct Setting {
    gpu: Cuda,
    model: Flux<Cuda>,
    inputs: Inputs,
    cotangent: Latents,
    adapter: Adapter,
}

/// What a pass gives, and the most memory that was used meanwhile.
struct Done {
    prediction: Vec<u32>,
    gradient: Vec<u32>,
    /// Bytes between forward and backward, and at the fullest moment.
    kept: usize,
    most: usize,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The transformer of a case with its weights in another dtype.
fn in_dtype(case: &Case, dtype: Dtype) -> TempDir {
    let (folder, from) = (tempfile::tempdir().unwrap(), case.folder.join("transformer"));
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let files = TensorFiles::open(&from.join(WEIGHTS)).unwrap();
    let tensor = |name: &str| {
        let values = files.read(name).unwrap();
        let bytes: Vec<u8> = match dtype {
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let shape = files.info(name).unwrap().shape.clone();
        NamedTensor { name: name.to_owned(), dtype, shape, bytes: bytes.into() }
    };
    let tensors: Vec<NamedTensor<'_>> = files.names().map(tensor).collect();
    write_safetensors(&folder.path().join(WEIGHTS), &tensors, &[]).unwrap();
    folder
}

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

impl Setting {
    fn new(gpu: &Cuda, case: &Case, options: FluxOptions) -> Self {
        Self::of(gpu, case, &case.folder.join("transformer"), options)
    }

    /// With the weights of another folder.
    fn of(gpu: &Cuda, case: &Case, path: &Path, options: FluxOptions) -> Self {
        let host = Cpu::new(1).unwrap();
        let model = Flux::open_on(gpu.clone(), host, path, options).unwrap();
        let (inputs, cotangent) = inputs_and_cotangent(case);
        let adapter = adapter(model.layout(), &["*"], 0.1);
        Self { gpu: gpu.clone(), model, inputs, cotangent, adapter }
    }

    /// With an adapter of these linears.
    fn adapted(self, patterns: &[&str]) -> Self {
        Self { adapter: adapter(self.model.layout(), patterns, 0.1), ..self }
    }

    /// Declared bytes of a pass with the adapter.
    fn cost(&self) -> PassCost {
        let (n, _, h, w) = self.inputs.x_t.shape();
        let grids: Vec<_> = self.inputs.references.iter().map(|r| (r.shape().2, r.shape().3)).collect();
        let text = self.inputs.text.shape().1;
        self.model.cost(DeviceKind::Cuda, n, (h, w), &grids, text, Some(&self.adapter.layout))
    }

    /// Bytes of the GPU's memory that are used now.
    fn used(&self) -> usize {
        self.gpu.used_memory().unwrap() as usize
    }

    fn resident(&self) -> usize {
        self.model.resident_bytes(DeviceKind::Cuda, Some(&self.adapter.layout))
    }

    /// Forward and backward; memory is counted from the loaded model on.
    fn run(&self) -> Done {
        self.model.load().unwrap();
        self.gpu.forget_peak_memory().unwrap();
        let before = self.used();
        let (prediction, saved) =
            self.model.predict_saving(&self.inputs, &self.adapter, &Probe::NOTHING).unwrap();
        let kept = self.used() - before;
        let gradient = self.model.backward(saved, &self.adapter, &self.cotangent).unwrap();
        let most = self.gpu.peak_memory().unwrap() as usize - before;
        let gradient = bits(&gradient.values.host().unwrap());
        Done { prediction: bits(prediction.latents.values()), gradient, kept, most }
    }
}

fn options(precision: Precision, packing: Packing, checkpointing: Checkpointing) -> FluxOptions {
    FluxOptions { loading: Loading { precision, packing }, checkpointing, ..FluxOptions::default() }
}

#[test]
fn streamed_weights_give_the_bits_of_resident_ones_and_hold_a_window_only() {
    let Some((_alone, gpu)) = gpu() else { return };
    for case in cases(Network::Flux) {
        for precision in [Precision::F32, Precision::Bf16] {
            for checkpointing in Checkpointing::ALL {
                let of = |packing| Setting::new(&gpu, &case, options(precision, packing, checkpointing));
                let resident = of(Packing::Resident);
                let (expected, matrices) = (resident.run(), resident.resident());
                let window =
                    |streamed: &Setting| streamed.cost().scratch_bytes - resident.cost().scratch_bytes;
                let streamed = of(Packing::Streamed);
                let found = streamed.run();
                let name = format!("{} {precision:?} {checkpointing:?}", case.name);
                assert_eq!(expected.prediction, found.prediction, "{name}: prediction");
                assert_eq!(expected.gradient, found.gradient, "{name}: gradient");
                // Every matrix begins at a round address.
                let window = window(&streamed) + 3 * 256 * 64;
                assert!(
                    found.most <= expected.most + window,
                    "{name}: {} of passes with a window of {window}, {} without",
                    found.most,
                    expected.most
                );
                assert!(streamed.resident() < matrices / 4, "{name}: biases and norms stay, and no matrix");
            }
        }
    }
}

#[test]
fn what_a_pass_keeps_changes_no_bit_whatever_is_adapted() {
    let Some((_alone, gpu)) = gpu() else { return };
    for case in cases(Network::Flux) {
        for precision in [Precision::F32, Precision::Bf16] {
            // Without patterns all linears but the modulations.
            for patterns in [&["*"][..], &[], &["attn.to_k"], &["proj_out"], &["ff_context.net.2"]] {
                let [all, selected, inputs] = Checkpointing::ALL.map(|checkpointing| {
                    let options = options(precision, Packing::Resident, checkpointing);
                    Setting::new(&gpu, &case, options).adapted(patterns).run()
                });
                let name = format!("{} {precision:?} {patterns:?}", case.name);
                for found in [&selected, &inputs] {
                    assert_eq!(all.prediction, found.prediction, "{name}: prediction");
                    assert_eq!(all.gradient, found.gradient, "{name}: gradient");
                }
                assert!(selected.kept < all.kept, "{name}: what products made is less than all");
                assert!(
                    inputs.kept < selected.kept,
                    "{name}: inputs of blocks are less than what products made"
                );
            }
        }
    }
}

#[test]
fn streamed_weights_of_every_dtype_are_stored_as_resident_ones_are() {
    let Some((_alone, gpu)) = gpu() else { return };
    let case = &cases(Network::Flux)[0];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let folder = in_dtype(case, dtype);
        for precision in [Precision::F32, Precision::Bf16] {
            let [expected, found] = [Packing::Resident, Packing::Streamed].map(|packing| {
                let options = options(precision, packing, Checkpointing::None);
                Setting::of(&gpu, case, folder.path(), options).run()
            });
            assert_eq!(expected.prediction, found.prediction, "{dtype:?} {precision:?}: prediction");
            assert_eq!(expected.gradient, found.gradient, "{dtype:?} {precision:?}: gradient");
        }
    }
}

#[test]
fn factors_that_are_made_at_once_give_the_bits_of_those_made_one_by_one() {
    let Some((_alone, gpu)) = gpu() else { return };
    for case in cases(Network::Flux) {
        for precision in [Precision::F32, Precision::Bf16] {
            let options = options(precision, Packing::Resident, Checkpointing::None);
            let setting = Setting::new(&gpu, &case, options);
            // The first pass learns which factors stand together, and the second one finds them made.
            let [one_by_one, at_once] = [setting.run(), setting.run()];
            assert_eq!(one_by_one.prediction, at_once.prediction, "{} {precision:?}: prediction", case.name);
            assert_eq!(one_by_one.gradient, at_once.gradient, "{} {precision:?}: gradient", case.name);
            assert!(
                one_by_one.kept < at_once.kept,
                "{}: the second pass has made no more at once",
                case.name
            );
        }
    }
}

#[test]
fn two_passes_at_once_have_a_window_each() {
    let Some((_alone, gpu)) = gpu() else { return };
    let case = &cases(Network::Flux)[0];
    let of = |packing| Setting::new(&gpu, case, options(Precision::F32, packing, Checkpointing::None));
    let expected = of(Packing::Resident).run();
    let streamed = of(Packing::Streamed);
    let predict = || {
        let found = streamed.model.predict(&streamed.inputs, Some(&streamed.adapter), &Probe::NOTHING);
        bits(found.unwrap().latents.values())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(predict);
        assert_eq!(predict(), expected.prediction);
        assert_eq!(other.join().unwrap(), expected.prediction);
    });
}

#[test]
fn the_declared_memory_is_what_a_pass_holds_on_a_gpu() {
    let Some((_alone, gpu)) = gpu() else { return };
    for case in cases(Network::Flux) {
        for precision in [Precision::F32, Precision::Bf16] {
            let adapted = |c| [(c, &["*"][..]), (c, &[]), (c, &["attn.to_q"]), (c, &["*.proj_out"])];
            for (checkpointing, patterns) in Checkpointing::ALL.into_iter().flat_map(adapted) {
                let options = options(precision, Packing::Resident, checkpointing);
                let setting = Setting::new(&gpu, &case, options).adapted(patterns);
                let unloaded = gpu.used_memory().unwrap() as usize;
                setting.model.load().unwrap();
                let weights = gpu.used_memory().unwrap() as usize - unloaded;
                // The first pass learns which factors it makes at once.
                setting.run();
                let (found, cost) = (setting.run(), setting.cost());
                let name = format!("{} {precision:?} {checkpointing:?} {patterns:?}", case.name);
                assert_eq!(weights, setting.resident(), "{name}: weights");
                // A pass has its own copy of the adapter, and the gradient.
                let adapter = setting.adapter.layout.len() * size_of::<f32>();
                let kept = cost.saved_bytes + cost.factor_bytes;
                let ratio = (found.kept - adapter) as f64 / kept as f64;
                assert!((0.9..1.1).contains(&ratio), "{name}: kept {ratio} of what was declared");
                let declared = kept + cost.backward_scratch_bytes + 2 * adapter;
                let ratio = found.most as f64 / declared as f64;
                assert!((0.85..=1.0).contains(&ratio), "{name}: held {ratio} of what was declared");
            }
        }
    }
}
