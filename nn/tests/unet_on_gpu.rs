//! Training of a U-Net on a GPU against the processor: factors of convolutions and of linears, and linears of an IP-Adapter that are
//! trained whole, for two steps.
//!
//! Without a GPU, or the stand-in for its driver (`scripts/standin.sh`), these tests say that they are skipped.

mod small_unet;

use std::{io::Write, sync::Arc};

use prefgraph_nn::{
    Adapter, Backbone, Cpu, Inputs, Probe,
    cpu::Precision,
    cuda::{self, Cuda},
    layers::{Loading, Packing},
    lora::AdapterLayout,
    models::{
        Checkpointing, UNetOptions,
        unet::{ResamplerUse, UNet},
    },
    optim::{AdamW, OptimizerState},
};
use small_unet::{PICTURE_TOKENS, Small, config, cotangent, inputs, inputs_of_pictures, numbers};

/// The first GPU; without one the test is skipped, and says so.
fn gpu() -> Option<Cuda> {
    match cuda::is_there() {
        Ok(()) => Some(Cuda::open(0).unwrap()),
        Err(why) => {
            // Straight to the stream: the test harness swallows what `eprintln` writes in a test that passes.
            std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
            None
        }
    }
}

/// What is trained: patterns of linears with factors, and of those trained whole.
struct Trained {
    targets: &'static [&'static str],
    whole: &'static [&'static str],
    inside: bool,
}

const KEYS: &[&str] = &["*.to_k_ip", "*.to_v_ip"];
const TRAINED: [Trained; 6] = [
    Trained { targets: &[], whole: KEYS, inside: false },
    Trained { targets: &["conv*"], whole: &[], inside: false },
    // The first and the last convolution alone: a backward that goes all the way, and one that hardly begins.
    Trained { targets: &["conv_in", "conv_out"], whole: &[], inside: false },
    Trained { targets: &["conv*", "to_q", "proj_in", "ff.net.2"], whole: KEYS, inside: false },
    // All that a block that runs again may keep for its backward at once.
    Trained { targets: &["*"], whole: &[], inside: false },
    Trained {
        targets: &["*.downsamplers.0.conv", "*.upsamplers.0.conv"],
        whole: &["*.to_k_ip", "encoder_hid_proj.*"],
        inside: true,
    },
];

impl Trained {
    fn options(&self, small: &Small) -> UNetOptions {
        small.options_with(if self.inside {
            ResamplerUse::Inside { tokens: PICTURE_TOKENS }
        } else {
            ResamplerUse::Outside
        })
    }

    fn inputs(&self) -> Inputs {
        if self.inside { inputs_of_pictures() } else { inputs() }
    }

    /// Small values everywhere, so that what comes before a factor and what comes behind it both have a derivative.
    fn start(&self, model: &dyn Backbone) -> Adapter {
        let linears = &model.layout().linears;
        let layout = match self.targets {
            [] => AdapterLayout::of_factors(linears.names, Vec::new(), 3, 6.0),
            targets => AdapterLayout::matching(linears, targets, 3, 6.0).unwrap().0,
        };
        let layout = match self.whole {
            [] => layout,
            whole => layout.with_whole(linears, whole).unwrap().0,
        };
        let values: Vec<f32> = numbers(layout.len(), 7).iter().map(|v| 0.1 * v).collect();
        Adapter { layout: Arc::new(layout), values: values.into() }
    }

    /// The prediction, the gradient and the change of the adapter in each of two steps towards a target.
    fn steps(&self, model: &dyn Backbone, cpu: &Cpu) -> Vec<[Vec<f32>; 3]> {
        let (inputs, target) = (self.inputs(), cotangent());
        let mut adapter = self.start(model);
        let mut state = OptimizerState::new(adapter.values.len());
        // An eps that is large beside most gradients: where it is not, a value moves by the sign of its gradient, however faint that is.
        let settings = AdamW { lr: 1e-2, eps: 1.0, ..AdamW::default() };
        let step = |_| {
            let before = adapter.values.host().unwrap().to_vec();
            let (found, saved) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
            let mut by_prediction = found.latents.clone();
            by_prediction.values_mut().iter_mut().zip(target.values()).for_each(|(p, t)| *p -= t);
            let gradient = model.backward(saved, &adapter, &by_prediction).unwrap();
            state.step(cpu, &settings, &mut adapter, &gradient).unwrap();
            let after = adapter.values.host().unwrap().to_vec();
            let change = after.iter().zip(before).map(|(after, before)| after - before).collect();
            [found.latents.values().to_vec(), gradient.values.host().unwrap().to_vec(), change]
        };
        (0..2).map(step).collect()
    }
}

