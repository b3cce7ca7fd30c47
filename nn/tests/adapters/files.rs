//! A small adapter, and files with its factors under any names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph_nn::{
    Adapter, AdapterLayout, LinearLayout,
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
    lora::{AdapterFile, AdapterFormat},
    models::flux::NAMES,
    naming::Place,
};

/// Width of the stream.
pub const D: usize = 6;

/// The linears of the attention of a FLUX with two blocks of each kind, the MLPs of those with two streams, and the fused
/// linear of those with one.
fn linears() -> Vec<LinearLayout> {
    let mut all = Vec::new();
    for (stack, of_stack) in NAMES.stacks.iter().enumerate() {
        for block in 0..2 {
            for (linear, fused) in of_stack.linears.iter().enumerate() {
                if fused.original.contains("mod") {
                    continue;
                }
                for name in NAMES.place(stack, block, linear).diffusers() {
                    let inputs = match fused.original {
                        "img_mlp.2" | "txt_mlp.2" => 4 * D,
                        "linear2" => 5 * D,
                        _ => D,
                    };
                    let wide = name.contains(".net.0.") || name.ends_with("proj_mlp");
                    all.push(LinearLayout {
                        name,
                        inputs,
                        outputs: if wide { 4 * D } else { D },
                        window: None,
                    });
                }
            }
        }
    }
    all
}

/// An adapter of which every layout can hold every bit: parts of one linear have one A. All other values differ.
pub fn adapter(rank: usize, alpha: f32) -> Adapter {
    let layout = AdapterLayout::of_factors(&NAMES, linears(), rank, alpha);
    let mut values: Vec<f32> = (0..layout.len()).map(|i| (i as f32 + 1.0) / 7.0).collect();
    let mut first: BTreeMap<Place, Vec<f32>> = BTreeMap::new();
    for (module, (a, _)) in layout.modules.iter().zip(layout.ranges()) {
        let (place, _) = NAMES.of_diffusers(&module.name).unwrap();
        let shared = first.entry(place).or_insert_with(|| values[a.clone()].to_vec());
        values[a].copy_from_slice(shared);
    }
    Adapter { layout: Arc::new(layout), values: values.into() }
}

/// The name of a linear with A and B.
pub struct Pair {
    pub name: String,
    pub a: NamedTensor<'static>,
    pub b: NamedTensor<'static>,
}

/// The factors of every linear under its name in diffusers' layout.
pub fn apart(adapter: &Adapter) -> Vec<Pair> {
    let (rank, modules) = (adapter.layout.rank, adapter.layout.modules.iter());
    let pair = |(m, (a, b)): (&LinearLayout, (std::ops::Range<usize>, std::ops::Range<usize>))| Pair {
        name: m.name.clone(),
        a: NamedTensor::f32("", vec![rank, m.inputs], &adapter.values.host().unwrap()[a]),
        b: NamedTensor::f32("", vec![m.outputs, rank], &adapter.values.host().unwrap()[b]),
    };
    modules.zip(adapter.layout.ranges()).map(pair).collect()
}

/// The same under the names of the original layout: one A, and the rows of B of all parts.
pub fn fused(adapter: &Adapter) -> Vec<Pair> {
    let mut pairs: BTreeMap<Place, Pair> = BTreeMap::new();
    for part in apart(adapter) {
        let (place, _) = NAMES.of_diffusers(&part.name).unwrap();
        match pairs.get_mut(&place) {
            None => drop(pairs.insert(place, Pair { name: place.original(), ..part })),
            Some(pair) => {
                pair.b.shape[0] += part.b.shape[0];
                pair.b.bytes.to_mut().extend_from_slice(&part.b.bytes);
            }
        }
    }
    pairs.into_values().collect()
}

/// A number as a tensor.
pub fn number(dtype: Dtype, bytes: &[u8]) -> NamedTensor<'static> {
    NamedTensor { name: String::new(), dtype, shape: Vec::new(), bytes: bytes.to_vec().into() }
}

/// A folder for a file.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Write pairs, with what stands before the name of a linear and what follows it in A and in B, and an alpha for each.
    pub fn write(
        &self,
        pairs: Vec<Pair>,
        module: impl Fn(&str) -> String,
        [down, up]: [&str; 2],
        alpha: Option<&NamedTensor<'static>>,
    ) -> PathBuf {
        let tensors = pairs.into_iter().flat_map(|pair| {
            let module = module(&pair.name);
            let named = |name: String, t: NamedTensor<'static>| NamedTensor { name, ..t };
            let alpha = alpha.map(|alpha| named(format!("{module}.alpha"), alpha.clone()));
            [named(format!("{module}{down}"), pair.a), named(format!("{module}{up}"), pair.b)]
                .into_iter()
                .chain(alpha)
        });
        self.tensors(&tensors.collect::<Vec<_>>(), &[])
    }

    pub fn tensors(&self, tensors: &[NamedTensor<'_>], header: &[(&str, &str)]) -> PathBuf {
        let path = self.at("foreign.safetensors");
        write_safetensors(&path, tensors, header).unwrap();
        path
    }

    /// A file of two factors of one linear under these names.
    pub fn two(&self, names: [&str; 2], header: &[(&str, &str)]) -> PathBuf {
        let tensors = [(names[0], vec![2, D]), (names[1], vec![D, 2])]
            .map(|(n, s)| NamedTensor::f32(n, s, &[0.5; 2 * D]));
        self.tensors(&tensors, header)
    }
}

pub const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
pub const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];

#[track_caller]
pub fn assert_equal(found: &Adapter, expected: &Adapter) {
    assert_eq!(found.layout, expected.layout);
    let bits = |a: &Adapter| a.values.host().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(found), bits(expected));
}

/// The file is this adapter, and so is each file that it is converted to.
#[track_caller]
pub fn assert_is(path: &Path, expected: &Adapter) -> AdapterFile {
    let file = AdapterFile::open(path, "", &NAMES).unwrap();
    let found = file.adapter(None).unwrap();
    assert_equal(&found, expected);
    let folder = Folder::new();
    for format in [AdapterFormat::Diffusers, AdapterFormat::Kohya] {
        let converted = folder.at("converted.safetensors");
        found.write(&converted, format, &[]).unwrap();
        assert_equal(&AdapterFile::open(&converted, "", &NAMES).unwrap().adapter(None).unwrap(), expected);
    }
    file
}

#[track_caller]
pub fn refusal(path: &Path) -> String {
    match AdapterFile::open(path, "", &NAMES).and_then(|file| file.adapter(None)) {
        Ok(_) => panic!("{} was read", path.display()),
        Err(e) => e.to_string(),
    }
}

/// `scale B A` of a linear as a program computes it that reads factors under these names and knows no alpha.
pub fn product(path: &Path, names: [&str; 2]) -> Vec<f64> {
    let files = TensorFiles::open(path).unwrap();
    let [a, b] = names.map(|name| files.read(name).unwrap());
    let rank = files.info(names[0]).unwrap().shape[0];
    matrix_product(&a, &b, rank)
}

pub fn matrix_product(a: &[f32], b: &[f32], rank: usize) -> Vec<f64> {
    let inputs = a.len() / rank;
    let entry = |row: &[f32], column: usize| -> f64 {
        row.iter().enumerate().map(|(r, b)| f64::from(*b) * f64::from(a[r * inputs + column])).sum()
    };
    b.chunks_exact(rank).flat_map(|row| (0..inputs).map(move |column| entry(row, column))).collect()
}
