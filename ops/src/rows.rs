//! Values as rows, one a sample: what has to be known of a port to keep what was computed for a sample.

use std::sync::Arc;

use dfdx::{shapes::HasShape, tensor::TensorFromVec};

use crate::{
    operator::OpError,
    port::{NamedState, NamedTensor, Port, T, Value, host, take},
    ports::{List, ListShape},
    shape::{Axes, ErasedShape},
};

/// BLAKE3 of one row with its axes.
pub type Digest = [u8; 32];

/// The rows of a port type that is known at run time only.
#[derive(Clone, Copy)]
pub struct Rows {
    /// One digest a row; `None` where the value does not tell how many rows it has, as an empty list.
    pub digests: fn(&Value) -> Result<Option<Vec<Digest>>, OpError>,
    /// How rows are kept, for kinds that can be.
    pub keep: Option<Keep>,
}

/// Rows as named tensors, and back, bit by bit.
#[derive(Clone, Copy)]
pub struct Keep {
    /// One state a row.
    pub split: fn(&Value) -> Result<Vec<NamedState>, OpError>,
    /// The value of these rows.
    pub join: fn(&[NamedState]) -> Result<Value, OpError>,
    /// Rows of a value of this shape, where it tells, and the axes of each.
    pub measure: fn(&ErasedShape) -> Option<(usize, String)>,
}

/// A port whose value has one row a sample.
pub trait Batched: Port {
    /// One digest a row.
    fn digests(&self) -> Vec<Digest>;
}

impl Rows {
    /// Those of `P`, which can be told apart but not kept.
    pub fn of<P: Batched>() -> Self {
        Self { digests: |value| Ok(Some(take::<P>(value).digests())), keep: None }
    }

    /// Those of a tensor whose first axis is the batch.
    pub(crate) fn of_tensor<S: Axes>() -> Option<Self> {
        let keep =
            Keep { split: split_tensor::<S>, join: join_tensor::<S>, measure: |s| measure_tensor::<S>(s) };
        (!S::extents().is_empty()).then_some(Self { keep: Some(keep), ..Self::of::<T<S>>() })
    }

    /// Those of a list, row by row through all its items.
    pub(crate) fn of_list<P: Port>() -> Option<Self> {
        let item = P::rows()?;
        let keep = item.keep.map(|_| Keep {
            split: split_list::<P>,
            join: join_list::<P>,
            measure: |s| measure_list::<P>(s),
        });
        Some(Self { digests: digest_list::<P>, keep })
    }
}

/// The digest of a row of these axes and bytes; the kind keeps rows of different ports apart.
pub fn digest<B: AsRef<[u8]>>(kind: &str, axes: &[usize], bytes: impl IntoIterator<Item = B>) -> Digest {
    let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 a row of a port");
    hash.update(&(kind.len() as u64).to_le_bytes());
    hash.update(kind.as_bytes());
    hash.update(&(axes.len() as u64).to_le_bytes());
    for axis in axes {
        hash.update(&(*axis as u64).to_le_bytes());
    }
    for part in bytes {
        hash.update(part.as_ref());
    }
    *hash.finalize().as_bytes()
}

/// Rows, axes of one, and values of all.
fn parts<S: Axes>(tensor: &T<S>) -> (usize, Vec<usize>, Vec<f32>) {
    let dims: Vec<usize> = HasShape::shape(tensor).concrete().into();
    (dims[0], dims[1..].to_vec(), tensor.as_vec())
}

impl<S: Axes> Batched for T<S> {
    fn digests(&self) -> Vec<Digest> {
        let (rows, axes, values) = parts(self);
        let size = axes.iter().product::<usize>();
        let one = |row: usize| {
            let bytes: Vec<u8> =
                values[row * size..(row + 1) * size].iter().flat_map(|v| v.to_le_bytes()).collect();
            digest("f32", &axes, [bytes])
        };
        (0..rows).map(one).collect()
    }
}

