//! Passes from several threads over one model whose kernels use the pool: no pool thread blocks on another pass.
//!
//! The golden cases are too small for that: their kernels run on the caller's own thread.

mod wide;

use std::{
    path::Path,
    sync::{Arc, Barrier, mpsc},
    thread,
    time::Duration,
};

use prefgraph_nn::{Adapter, Backbone, Cpu, Inputs, Probe, Tensor, lora::AdapterLayout, models::FluxUno};
use wide::{numbers, write_model};

const THREADS: usize = 2;
/// Models that are opened anew: a race is not lost every time.
const ROUNDS: usize = 4;
/// A round takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(120);

fn inputs(cpu: &Cpu) -> Inputs {
    let latents = |h, w, salt| Tensor::new(cpu, (1, 16, h, w), numbers(16 * h * w, salt, 1.0)).unwrap();
    Inputs {
        x_t: latents(16, 16, 1),
        t: vec![0.5],
        text: Tensor::new(cpu, (1, 8, 64), numbers(8 * 64, 2, 1.0)).unwrap(),
        pooled: Tensor::new(cpu, (1, 32), numbers(32, 3, 1.0)).unwrap(),
        references: vec![latents(8, 8, 4)],
        guidance: None,
        sizes: Vec::new(),
        image_tokens: None,
        image_scale: None,
    }
}

fn open(folder: &Path) -> (FluxUno, Adapter) {
    let model = FluxUno::open(Cpu::new(THREADS).unwrap(), folder).unwrap();
    let layout = Arc::new(AdapterLayout::matching(&model.layout().linears, &["*"], 4, 4.0).unwrap().0);
    let values = Arc::new(numbers(layout.len(), 5, 0.05));
    (model, Adapter { layout, values: values.into() })
}

/// The bits of a prediction and of a gradient.
fn pass(model: &FluxUno, adapter: &Adapter) -> (Vec<u32>, Vec<u32>) {
    let inputs = inputs(model.device());
    let (prediction, saved) = model.predict_saving(&inputs, adapter, &Probe::NOTHING).unwrap();
    let gradient = model.backward(saved, adapter, &inputs.x_t).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    (bits(prediction.latents.values()), bits(&gradient.values.host().unwrap()))
}

/// Runs `work` in a thread of its own and gives it up when it takes too long.
fn watched<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    result.recv_timeout(PATIENCE).expect("the passes wait for each other, or one of them has failed")
}

#[test]
fn passes_that_start_together_on_a_model_that_is_not_loaded_end_with_the_bits_of_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let folder = dir.path().to_owned();
    watched(move || {
        let (model, adapter) = open(&folder);
        let alone = pass(&model, &adapter);
        for _ in 0..ROUNDS {
            let (model, adapter) = open(&folder);
            let start = Barrier::new(3);
            thread::scope(|scope| {
                let run = || {
                    start.wait();
                    pass(&model, &adapter)
                };
                let passes = [(); 3].map(|()| scope.spawn(run));
                for found in passes {
                    assert!(found.join().unwrap() == alone);
                }
            });
        }
    });
}

#[test]
fn backwards_that_start_together_end_with_the_bits_of_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let folder = dir.path().to_owned();
    watched(move || {
        let (model, adapter) = open(&folder);
        let (_, alone) = pass(&model, &adapter);
        for _ in 0..ROUNDS {
            // No backward has packed a weight yet.
            let (model, adapter) = open(&folder);
            let start = Barrier::new(3);
            let inputs = inputs(model.device());
            let saved = [(); 3].map(|()| model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap().1);
            thread::scope(|scope| {
                let backwards = saved.map(|saved| {
                    scope.spawn(|| {
                        start.wait();
                        model.backward(saved, &adapter, &inputs.x_t).unwrap()
                    })
                });
                for found in backwards {
                    let gradient = found.join().unwrap();
                    assert!(
                        gradient.values.host().unwrap().iter().map(|v| v.to_bits()).eq(alone.iter().copied())
                    );
                }
            });
        }
    });
}
