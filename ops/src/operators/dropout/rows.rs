//! Rows of one tensor, and those of another in the place of some.
//!
//! Shape letters: `B` samples.

use dfdx::shapes::HasShape;

use crate::{
    operator::{Ctx, OpError},
    operators::tensors::{dims, tensor},
    port::T,
    row_major::RowMajor,
    shape::Axes,
};

/// Can rows of the axes `empty` stand in the place of rows of the axes `of`? They are one for all or one for each, and as wide; along the
/// second axis of three they may be a part of it, which is repeated.
pub(super) fn fits(what: &str, of: &[usize], empty: &[usize], gone: usize) -> Result<(), OpError> {
    let ([batch, rest @ ..], [rows, instead @ ..]) = (of, empty) else {
        return Err(OpError::internal("a tensor without axes"));
    };
    let part = |(axis, (whole, part)): (usize, (&usize, &usize))| {
        whole == part || (axis + 1 < rest.len() && *part > 0 && whole.is_multiple_of(*part))
    };
    if gone != *batch {
        return Err(OpError::new(format!(
            "`drop` says of {gone} samples whether their {what} is left out, and there are {batch}: connect the `dropout` node of \
             the same samples"
        )));
    }
    if ![1, *batch].contains(rows) || !rest.iter().zip(instead).enumerate().all(part) {
        return Err(OpError::new(format!(
            "`empty` has the axes {empty:?}, which cannot stand in the place of {of:?}: it must come from the same encoder, with one \
             sample or as many"
        )));
    }
    Ok(())
}

/// `rows`, with those of `empty` where `gone` is not zero. Nothing is copied where nothing is left out.
pub(super) fn replaced<S: Axes>(
    ctx: &Ctx<'_>,
    rows: T<S>,
    empty: &T<S>,
    gone: &T<(usize,)>,
) -> Result<T<S>, OpError> {
    let gone = gone.row_major();
    if gone.iter().all(|gone| *gone == 0.0) {
        return Ok(rows);
    }
    let (shape, empties) = (*HasShape::shape(&rows), dims(empty)[0]);
    let (mut values, empty) = (rows.row_major(), empty.row_major());
    let (size, each) = (values.len() / gone.len(), empty.len() / empties);
    for (sample, row) in values.chunks_exact_mut(size).enumerate().filter(|(sample, _)| gone[*sample] != 0.0)
    {
        let from = if empties > 1 { &empty[sample * each..][..each] } else { &empty };
        row.chunks_exact_mut(each).for_each(|part| part.copy_from_slice(from));
    }
    tensor(ctx, shape, values)
}
