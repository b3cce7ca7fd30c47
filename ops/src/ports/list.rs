//! Lists whose length is known at run time: references, their masks, the priors of several subjects.

use std::sync::Arc;

use prefgraph_nn::size;

use crate::{
    error::OpError,
    port::{NamedState, NamedTensor, NoGrad, Port, Value, take},
    rows::{Digest, Keep, SampleRows, digest},
    shape::{ErasedShape, PortShape},
};

/// A list of `P`; no gradient crosses it.
#[derive(Clone, Debug)]
pub struct List<P>(pub Vec<P>);

/// Shape of a [`List`].
#[derive(Clone, Debug, PartialEq)]
pub struct ListShape<S>(pub Vec<S>);

impl<S: PortShape> PortShape for ListShape<S> {
    fn describe(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut items = self.0.iter().map(PortShape::describe).peekable();
        while let Some(item) = items.next() {
            let mut count = 1;
            while items.next_if_eq(&item).is_some() {
                count += 1;
            }
            parts.push(if count > 1 { format!("{count} x {item}") } else { item });
        }
        format!("[{}]", parts.join(", "))
    }
    fn bytes(&self) -> usize {
        size::sum(self.0.iter().map(PortShape::bytes))
    }
}

impl<P: Port> Port for List<P> {
    type Grad = NoGrad;
    type Shape = ListShape<P::Shape>;

    fn label() -> String {
        format!("[{}]", P::label())
    }
    fn shape(&self) -> Self::Shape {
        ListShape(self.0.iter().map(Port::shape).collect())
    }
    fn rows() -> Option<SampleRows> {
        rows::<P>()
    }
}

/// The rows of a list: row by row through all its items.
fn rows<P: Port>() -> Option<SampleRows> {
    let item = P::rows()?;
    let keep = item.keep.map(|_| Keep {
        split: split_list::<P>,
        join: join_list::<P>,
        measure: |s| measure_list::<P>(s),
    });
    Some(SampleRows { digests: digest_list::<P>, keep })
}

fn measure_list<P: Port>(shape: &ErasedShape) -> Option<(usize, String)> {
    let measure = P::rows()?.keep?.measure;
    let items =
        shape.get::<ListShape<P::Shape>>()?.0.iter().map(|item| measure(&ErasedShape::new(item.clone())));
    let items = items.collect::<Option<Vec<_>>>()?;
    let axes: Vec<&str> = items.iter().map(|(_, axes)| axes.as_str()).collect();
    Some((items.first()?.0, axes.join(" ")))
}

fn items<P: Port>(value: &Value) -> impl Iterator<Item = Value> {
    take::<List<P>>(value).0.into_iter().map(Port::erase)
}

fn of_item<P: Port>() -> Result<SampleRows, OpError> {
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
    use dfdx::tensor::TensorFromVec;

    use crate::{
        ports::{Images, Latents, Pooled, Texts},
        tensor::host,
    };

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