fn measure_tensor<S: Axes>(shape: &ErasedShape) -> Option<(usize, String)> {
    let dims: Vec<usize> = shape.get::<S>()?.concrete().into();
    Some((*dims.first()?, format!("{:?}", &dims[1..])))
}

fn measure_list<P: Port>(shape: &ErasedShape) -> Option<(usize, String)> {
    let measure = P::rows()?.keep?.measure;
    let items =
        shape.get::<ListShape<P::Shape>>()?.0.iter().map(|item| measure(&ErasedShape::new(item.clone())));
    let items = items.collect::<Option<Vec<_>>>()?;
    let axes: Vec<&str> = items.iter().map(|(_, axes)| axes.as_str()).collect();
    Some((items.first()?.0, axes.join(" ")))
}

const VALUE: &str = "value";

fn split_tensor<S: Axes>(value: &Value) -> Result<Vec<NamedState>, OpError> {
    let (rows, dims, values) = parts(&take::<T<S>>(value));
    let size = dims.iter().product::<usize>();
    let one = |row: usize| NamedState {
        tensors: vec![NamedTensor {
            name: VALUE.into(),
            dims: dims.clone(),
            values: Arc::new(values[row * size..(row + 1) * size].to_vec()),
        }],
        counters: Vec::new(),
    };
    Ok((0..rows).map(one).collect())
}

fn join_tensor<S: Axes>(rows: &[NamedState]) -> Result<Value, OpError> {
    let first = rows.first().ok_or_else(|| OpError::internal("no rows to put together"))?;
    let axes = first.tensor(VALUE)?.dims.clone();
    let mut values = Vec::with_capacity(rows.len() * axes.iter().product::<usize>());
    for row in rows {
        let row = row.tensor(VALUE)?;
        if row.dims != axes {
            return Err(OpError::new(format!("rows of one batch have axes {axes:?} and {:?}", row.dims)));
        }
        values.extend_from_slice(&row.values);
    }
    let dims: Vec<usize> = std::iter::once(rows.len()).chain(axes).collect();
    let wrong = || OpError::new(format!("a tensor of axes {dims:?} is no {}", S::label()));
    let mut concrete = S::Concrete::default();
    if S::NUM_DIMS != dims.len() {
        return Err(wrong());
    }
    dims.iter().enumerate().for_each(|(axis, extent)| concrete[axis] = *extent);
    let shape = S::from_concrete(&concrete).ok_or_else(wrong)?;
    Ok(Arc::new(host().try_tensor_from_vec(values, shape)?))
}

fn items<P: Port>(value: &Value) -> impl Iterator<Item = Value> {
    take::<List<P>>(value).0.into_iter().map(Port::erase)
}

fn of_item<P: Port>() -> Result<Rows, OpError> {
    P::rows().ok_or_else(|| OpError::internal(format!("{} has no rows", P::label())))
}

fn digest_list<P: Port>(value: &Value) -> Result<Option<Vec<Digest>>, OpError> {
    let rows = of_item::<P>()?;
    let mut all: Option<Vec<Vec<Digest>>> = None;
    for item in items::<P>(value) {
        let Some(digests) = (rows.digests)(&item)? else { return Ok(None) };
        let all = all.get_or_insert_with(|| vec![Vec::new(); digests.len()]);
        if all.len() != digests.len() {
            return Err(OpError::internal("items of a list have different numbers of rows"));
        }
        all.iter_mut().zip(digests).for_each(|(row, digest)| row.push(digest));
    }
    let joined = |row: &Vec<Digest>| digest("list", &[row.len()], row);
    Ok(all.map(|all| all.iter().map(joined).collect()))
}

fn split_list<P: Port>(value: &Value) -> Result<Vec<NamedState>, OpError> {
    let keep = of_item::<P>()?.keep.ok_or_else(|| OpError::internal("items cannot be kept"))?;
    let mut all: Vec<NamedState> = Vec::new();
    for (k, item) in items::<P>(value).enumerate() {
        let rows = (keep.split)(&item)?;
        all.resize_with(rows.len(), NamedState::default);
        for (row, state) in all.iter_mut().zip(rows) {
            let named = |t: NamedTensor| NamedTensor { name: format!("{k}.{}", t.name), ..t };
            row.tensors.extend(state.tensors.into_iter().map(named));
        }
    }
    Ok(all)
}

