//! Reading safetensors: the headers when a file is opened, the values of a tensor when it is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::{Values, recognise::recognise};
use crate::{
    cpu::map::FileMap,
    error::{Error, Result},
    size,
};

/// What a header says of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// How its values are stored.
    pub dtype: Dtype,
    /// Its axes.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of values.
    pub fn values(&self) -> usize {
        size::product(self.shape.iter().copied())
    }
}

#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    shard: usize,
    bytes: Range<usize>,
}

/// The tensors of one safetensors file, or of all the shards that an index names.
#[derive(Debug)]
pub struct TensorFiles {
    path: PathBuf,
    shards: Vec<FileMap>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// The index of a sharded checkpoint.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl TensorFiles {
    /// Map a `.safetensors` file, or every shard of a `.safetensors.index.json`, and read the headers.
    ///
    /// # Errors
    /// If a file is missing, shorter than its header says, or not safetensors; if an index and its shards
    /// disagree on which tensors there are.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "json") {
            Self::open_sharded(path)
        } else {
            Self::open_one(path)
        }
    }

    /// Open `stem.safetensors` of a folder, or `stem.safetensors.index.json` where there is no such file.
    ///
    /// # Errors
    /// If neither is there, and as [`open`](Self::open).
    pub fn open_in(folder: &Path, stem: &str) -> Result<Self> {
        let one = folder.join(format!("{stem}.safetensors"));
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        match (one.exists(), index.exists()) {
            (true, _) => Self::open(&one),
            (false, true) => Self::open(&index),
            (false, false) => Err(Error::file(
                folder,
                format!("has no weights: expected {stem}.safetensors or {stem}.safetensors.index.json"),
            )),
        }
    }

    fn open_one(path: &Path) -> Result<Self> {
        let mut files = Self {
            path: path.into(),
            shards: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        files.add(path)?;
        Ok(files)
    }

    fn open_sharded(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        let index: Index = serde_json::from_str(&text).map_err(|e| {
            let other = recognise(text.as_bytes()).filter(|_| !text.trim_start().starts_with('{'));
            let kind = other.unwrap_or_else(|| format!("not an index of shards: {e}"));
            Error::file(path, format!("is {kind}"))
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut files = Self {
            path: path.into(),
            shards: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        for name in names {
            if Path::new(name).components().count() != 1 || name.contains('\\') {
                return Err(Error::file(
                    path,
                    format!("shard `{name}` is not a plain file name beside the index"),
                ));
            }
            files.add(&folder.join(name))?;
        }
        let missing: Vec<&str> =
            index.weight_map.keys().filter(|k| !files.entries.contains_key(*k)).map(String::as_str).collect();
        let surplus: Vec<&str> = files.names().filter(|k| !index.weight_map.contains_key(*k)).collect();
        if !missing.is_empty() || !surplus.is_empty() {
            return Err(Error::file(
                path,
                format!(
                    "disagrees with its shards{}{}",
                    list("not in any shard", &missing),
                    list("not in the index", &surplus)
                ),
            ));
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let map = FileMap::open(path)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::file(path, header_fault(&map, &e)))?;
        let start = 8 + header;
        if let Some(pairs) = metadata.metadata() {
            self.metadata.extend(pairs.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        for (name, info) in metadata.tensors() {
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            let entry = Entry {
                info: TensorInfo { dtype: info.dtype, shape: info.shape.clone() },
                shard: self.shards.len(),
                bytes,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(Error::file(path, format!("`{name}` is also in another shard")));
            }
        }
        self.shards.push(map);
        Ok(())
    }

    /// The file or index these tensors come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All files: the index, if there is one, and the shards.
    pub fn paths(&self) -> Vec<PathBuf> {
        let index = (!self.shards.iter().any(|s| s.path() == self.path)).then(|| self.path.clone());
        index.into_iter().chain(self.shards.iter().map(|s| s.path().to_owned())).collect()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The `__metadata__` of the header, of all shards together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What the header says of a tensor, if there is one of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entries.get(name).map(|e| &e.info)
    }

    /// Compare the headers with the tensors that a model needs; reads no values.
    ///
    /// # Errors
    /// Naming the tensors that are missing, surplus, of another shape, or of a dtype that is no float.
    pub fn expect_exactly(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        self.expect_exactly_under("", expected)
    }

    /// As [`expect_exactly`](Self::expect_exactly), but tensors whose names start otherwise are no fault.
    ///
    /// # Errors
    /// Naming the tensors that are missing, surplus, of another shape, or of a dtype that is no float.
    pub fn expect_exactly_under(&self, prefix: &str, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let wanted: BTreeSet<&str> = expected.iter().map(|(n, _)| n.as_str()).collect();
        let surplus: Vec<&str> =
            self.names().filter(|n| n.starts_with(prefix) && !wanted.contains(n)).collect();
        self.compare(expected, &surplus)
    }

    /// As [`expect_exactly`](Self::expect_exactly), but tensors that nobody needs are no fault.
    ///
    /// # Errors
    /// Naming the tensors that are missing, of another shape, or of a dtype that is no float.
    pub fn expect(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        self.compare(expected, &[])
    }

    fn compare(&self, expected: &[(String, Vec<usize>)], surplus: &[&str]) -> Result<()> {
        let mut missing = Vec::new();
        let mut other = Vec::new();
        for (name, shape) in expected {
            match self.info(name) {
                None => missing.push(name.clone()),
                Some(i) if &i.shape != shape => {
                    other.push(format!("{name} (expected {shape:?}, the file has {:?})", i.shape));
                }
                Some(i) if !matches!(i.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                    other.push(format!("{name} (expected f32, f16 or bf16, the file has {})", i.dtype));
                }
                Some(_) => {}
            }
        }
        if missing.is_empty() && other.is_empty() && surplus.is_empty() {
            return Ok(());
        }
        Err(Error::file(
            &self.path,
            format!(
                "does not fit the model{}{}{}",
                list("missing", &missing),
                list("of another shape or kind", &other),
                list("surplus", surplus)
            ),
        ))
    }

    /// What the header says of a tensor, the shard it lies in, and its bytes there.
    pub(super) fn place(&self, name: &str) -> Result<(&TensorInfo, usize, Range<usize>)> {
        let entry = self.entry(name)?;
        Ok((&entry.info, entry.shard, entry.bytes.clone()))
    }

    /// Bytes of a shard, from within what [`place`](Self::place) gave.
    pub(super) fn slice(&self, shard: usize, bytes: Range<usize>) -> &[u8] {
        &self.shards[shard][bytes]
    }

    /// Ask the system to read bytes of a shard now.
    pub(super) fn will_need(&self, shard: usize, bytes: Range<usize>) {
        self.shards[shard].will_need(bytes);
    }

    /// The bytes of a tensor as the file has them, little-endian.
    ///
    /// # Errors
    /// If there is no tensor of this name.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let entry = self.entry(name)?;
        Ok(&self.shards[entry.shard][entry.bytes.clone()])
    }

    /// The values of a tensor of f32, f16 or bf16 as f32.
    ///
    /// # Errors
    /// If there is no tensor of this name, or its dtype is none of these.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let (bytes, dtype) = (self.bytes(name)?, self.entry(name)?.info.dtype);
        let values = Values::of_file(dtype, bytes).ok_or_else(|| {
            Error::file(&self.path, format!("`{name}` is {dtype}: expected f32, f16 or bf16"))
        })?;
        Ok(values.to_vec())
    }

    /// The value of a tensor that is one number, whole or not.
    ///
    /// # Errors
    /// If there is no tensor of this name, it has more values or none, or a dtype that is no number.
    pub fn read_number(&self, name: &str) -> Result<f64> {
        let (bytes, info) = (self.bytes(name)?, &self.entry(name)?.info);
        let fault = || {
            let message =
                format!("`{name}` is {} with axes {:?}: expected one number", info.dtype, info.shape);
            Error::file(&self.path, message)
        };
        macro_rules! number {
            ($($dtype:ident: $ty:ty),*) => {
                match info.dtype {
                    $(Dtype::$dtype => bytes.try_into().ok().map(|b| <$ty>::from_le_bytes(b) as f64),)*
                    Dtype::F16 => bytes.try_into().ok().map(|b| f16::from_le_bytes(b).to_f64()),
                    Dtype::BF16 => bytes.try_into().ok().map(|b| bf16::from_le_bytes(b).to_f64()),
                    _ => None,
                }
            };
        }
        number!(F64: f64, F32: f32, I64: i64, I32: i32, I16: i16, I8: i8, U64: u64, U32: u32, U16: u16, U8: u8)
            .ok_or_else(fault)
    }

    /// The values of a tensor that must have these axes and hold only finite numbers.
    ///
    /// # Errors
    /// As [`read`](Self::read); if the axes are others; if a value is not finite.
    pub fn read_finite(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = &self.entry(name)?.info.shape;
        if found != shape {
            return Err(Error::shape(format!("`{name}` of {}", self.path.display()), shape, found));
        }
        let values = self.read(name)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite(format!(
                "{}: `{name}` holds {} at element {at}: the file is damaged, or was written by a run that diverged",
                self.path.display(),
                values[at]
            )));
        }
        Ok(values)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            let near = nearest(name, self.names());
            let hint = near.map_or(String::new(), |n| format!("; nearest: `{n}`"));
            Error::file(&self.path, format!("has no tensor `{name}`{hint}"))
        })
    }
}

