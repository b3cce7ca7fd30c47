//! The file of an IP-Adapter with what was trained of it: a copy in which a matrix is its frozen values and their change.
//!
//! ```text
//! W + C              of a linear that is trained whole
//! W + s B A          of one with factors
//! ```
//!
//! Such matrices are f32, whatever they were before, so that no change is rounded away; everything else has the bytes of the file.

use std::{borrow::Cow, collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use crate::{
    error::{Error, Result},
    files::{NamedTensor, TensorFiles, TensorView, write_safetensors_checked},
    linears::{IpAdapterPlaces, LinearLayout},
    lora::adapter::{AdapterLayout, HostAdapter},
};

/// Write the copy, read it back, and compare every tensor.
///
/// # Errors
/// If the layout is none that the file can hold; if the file has changed since it was opened, or `path` is the file itself; if a sum
/// is not finite; if the copy cannot be written or does not read back as it was written.
pub(super) fn write(adapter: &HostAdapter, path: &Path, about: &[(String, String)]) -> Result<()> {
    fits(&adapter.layout)?;
    let file = places(&adapter.layout)?;
    let same = |path: &Path| path.canonicalize().ok();
    if same(path).is_some() && same(path) == same(&file.path) {
        return Err(Error::file(path, "is the IP-Adapter that was trained: its copy must have another name"));
    }
    let files = Arc::new(TensorFiles::open(&file.path)?);
    let changed = changed(adapter, &files, file)?;
    let tensors = files.names().map(|name| {
        let info = files.info(name).ok_or_else(|| Error::Internal(format!("`{name}` of a file is gone")))?;
        Ok(match changed.get(name) {
            Some(values) => NamedTensor::borrowed(name, info.shape.clone(), values),
            None => NamedTensor {
                name: name.into(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: Cow::Borrowed(files.bytes(name)?),
            },
        })
    });
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    let mut header: BTreeMap<&str, &str> = files.metadata().iter().map(|(k, v)| (&**k, &**v)).collect();
    header.extend(about.iter().map(|(k, v)| (&**k, &**v)));
    let header: Vec<_> = header.into_iter().collect();
    write_safetensors_checked(path, &tensors, &header, |written| compare(written, &tensors))
}

/// Can the IP-Adapter's file hold all that is trained? Where linears are trained whole, factors of others go into another file.
///
/// # Errors
/// If there is no IP-Adapter, nothing of it is trained, or factors of other linears would go nowhere.
pub(super) fn fits(layout: &AdapterLayout) -> Result<()> {
    let file = places(layout)?;
    let outside = layout.modules.iter().find(|m| !file.places.contains_key(&m.name));
    match outside {
        Some(outside) if layout.whole.is_empty() => Err(Error::Setting(format!(
            "the adapter has factors for `{}`, which no file of an IP-Adapter holds: write it in diffusers' or kohya's names",
            outside.name
        ))),
        _ => Ok(()),
    }
}

fn places(layout: &AdapterLayout) -> Result<&IpAdapterPlaces> {
    layout.ip_adapter.as_deref().ok_or_else(|| {
        Error::Setting(
            "the network has no IP-Adapter, whose file could be copied with what was trained of it".into(),
        )
    })
}

/// The tensors of the file that something is trained of, as they are now.
fn changed(
    adapter: &HostAdapter,
    files: &Arc<TensorFiles>,
    file: &IpAdapterPlaces,
) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut all: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let layout = &adapter.layout;
    let mut add = |module: &LinearLayout, change: &dyn Fn(usize, &mut [f32])| -> Result<()> {
        let Some((tensor, rows)) = file.places.get(&module.name) else { return Ok(()) };
        let view = TensorView::whole(files, tensor)?;
        let whole = view.shape().first().is_some_and(|n| *n >= rows.end) && rows.len() == module.outputs;
        if !whole || view.len() != view.shape()[0] * module.inputs {
            let message = format!("`{tensor}` has axes {:?}, not those that were trained", view.shape());
            return Err(Error::file(files.path(), message));
        }
        let values = match all.entry(tensor.clone()) {
            std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => place.insert(view.read_finite()?),
        };
        let range = rows.start * module.inputs..rows.end * module.inputs;
        for (row, values) in values[range].chunks_exact_mut(module.inputs).enumerate() {
            change(row, values);
            if !values.iter().all(|v| v.is_finite()) {
                return Err(Error::Setting(format!(
                    "`{}` with its change is too large for f32",
                    module.name
                )));
            }
        }
        Ok(())
    };
    for (module, range) in layout.whole.iter().zip(layout.whole_ranges()) {
        let change = &adapter.values[range];
        add(module, &|row, values| {
            let change = &change[row * module.inputs..][..module.inputs];
            values.iter_mut().zip(change).for_each(|(value, change)| *value += change);
        })?;
    }
    for (module, (a, b)) in layout.modules.iter().zip(layout.ranges()) {
        add(module, &|row, values| product_row(adapter, (&a, &b), row, values))?;
    }
    Ok(all)
}

/// Adds a row of `s B A`, summed in f64.
fn product_row(
    adapter: &HostAdapter,
    (a, b): (&Range<usize>, &Range<usize>),
    row: usize,
    values: &mut [f32],
) {
    let (layout, inputs) = (&adapter.layout, values.len());
    let b = &adapter.values[b.clone()][row * layout.rank..][..layout.rank];
    let scale = f64::from(layout.alpha) / layout.rank as f64;
    let mut sums = vec![0.0f64; inputs];
    for (a, b) in adapter.values[a.clone()].chunks_exact(inputs).zip(b) {
        sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += f64::from(*a) * f64::from(*b));
    }
    for (value, sum) in values.iter_mut().zip(sums) {
        *value = (f64::from(*value) + scale * sum) as f32;
    }
}

fn compare(path: &Path, written: &[NamedTensor<'_>]) -> Result<()> {
    let back = TensorFiles::open(path)?;
    for tensor in written {
        let info = back.info(&tensor.name);
        let same = info.is_some_and(|info| info.dtype == tensor.dtype && info.shape == tensor.shape);
        if !same || back.bytes(&tensor.name)? != &*tensor.bytes {
            let message = format!("does not read back as it was written: `{}` is another", tensor.name);
            return Err(Error::file(path, message));
        }
    }
    Ok(())
}
