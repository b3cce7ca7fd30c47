//! Writing files so that a reader sees the old file or the new one, never a part.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
};

use safetensors::Dtype;

use super::unfinished::{Unfinished, folder_of};
use crate::error::{Error, Result};

/// A tensor on its way into a file.
#[derive(Clone, Debug)]
pub struct NamedTensor<'a> {
    /// Its key.
    pub name: String,
    /// How the bytes are to be read.
    pub dtype: Dtype,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Its values, little-endian, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> NamedTensor<'a> {
    /// A tensor of f32.
    pub fn f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name: name.into(), dtype: Dtype::F32, shape, bytes }
    }

    /// A tensor of f32 whose values stay where they are, if memory is little-endian.
    pub fn borrowed(name: impl Into<String>, shape: Vec<usize>, values: &'a [f32]) -> Self {
        if cfg!(target_endian = "big") {
            return Self::f32(name, shape, values);
        }
        let bytes = Cow::Borrowed(bytemuck::cast_slice(values));
        Self { name: name.into(), dtype: Dtype::F32, shape, bytes }
    }
}

/// Write a safetensors file in the given order of tensors; equal input gives equal bytes.
///
/// # Errors
/// If a name occurs twice, a shape does not fit its bytes, or the file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[NamedTensor<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    write_safetensors_checked(path, tensors, metadata, |_| Ok(()))
}

/// The same for a file that takes its name once it has been looked at where it lies before.
///
/// # Errors
/// As there, or what `check` says of the file, as if it had its name; the old file is then as it was.
pub fn write_safetensors_checked(
    path: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: &[(&str, &str)],
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    for tensor in tensors {
        let bits = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize();
        if bits != tensor.bytes.len() * 8 {
            return Err(Error::shape(
                format!("bytes of `{}` with axes {:?} of {}", tensor.name, tensor.shape, tensor.dtype),
                bits / 8,
                tensor.bytes.len(),
            ));
        }
    }
    let stated = tensors.iter().map(|t| (&*t.name, t.dtype, &*t.shape, t.bytes.len() as u64));
    let (beginning, _) = beginning(path, stated, metadata)?;
    let fill = |file: &mut dyn Write| {
        file.write_all(&beginning)?;
        tensors.iter().try_for_each(|t| file.write_all(&t.bytes))
    };
    write_with(path, fill, check)
}

/// Write a safetensors file of these tensors without their values, which read as zeros: behind the header it is a hole, for which no room on
/// the disk is taken.
///
/// # Errors
/// As for [`write_safetensors`]; if the file system lets no file become so long.
pub(crate) fn write_hollow(path: &Path, tensors: &[(String, Vec<usize>)], dtype: Dtype) -> Result<()> {
    let bytes = |shape: &[usize]| (shape.iter().product::<usize>() * dtype.bitsize() / 8) as u64;
    let stated = tensors.iter().map(|(name, shape)| (&**name, dtype, &**shape, bytes(shape)));
    let (beginning, values) = beginning(path, stated, &[])?;
    let fault = |e: std::io::Error| Error::file(path, format!("cannot be written: {e}"));
    let mut file = std::fs::File::create(path).map_err(fault)?;
    file.write_all(&beginning).map_err(fault)?;
    file.set_len(beginning.len() as u64 + values).map_err(fault)
}

/// What stands before the values of a file, from the name, kind, axes and bytes of each tensor, and how many bytes of values follow.
///
/// # Errors
/// If a name occurs twice.
fn beginning<'t>(
    path: &Path,
    tensors: impl Iterator<Item = (&'t str, Dtype, &'t [usize], u64)>,
    metadata: &[(&str, &str)],
) -> Result<(Vec<u8>, u64)> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let pairs: BTreeMap<_, _> = metadata.iter().copied().collect();
        header.insert("__metadata__".into(), serde_json::json!(pairs));
    }
    let mut names = BTreeSet::new();
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        if !names.insert(name) {
            return Err(Error::file(path, format!("`{name}` would be written twice")));
        }
        let end = at + bytes;
        header.insert(
            name.to_owned(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| Error::Internal(e.to_string()))?;
    // Readers map the file: values must start at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(((header.len() as u64).to_le_bytes().into_iter().chain(header).collect(), at))
}

