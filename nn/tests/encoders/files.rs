//! Paths of the cases, and files derived from them.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    Cpu, Tensor,
    autoencoders::Batch,
    cuda::{Cuda, is_there},
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
};

/// The fixtures that the project carries.
pub fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// The folder of a golden case.
pub fn case(name: &str) -> PathBuf {
    let root = std::env::var_os("PREFGRAPH_FIXTURES").map_or_else(own, PathBuf::from);
    let folder = root.join("encoders").join(name);
    assert!(folder.is_dir(), "no golden case at {}: see PREFGRAPH_FIXTURES", folder.display());
    folder
}

/// The folder of a golden case that the project does not carry. Where no other fixtures are named it is said that it is skipped.
pub fn case_elsewhere(name: &str) -> Option<PathBuf> {
    if std::env::var_os("PREFGRAPH_FIXTURES").is_some() {
        return Some(case(name));
    }
    say(&format!("SKIPPED: the golden case `{name}`: PREFGRAPH_FIXTURES is not set\n"));
    None
}

/// Straight to the stream: the test harness swallows what `eprintln` writes in a test that passes.
fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

/// The folder of the golden case of an IP-Adapter-Plus.
pub fn ip_adapter_plus() -> PathBuf {
    std::env::var_os("PREFGRAPH_FIXTURES")
        .map_or_else(|| own().join("encoders/ip_adapter_plus"), |root| PathBuf::from(root).join("sdxl_ipa"))
}

/// The first GPU. Where there is none it is said that these cases are skipped.
pub fn gpu(what: &str) -> Option<Cuda> {
    match is_there() {
        Ok(()) => Some(Cuda::open(0).unwrap()),
        Err(why) => {
            say(&format!("SKIPPED: {what} on a GPU: {why}\n"));
            None
        }
    }
}

pub fn golden(case: &Path) -> TensorFiles {
    TensorFiles::open(&case.join("io.safetensors")).unwrap()
}

pub fn batch(device: &Cpu, files: &TensorFiles, name: &str) -> Batch {
    let [b, c, h, w] = files.info(name).unwrap().shape[..] else { panic!("four axes of {name}") };
    Tensor::new(device, (b, c, h, w), files.read(name).unwrap()).unwrap()
}

/// Integers of 64 bits as token ids, and the number of rows.
pub fn ids(files: &TensorFiles, name: &str) -> (usize, Vec<u32>) {
    let bytes = files.bytes(name).unwrap();
    let ids = bytes.as_chunks().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap());
    (files.info(name).unwrap().shape[0], ids.collect())
}

/// The largest difference, in units of the largest value or of one.
#[track_caller]
pub fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
    assert!(worst <= 5e-5, "{what} differs by {worst}");
}

/// Copy a checkpoint, with every tensor changed by `change`; `None` leaves it out.
pub fn rewrite(
    from: &Path,
    to: &Path,
    mut change: impl FnMut(NamedTensor<'static>) -> Option<NamedTensor<'static>>,
) {
    let files = TensorFiles::open(from).unwrap();
    let tensors: Vec<NamedTensor<'static>> = files
        .names()
        .filter_map(|name| {
            let info = files.info(name).unwrap();
            change(NamedTensor {
                name: name.into(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: files.bytes(name).unwrap().to_vec().into(),
            })
        })
        .collect();
    write_safetensors(to, &tensors, &[]).unwrap();
}

/// A copy of a case's folder in which the weights have gone through `change`.
pub fn changed_copy(
    name: &str,
    change: impl FnMut(NamedTensor<'static>) -> Option<NamedTensor<'static>>,
) -> tempfile::TempDir {
    let (from, to) = (case(name), tempfile::tempdir().unwrap());
    std::fs::copy(from.join("config.json"), to.path().join("config.json")).unwrap();
    let weights = ["model.safetensors", "diffusion_pytorch_model.safetensors"];
    let weights = weights.into_iter().find(|w| from.join(w).exists()).unwrap();
    rewrite(&from.join(weights), &to.path().join(weights), change);
    to
}

/// The values rounded to half precision of the other kind than f32.
pub fn as_bf16(mut tensor: NamedTensor<'static>) -> NamedTensor<'static> {
    let rounded = |b: &[u8; 4]| half::bf16::from_f32(f32::from_le_bytes(*b)).to_le_bytes();
    tensor.bytes = tensor.bytes.as_chunks().0.iter().flat_map(rounded).collect::<Vec<u8>>().into();
    tensor.dtype = Dtype::BF16;
    tensor
}

/// The same numbers in f32.
pub fn rounded_to_bf16(tensor: NamedTensor<'static>) -> NamedTensor<'static> {
    let half = as_bf16(tensor);
    let wide = |b: &[u8; 2]| half::bf16::from_le_bytes(*b).to_f32().to_le_bytes();
    let bytes = half.bytes.as_chunks().0.iter().flat_map(wide).collect::<Vec<u8>>().into();
    NamedTensor { dtype: Dtype::F32, bytes, ..half }
}
