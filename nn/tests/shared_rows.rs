//! A model whose tensors share the rows of one file: it is the model of the same values, and on a GPU every matrix has memory of
//! its own.

use std::{collections::HashMap, path::Path, sync::Arc};

use prefgraph_nn::{
    Backbone, Cpu, Device, Inputs, Probe, Tensor,
    cuda::{Cuda, is_there},
    device::{Kind, Precision},
    files::{Dtype, NamedTensor, TensorFiles, TensorView, write_safetensors},
    layers::{Loading, Packing},
    models::{FluxConfig, FluxFiles, FluxOptions, flux::Flux},
};

fn config() -> FluxConfig {
    FluxConfig {
        class_name: None,
        patch_size: 1,
        in_channels: 16,
        out_channels: None,
        num_layers: 1,
        num_single_layers: 2,
        attention_head_dim: 64,
        num_attention_heads: 2,
        joint_attention_dim: 48,
        pooled_projection_dim: 32,
        guidance_embeds: false,
        axes_dims_rope: vec![16, 24, 24],
    }
}

/// Values of bf16, all of them between -0.1 and 0.1.
fn tensor(name: String, shape: Vec<usize>) -> NamedTensor<'static> {
    let len: usize = shape.iter().product();
    let value = |i: usize| half::bf16::from_f32(((i * 37 + i / 11) % 101) as f32 / 500.0 - 0.1);
    let bytes = (0..len).flat_map(|i| value(i).to_le_bytes()).collect();
    NamedTensor { name, dtype: Dtype::BF16, shape, bytes }
}

fn whole(files: &Arc<TensorFiles>, name: &str) -> TensorView {
    TensorView::whole(files, name).expect("a tensor of bf16")
}

fn open(path: &Path, tensors: &[NamedTensor<'_>]) -> Arc<TensorFiles> {
    write_safetensors(path, tensors, &[]).expect("a file of a temporary folder");
    Arc::new(TensorFiles::open(path).expect("the file that was written"))
}

/// The model as windows of the rows of one block for each number of columns, and as a file of its own with the same values.
fn both(folder: &Path) -> [HashMap<String, TensorView>; 2] {
    let tensors = config().tensors();
    let columns = |shape: &[usize]| shape.get(1).copied().unwrap_or(1);
    let mut blocks: HashMap<usize, Vec<usize>> = HashMap::new();
    for (_, shape) in &tensors {
        let block = blocks.entry(columns(shape)).or_insert_with(|| shape.clone());
        block[0] = block[0].max(shape[0]);
    }
    let blocks: Vec<_> =
        blocks.into_iter().map(|(columns, shape)| tensor(columns.to_string(), shape)).collect();
    let blocks = open(&folder.join("blocks.safetensors"), &blocks);
    let mut windows = HashMap::new();
    for (number, (name, shape)) in tensors.iter().enumerate() {
        let block = whole(&blocks, &columns(shape).to_string());
        let first = number * 7 % (block.shape()[0] - shape[0] + 1);
        windows.insert(name.clone(), block.rows(first..first + shape[0]).expect("a window within the block"));
    }
    let own: Vec<_> = windows
        .iter()
        .map(|(name, view)| NamedTensor {
            name: name.clone(),
            dtype: Dtype::BF16,
            shape: view.shape().to_vec(),
            bytes: view.pieces().flat_map(|piece| piece.bytes.to_vec()).collect(),
        })
        .collect();
    let own = open(&folder.join("own.safetensors"), &own);
    let own = windows.keys().map(|name| (name.clone(), whole(&own, name))).collect();
    [windows, own]
}

fn model<D: Device>(device: &D, views: HashMap<String, TensorView>, precision: Precision) -> Flux<D> {
    let files = FluxFiles::of_views(&config(), views).expect("every tensor of the model");
    let host = Cpu::new(1).expect("a thread");
    let options =
        FluxOptions { loading: Loading { precision, packing: Packing::Resident }, ..Default::default() };
    Flux::of_files(device.clone(), host, config(), files, options).expect("a model that can be run")
}

fn prediction<D: Device>(model: &Flux<D>) -> Vec<f32> {
    let cpu = Cpu::new(1).expect("a thread");
    let values = |len: usize| (0..len).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect::<Vec<_>>();
    let latents = |side: usize| {
        Tensor::new(&cpu, (1, 4, side, side), values(4 * side * side)).expect("as many values as axes say")
    };
    let inputs = Inputs {
        x_t: latents(4),
        t: vec![0.5],
        text: Tensor::new(&cpu, (1, 3, 48), values(3 * 48)).expect("as many values as axes say"),
        pooled: Tensor::new(&cpu, (1, 32), values(32)).expect("as many values as axes say"),
        references: vec![latents(2)],
        guidance: None,
        sizes: Vec::new(),
        image_tokens: None,
        image_scale: None,
    };
    model.predict(&inputs, None, &Probe::NOTHING).expect("a pass").latents.into_values()
}

#[test]
fn tensors_that_share_rows_are_the_same_model_on_the_processor() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::new(1).expect("a thread");
    for precision in [Precision::F32, Precision::Bf16] {
        let [shared, own] = both(folder.path()).map(|views| prediction(&model(&cpu, views, precision)));
        assert!(shared.iter().any(|v| *v != 0.0) && shared == own, "{precision:?}");
    }
}

