//! One cache entry: the outputs of an operator for one sample, as a safetensors file with a checksum.

use std::{collections::HashMap, fs, io, io::Write, path::Path};

use prefgraph_nn::files::{Unfinished, read_regular};
use prefgraph_ops::{NamedState, NamedTensor};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};

use super::Hash;

/// What marks a file as an entry.
const KIND: &str = "prefgraph cache entry";

/// Why there is no entry to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// There is no file.
    Missing,
    /// There is one, but it is torn, altered or something else.
    Damaged(String),
}

/// The row of every output, in the order of the outputs.
pub(super) type Row = Vec<NamedState>;

fn checksum<'a>(key: Hash, tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [u8])>) -> String {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(name, ..)| *name);
    let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 contents of a cache entry");
    hash.update(key.as_bytes());
    for (name, shape, bytes) in tensors {
        hash.update(format!("{name} {shape:?} {}\n", bytes.len()).as_bytes());
        hash.update(bytes);
    }
    hash.finalize().to_hex().to_string()
}

/// Write the row of every output, whose names are given, into a file beside and rename it.
///
/// Nothing is flushed to the disk: an entry can be made again, and one that a power failure has torn is told by its
/// checksum. Two flushes a file would take longer than most encoders.
pub(super) fn write(path: &Path, key: Hash, outputs: &[&str], row: &Row) -> Result<(), String> {
    let fault = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let bytes = encode(key, outputs, row).map_err(|e| fault(&e))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut beside = loop {
        fs::create_dir_all(folder).map_err(|e| fault(&e))?;
        match Unfinished::beside(path) {
            Ok(beside) => break beside,
            // Somebody cleans the cache, and the folder was empty a moment ago.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fault(&e)),
        }
    };
    beside.file().write_all(&bytes).map_err(|e| fault(&e))?;
    beside.keep(path).map_err(|e| fault(&e))
}

fn encode(key: Hash, outputs: &[&str], row: &Row) -> Result<Vec<u8>, String> {
    let bytes_of = |t: &NamedTensor| t.values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let named = outputs.iter().zip(row).flat_map(|(output, state)| {
        state.tensors.iter().map(move |t| (format!("{output}/{}", t.name), &t.dims, bytes_of(t)))
    });
    let tensors: Vec<(String, &Vec<usize>, Vec<u8>)> = named.collect();
    let sum = checksum(key, tensors.iter().map(|(name, dims, bytes)| (name.as_str(), &dims[..], &bytes[..])));
    let views = tensors
        .iter()
        .map(|(name, dims, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, dims.to_vec(), bytes)?)));
    let views: Result<Vec<_>, SafeTensorError> = views.collect();
    // One fact only: the library writes several in any order, and equal entries are to have equal bytes.
    let facts = HashMap::from([(KIND.to_owned(), format!("{} {sum}", key.to_hex()))]);
    safetensors::serialize(views.map_err(|e| e.to_string())?, Some(facts)).map_err(|e| e.to_string())
}

/// Read the entry of that key, and compare it with its checksum.
pub(super) fn read(path: &Path, key: Hash, outputs: &[&str]) -> Result<Row, Absent> {
    let bytes = match read_regular(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Absent::Missing),
        Err(e) => return Err(Absent::Damaged(format!("it cannot be read: {e}"))),
    };
    decode(&bytes, key, outputs).map_err(Absent::Damaged)
}

/// The tensors of a whole entry of that key.
fn open(bytes: &[u8], key: Hash) -> Result<SafeTensors<'_>, String> {
    let torn = |e: SafeTensorError| format!("it is torn, or no entry: {e}");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(torn)?;
    let file = SafeTensors::deserialize(bytes).map_err(torn)?;
    let facts = header.metadata().as_ref().and_then(|facts| facts.get(KIND));
    let (stated, sum) = facts.and_then(|f| f.split_once(' ')).ok_or("it is no entry of a cache")?;
    if stated != key.to_hex().as_str() {
        return Err(format!("it is the entry of another sample, {stated}"));
    }
    let tensors = file.tensors();
    let parts = tensors.iter().map(|(name, view)| (name.as_str(), view.shape(), view.data()));
    if sum != checksum(key, parts) {
        return Err("its contents do not fit its checksum".into());
    }
    Ok(file)
}

fn decode(bytes: &[u8], key: Hash, outputs: &[&str]) -> Result<Row, String> {
    let tensors = open(bytes, key)?.tensors();
    let mut row = vec![NamedState::default(); outputs.len()];
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| name.as_str());
    for (name, view) in sorted {
        let place = name
            .split_once('/')
            .and_then(|(output, name)| Some((outputs.iter().position(|o| *o == output)?, name)));
        let (at, name) = place.ok_or_else(|| format!("`{name}` is no output of its operator"))?;
        if view.dtype() != Dtype::F32 {
            return Err(format!("`{name}` is {}, not F32", view.dtype()));
        }
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        row[at].tensors.push(NamedTensor {
            name: name.to_owned(),
            dims: view.shape().to_vec(),
            values: std::sync::Arc::new(values),
        });
    }
    Ok(row)
}

/// Is the file a whole entry of the key that is its name?
pub(super) fn verify(path: &Path) -> Result<(), String> {
    let bytes = read_regular(path).map_err(|e| format!("it cannot be read: {e}"))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let key = Hash::from_hex(&stem).map_err(|_| "its name is no key".to_owned())?;
    open(&bytes, key).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn row() -> Row {
        let tensor = |name: &str, values: Vec<f32>| NamedTensor {
            name: name.into(),
            dims: vec![1, values.len()],
            values: Arc::new(values),
        };
        let odd = vec![f32::from_bits(0x7f80_0001), -0.0, f32::MIN_POSITIVE / 2.0];
        let list = NamedState {
            tensors: vec![tensor("0.value", vec![1.0]), tensor("1.value", vec![2.0])],
            ..Default::default()
        };
        vec![NamedState { tensors: vec![tensor("value", odd)], ..Default::default() }, list]
    }

    fn bits(row: &Row) -> Vec<(String, Vec<usize>, Vec<u32>)> {
        let of = |t: &NamedTensor| {
            (t.name.clone(), t.dims.clone(), t.values.iter().map(|v| v.to_bits()).collect())
        };
        row.iter().flat_map(|s| s.tensors.iter().map(of)).collect()
    }

    #[test]
    fn what_is_read_has_the_bits_that_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let key = blake3::hash(b"sample");
        let path = dir.path().join("ab").join(format!("{}.safetensors", key.to_hex()));
        assert_eq!(read(&path, key, &["a", "b"]), Err(Absent::Missing));
        write(&path, key, &["a", "b"], &row()).unwrap();
        assert_eq!(bits(&read(&path, key, &["a", "b"]).unwrap()), bits(&row()));
        assert_eq!(verify(&path), Ok(()));
    }

    #[test]
    fn a_change_of_any_byte_a_cut_and_another_file_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let key = blake3::hash(b"sample");
        let path = dir.path().join(format!("{}.safetensors", key.to_hex()));
        write(&path, key, &["a", "b"], &row()).unwrap();
        let good = fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| decode(bytes, key, &["a", "b"]).is_err();
        assert!(!damaged(&good));
        for place in 0..good.len() {
            let mut bytes = good.clone();
            bytes[place] ^= 1;
            assert!(damaged(&bytes), "byte {place} of {}", good.len());
        }
        assert!((0..good.len()).all(|end| damaged(&good[..end])));
        let other = blake3::hash(b"other");
        assert!(decode(&good, other, &["a", "b"]).unwrap_err().contains("another sample"));
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(verify(&path).is_err());
    }
}