/// The difference, relative to what is expected, both by their norms.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let mut differences = found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e));
    let size = norm(&mut expected.iter().map(|e| f64::from(*e)));
    assert!(size > 0.0);
    norm(&mut differences) / size
}

const WHAT: [&str; 3] = ["prediction", "gradient", "change"];

#[test]
fn whole_linears_and_factors_of_convolutions_are_trained_on_a_gpu_as_on_the_processor() {
    let Some(gpu) = gpu() else { return };
    let (small, cpu) = (Small::new(&config()), Cpu::new(2).unwrap());
    for trained in &TRAINED {
        let of = format!("{:?} {:?}", trained.targets, trained.whole);
        let options = |precision| UNetOptions {
            loading: Loading { precision, ..Loading::default() },
            ..trained.options(&small)
        };
        let on_cpu = |precision| trained.steps(&small.model(options(precision)), &cpu);
        let on_gpu = |precision| {
            let options = options(precision);
            trained.steps(&UNet::open_on(gpu.clone(), cpu.clone(), small.path(), options).unwrap(), &cpu)
        };
        let (expected, found) = (on_cpu(Precision::F32), on_gpu(Precision::F32));
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            for what in 0..WHAT.len() {
                let off = off(&found[what], &expected[what]);
                eprintln!("{of}, step {step}: {} off by {off:.1e}", WHAT[what]);
                assert!(off <= 5e-5, "{of}, step {step}: {} off by {off:e}, at most 5e-5", WHAT[what]);
            }
        }
        // In bf16 a small network of large weights is far from itself in f32. The processor rounds the operands of products only, and a GPU
        // all that it stores; it may be off by as much more.
        let limit = |cpu: f64| (4.0 * cpu).min(0.2);
        let (cpu, gpu) = (on_cpu(Precision::Bf16), on_gpu(Precision::Bf16));
        for what in 0..WHAT.len() {
            let [cpu, gpu] = [&cpu, &gpu].map(|found| off(&found[0][what], &expected[0][what]));
            eprintln!("{of} in bf16: {} off by {cpu:.1e} on the processor, {gpu:.1e} on the GPU", WHAT[what]);
            assert!(gpu <= limit(cpu), "{of} in bf16: {} off by {cpu:e} and {gpu:e}", WHAT[what]);
        }
    }
}

#[test]
fn on_a_gpu_steps_have_the_same_bits_whatever_a_pass_keeps_and_wherever_weights_are() {
    let Some(gpu) = gpu() else { return };
    let (small, cpu) = (Small::new(&config()), Cpu::new(2).unwrap());
    for trained in &TRAINED {
        let steps = |precision, checkpointing, packing| {
            let loading = Loading { precision, packing };
            let options = UNetOptions { checkpointing, loading, ..trained.options(&small) };
            let model = UNet::open_on(gpu.clone(), cpu.clone(), small.path(), options).unwrap();
            trained.steps(&model, &cpu)
        };
        for precision in [Precision::F32, Precision::Bf16] {
            let expected = steps(precision, Checkpointing::None, Packing::Resident);
            for (checkpointing, packing) in [
                (Checkpointing::Selective, Packing::Resident),
                (Checkpointing::Blocks, Packing::Resident),
                (Checkpointing::Blocks, Packing::Streamed),
            ] {
                let found = steps(precision, checkpointing, packing);
                let of = (trained.targets, trained.whole);
                assert!(found == expected, "{of:?} {precision:?} {packing:?} {checkpointing:?}");
            }
        }
    }
}