/// Write beside the file, flush to the disk, and rename over it.
///
/// # Errors
/// If any of these fails; the old file is then as it was. If there is something else than a file, such as a device or a pipe: it would be
/// replaced.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes), |_| Ok(()))
}

fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let fault = |what: &str, e: std::io::Error| Error::file(path, format!("cannot be {what}: {e}"));
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::file(path, "is there and is no regular file: name a file to write"));
    }
    let mut beside = Unfinished::beside(path).map_err(|e| no_file_in(path, &e))?;
    {
        let mut buffered = std::io::BufWriter::new(beside.file());
        fill(&mut buffered).and_then(|()| buffered.flush()).map_err(|e| fault("written", e))?;
    }
    beside.file().sync_all().map_err(|e| fault("flushed", e))?;
    check(beside.path()).map_err(|e| match e {
        Error::File { message, .. } => Error::file(path, format!("is not written: {message}")),
        other => other,
    })?;
    beside.keep(path).map_err(|e| fault("renamed into place", e))?;
    // The rename itself is safe only once the folder is on the disk too; not every system can open a folder.
    if let Ok(folder) = std::fs::File::open(folder_of(path)) {
        folder.sync_all().map_err(|e| fault("flushed with its folder", e))?;
    }
    Ok(())
}

/// Nothing can be written into the folder of `path`, where a file begins before it takes its name.
fn no_file_in(path: &Path, e: &std::io::Error) -> Error {
    let folder = folder_of(path);
    Error::file(
        path,
        match (folder.is_dir(), folder.exists()) {
            (true, _) => format!("cannot be written, since no file can be made in its folder: {e}"),
            (false, true) => format!("cannot be written: `{}` is no folder", folder.display()),
            (false, false) => format!("cannot be written: make its folder first, `{}`", folder.display()),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_a_folder_that_is_none_is_refused_with_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &str| write_atomically(&dir.path().join(path), b"new").unwrap_err().to_string();
        std::fs::write(dir.path().join("file"), b"old").unwrap();
        let gone = said("gone/x");
        assert!(gone.contains("make its folder first, `") && gone.ends_with("/gone`"), "{gone}");
        let file = said("file/x");
        assert!(file.contains("/file` is no folder"), "{file}");
    }

    #[test]
    fn a_write_replaces_the_file_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_or_a_folder_is_not_replaced_by_a_file() {
        let dir = tempfile::tempdir().unwrap();
        for path in [Path::new("/dev/null"), dir.path()] {
            let error = write_atomically(path, b"x").unwrap_err().to_string();
            assert!(error.contains("is there and is no regular file"), "{error}");
        }
        assert!(std::fs::read("/dev/null").unwrap().is_empty() && dir.path().is_dir());
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomically(&path, b"old").unwrap();
        let full = |f: &mut dyn Write| {
            f.write_all(b"half")?;
            Err(std::io::Error::other("disk full"))
        };
        let failed = write_with(&path, full, |_| Ok(()));
        assert!(failed.unwrap_err().to_string().contains("disk full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_its_check_refuses_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, b"old").unwrap();
        let tensors = [NamedTensor::f32("w", vec![1], &[0.0])];
        let refuse = |found: &Path| Err(Error::file(found, "is another"));
        let said = write_safetensors_checked(&path, &tensors, &[], refuse).unwrap_err().to_string();
        assert!(said.contains("x.safetensors: is not written: is another"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_shape_that_does_not_fit_and_a_name_given_twice_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let short = NamedTensor::f32("w", vec![3], &[0.0]);
        assert!(write_safetensors(&path, &[short], &[]).unwrap_err().to_string().contains("`w`"));
        let w = NamedTensor::f32("w", vec![1], &[0.0]);
        assert!(write_safetensors(&path, &[w.clone(), w], &[]).unwrap_err().to_string().contains("twice"));
        assert!(!path.exists());
    }

    #[test]
    fn equal_tensors_give_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for path in [&a, &b] {
            let tensors = [NamedTensor::f32("w", vec![2], &[1.0, 2.0])];
            write_safetensors(path, &tensors, &[("z", "1"), ("a", "2"), ("m", "3")]).unwrap();
        }
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    }
}