fn join_list<P: Port>(rows: &[NamedState]) -> Result<Value, OpError> {
    let keep = of_item::<P>()?.keep.ok_or_else(|| OpError::internal("items cannot be kept"))?;
    let item_of = |t: &NamedTensor| -> Option<(usize, String)> {
        let (k, name) = t.name.split_once('.')?;
        Some((k.parse().ok()?, name.to_owned()))
    };
    // Rows of one batch have as many items as each other.
    let count =
        |row: &NamedState| row.tensors.iter().filter_map(item_of).map(|(k, _)| k + 1).max().unwrap_or(0);
    let items = rows.first().map_or(0, count);
    if let Some(other) = rows.iter().map(count).find(|c| *c != items) {
        return Err(OpError::new(format!("rows of one batch have {items} and {other} items")));
    }
    let one = |k: usize| {
        let of_row = |row: &NamedState| {
            let mine = row.tensors.iter().filter_map(|t| {
                let (item, name) = item_of(t)?;
                (item == k).then(|| NamedTensor { name, ..t.clone() })
            });
            NamedState { tensors: mine.collect(), counters: Vec::new() }
        };
        let rows: Vec<NamedState> = rows.iter().map(of_row).collect();
        (keep.join)(&rows).map(|value| take::<P>(&value))
    };
    Ok(Arc::new(List((0..items).map(one).collect::<Result<Vec<P>, _>>()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Images, Latents, Pooled, Texts};

    fn latents(batch: usize, from: f32) -> Latents {
        let values = (0..batch * 6).map(|i| from + i as f32).collect();
        host().tensor_from_vec(values, (batch, 1, 2, 3))
    }

    fn rows<P: Port>(value: &P) -> Vec<Digest> {
        let value: Value = Arc::new(value.clone());
        (P::rows().unwrap().digests)(&value).unwrap().unwrap()
    }

    #[test]
    fn a_row_has_the_same_digest_in_every_batch_and_another_with_other_axes() {
        let (all, tail) = (latents(3, 0.0), latents(2, 6.0));
        assert_eq!(rows(&all)[1..], rows(&tail));
        let flat: Pooled = host().tensor_from_vec((0..6).map(|i| i as f32).collect(), (1, 6));
        assert_ne!(rows(&flat)[0], rows(&all)[0]);
        let picture = |height, width| Images { batch: 1, height, width, rgb: vec![7; 24].into() };
        assert_ne!(rows(&picture(2, 4)), rows(&picture(4, 2)));
        let texts = Texts(["a", "b", "a"].map(String::from).to_vec().into());
        let found = rows(&texts);
        assert!(found[0] == found[2] && found[0] != found[1]);
    }

    #[test]
    fn what_is_split_and_joined_in_another_order_is_the_rows_in_that_order_bit_by_bit() {
        let mut values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        values[3] = f32::from_bits(0x7fc0_1234);
        values[4] = -0.0;
        let first: Latents = host().tensor_from_vec(values, (2, 1, 2, 3));
        let list = List(vec![first, latents(2, 50.0)]);
        let keep = List::<Latents>::rows().unwrap().keep.unwrap();
        let mut split = (keep.split)(&(Arc::new(list.clone()) as Value)).unwrap();
        split.reverse();
        let joined = take::<List<Latents>>(&(keep.join)(&split).unwrap());
        for (item, old) in joined.0.iter().zip(&list.0) {
            let (new, old) = (item.as_vec(), old.as_vec());
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&new[..6]), bits(&old[6..]));
            assert_eq!(bits(&new[6..]), bits(&old[..6]));
        }
    }

    #[test]
    fn an_empty_list_does_not_tell_how_many_rows_it_has() {
        let empty: Value = Arc::new(List::<Latents>(Vec::new()));
        assert_eq!((List::<Latents>::rows().unwrap().digests)(&empty).unwrap(), None);
    }
}