/// Bytes of the GPU's memory in use. An upload waits until what was freed before is free.
fn used_now(gpu: &Cuda) -> u64 {
    drop(gpu.upload(&[0.0], Kind::Exact, Precision::F32).expect("room for a value"));
    gpu.used_memory().expect("a GPU that is there")
}

#[test]
fn tensors_that_share_rows_are_the_same_model_on_a_gpu_and_each_has_memory_of_its_own() {
    if let Err(why) = is_there() {
        eprintln!("skipped: {why}");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gpu = Cuda::open(0).expect("the first GPU");
    let matrices = config().tensors().into_iter().filter(|(_, shape)| shape.len() == 2);
    let bytes: usize = matrices.map(|(_, shape)| 2 * shape.iter().product::<usize>()).sum();
    let [shared, own] = both(folder.path()).map(|views| {
        let before = used_now(&gpu);
        gpu.forget_peak_memory().expect("a GPU that is there");
        let model = model(&gpu, views, Precision::Bf16);
        model.load().expect("room for a small model");
        let held = gpu.peak_memory().expect("a GPU that is there") - before;
        assert!(held >= bytes as u64, "{held} bytes are held: the matrices have {bytes}");
        let found = prediction(&model);
        let with = used_now(&gpu);
        drop(model);
        let without = used_now(&gpu);
        assert!(with - without >= bytes as u64, "{with} bytes were used, {without} still are");
        found
    });
    assert!(shared.iter().any(|v| *v != 0.0) && shared == own);
}

#[test]
fn a_view_that_is_missing_surplus_or_of_another_shape_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [views, _] = both(folder.path());
    let complaint = |change: &dyn Fn(&mut HashMap<String, TensorView>)| {
        let mut views = views.clone();
        change(&mut views);
        FluxFiles::of_views(&config(), views).expect_err("views that are no model").to_string()
    };
    let name = "transformer_blocks.0.attn.to_q.weight";
    let missing = complaint(&|views| drop(views.remove(name)));
    assert!(missing.contains("no view of") && missing.contains(name), "{missing}");
    let other = complaint(&|views| {
        let view = views[name].rows(0..3).expect("three rows");
        views.insert(name.into(), view);
    });
    assert!(other.contains(name) && other.contains("[128, 128]") && other.contains("[3, 128]"), "{other}");
    let surplus = complaint(&|views| drop(views.insert("more".into(), views[name].clone())));
    assert!(surplus.contains("tensors"), "{surplus}");
}