/// The first names of a fault, and how many more there are.
fn list<S: AsRef<str>>(what: &str, names: &[S]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return String::new();
    }
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("\n  {what}: {}{more}", shown.join(", "))
}

/// Why a header was refused: the file is of another kind, or a download broke off.
fn header_fault(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::MetadataIncompleteBuffer => format!(
            "is {} bytes long, which is not what its header says: it was cut off, or something was appended",
            bytes.len()
        ),
        // A file of another kind has a header of any length, so it is the beginning that tells.
        error => match (recognise(bytes), error) {
            (Some(kind), _) => format!("is {kind}"),
            (None, E::HeaderTooSmall | E::InvalidHeaderLength) => {
                format!("is cut off inside its header ({} bytes)", bytes.len())
            }
            (None, other) => format!("is not a safetensors file: {other}"),
        },
    }
}

/// The candidate with the smallest edit distance, if it is near enough to be a slip.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::osa_distance(name, c), c))
        .min()
        .filter(|(d, _)| *d <= name.len().div_ceil(2).max(3))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::{NamedTensor, write_safetensors};

    fn sample(folder: &Path) -> PathBuf {
        let path = folder.join("model.safetensors");
        let tensors = [
            NamedTensor::f32("a.weight", vec![2, 3], &[1., 2., 3., 4., 5., 6.]),
            NamedTensor::f32("b.bias", vec![2], &[0.5, -0.5]),
        ];
        write_safetensors(&path, &tensors, &[("format", "pt")]).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read_back_with_names_shapes_and_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let files = TensorFiles::open(&sample(dir.path())).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["a.weight", "b.bias"]);
        assert_eq!(files.info("a.weight").unwrap().shape, [2, 3]);
        assert_eq!(files.read("a.weight").unwrap(), [1., 2., 3., 4., 5., 6.]);
        assert_eq!(files.metadata()["format"], "pt");
    }

    #[test]
    fn half_precision_is_widened_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half.safetensors");
        let numbers = [1.0f32, -0.15625, 65504.0, 0.0];
        let half: Vec<u8> = numbers.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let brain: Vec<u8> = numbers[..2].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let tensors = [
            NamedTensor { name: "h".into(), dtype: Dtype::F16, shape: vec![4], bytes: half.into() },
            NamedTensor { name: "b".into(), dtype: Dtype::BF16, shape: vec![2], bytes: brain.into() },
        ];
        write_safetensors(&path, &tensors, &[]).unwrap();
        let files = TensorFiles::open(&path).unwrap();
        assert_eq!(files.read("h").unwrap(), numbers);
        assert_eq!(files.read("b").unwrap(), numbers[..2]);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let bytes = fs::read(&path).unwrap();
        for keep in [1, 5, 40, bytes.len() - 1] {
            fs::write(&path, &bytes[..keep]).unwrap();
            let error = TensorFiles::open(&path).unwrap_err().to_string();
            assert!(error.contains("model.safetensors") && error.contains("cut off"), "{keep}: {error}");
        }
    }

    #[test]
    fn missing_surplus_and_misshaped_tensors_are_all_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = TensorFiles::open(&sample(dir.path())).unwrap();
        let expected = [("a.weight".to_string(), vec![3, 2]), ("c.weight".to_string(), vec![1])];
        let error = files.expect_exactly(&expected).unwrap_err().to_string();
        for part in
            ["missing: c.weight", "surplus: b.bias", "a.weight (expected [3, 2], the file has [2, 3])"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nan.safetensors");
        write_safetensors(&path, &[NamedTensor::f32("w", vec![3], &[0., f32::NAN, 1.])], &[]).unwrap();
        let error = TensorFiles::open(&path).unwrap().read_finite("w", &[3]).unwrap_err().to_string();
        assert!(error.contains("`w` holds NaN at element 1"), "{error}");
    }

    #[test]
    fn shards_are_one_set_of_tensors_and_an_index_that_lies_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (shard, name) in [("m-1.safetensors", "a"), ("m-2.safetensors", "b")] {
            write_safetensors(&dir.path().join(shard), &[NamedTensor::f32(name, vec![1], &[2.0])], &[])
                .unwrap();
        }
        let index = dir.path().join("m.safetensors.index.json");
        fs::write(&index, r#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#).unwrap();
        let files = TensorFiles::open_in(dir.path(), "m").unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files.read("b").unwrap(), [2.0]);

        fs::write(&index, r#"{"weight_map":{"a":"m-1.safetensors","c":"m-2.safetensors"}}"#).unwrap();
        let error = TensorFiles::open(&index).unwrap_err().to_string();
        assert!(error.contains("not in any shard: c") && error.contains("not in the index: b"), "{error}");

        fs::write(&index, r#"{"weight_map":{"a":"../m-1.safetensors"}}"#).unwrap();
        assert!(TensorFiles::open(&index).unwrap_err().to_string().contains("plain file name"));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let dir = tempfile::tempdir().unwrap();
        let error = TensorFiles::open(&sample(dir.path())).unwrap().read("a.wieght").unwrap_err().to_string();
        assert!(error.contains("nearest: `a.weight`"), "{error}");
    }
}
