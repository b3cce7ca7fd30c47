//! Pairs of factors as a file has them, and the linears that each is for.
//!
//! Where q, k and v (in blocks with one stream the MLP, too) are one linear, a file has one pair for them, `down [R, K]`
//! and `up [N, R]`. Each of its parts has the same `down` and its own rows of `up`: that is lossless, and how a
//! [`FrozenAdapter`](super::FrozenAdapter) reads it. Where `up` consists of blocks along the diagonal, one a part, the
//! parts have factors of their own of rank `R / parts`: that is how adapters that were trained apart are written, and how
//! they are read back.
//!
//! `R` rank in the file, `K` inputs, `N` outputs of all parts

use std::{ops::Range, path::Path, sync::Arc};

use super::names::Linear;
use crate::{
    error::{Error, Result},
    files::{TensorFiles, TensorView},
    linears::LinearLayout,
};

/// A part of a linear of a file: a linear of diffusers' layout, and its rows of `up`.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub name: String,
    pub rows: Range<usize>,
}

/// A pair of factors as the file has it.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    /// What the file calls the linear.
    pub key: String,
    /// `[R, K]`.
    pub down: TensorView,
    /// Side of the window, where its axes are those of a convolution of more than one pixel.
    pub window: Option<usize>,
    /// `[N, R]`.
    pub up: TensorView,
    /// The product is scaled by `alpha / R`; nothing where the file says nothing.
    pub alpha: Option<f32>,
    pub parts: Vec<Part>,
    /// Have the parts one A by definition, so that blocks along the diagonal mean nothing?
    shared: bool,
}

/// The factors of one linear of diffusers' layout, as they are to be trained.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub linear: LinearLayout,
    pub rank: usize,
    /// The file's alpha is for so many times the rank.
    pub blocks: usize,
    pub alpha: Option<f32>,
    pub a: TensorView,
    /// All columns that the file has for these rows.
    pub up: TensorView,
    pub columns: Range<usize>,
    /// What the file calls the linear.
    pub key: String,
}

impl Factors {
    /// Look up both factors and compare their axes.
    ///
    /// # Errors
    /// If they are no matrices of one rank, or the rows of `up` cannot be shared out among the linear's parts.
    pub fn new(
        files: &Arc<TensorFiles>,
        key: &str,
        linear: &Linear,
        [down, up]: [&str; 2],
        alpha: Option<f32>,
    ) -> Result<Self> {
        let path = files.path();
        let (down, window) = filters(files, down)?;
        let up = matrix(files, up)?;
        let (rank, outputs, same) = (down.shape()[0], up.shape()[0], up.shape()[1]);
        if rank != same || rank == 0 {
            let message =
                format!("the factors of `{key}` have ranks {rank} and {same}: expected the same, at least 1");
            return Err(Error::file(path, message));
        }
        if let Some(alpha) = alpha.filter(|a| !(a.is_finite() && *a > 0.0)) {
            let message = format!("alpha of `{key}` is {alpha}: expected a positive number");
            return Err(Error::file(path, message));
        }
        let (parts, up) = parts(linear, up, path)?;
        let parts = parts.ok_or_else(|| {
            let message = format!("the {outputs} outputs of `{key}` cannot be shared out among its parts");
            Error::file(path, message)
        })?;
        let shared = matches!(linear, Linear::SharedA(_));
        Ok(Self { key: key.into(), down, window, up, alpha, parts, shared })
    }

    /// `R`.
    pub fn rank(&self) -> usize {
        self.down.shape()[0]
    }

    /// The modules of this pair, with factors of their own where `up` consists of blocks.
    ///
    /// # Errors
    /// If rows do not lie within the factors.
    pub fn modules(&self) -> Result<Vec<Module>> {
        let rows: Vec<Range<usize>> = self.parts.iter().map(|p| p.rows.clone()).collect();
        let rank = self.rank();
        let candidate = !self.shared && rows.len() > 1;
        let found = if candidate { blocks(&self.up.read(), rank, &rows) } else { None };
        let module = |part: usize, rank: usize, blocks: usize, a: TensorView, columns: Range<usize>| {
            let Part { name, rows } = &self.parts[part];
            let linear = LinearLayout {
                name: name.clone(),
                inputs: a.shape()[1],
                outputs: rows.len(),
                window: self.window,
            };
            let up = self.up.rows(rows.clone())?;
            let key = self.key.clone();
            Ok(Module { linear, rank, blocks, alpha: self.alpha, a, up, columns, key })
        };
        let Some(parts) = found else {
            return (0..rows.len()).map(|part| module(part, rank, 1, self.down.clone(), 0..rank)).collect();
        };
        let mut modules = Vec::new();
        let r = rank / parts.len();
        for (block, part) in parts.iter().enumerate() {
            let columns = block * r..(block + 1) * r;
            let a = self.down.rows(columns.clone())?;
            let module = module(*part, r, parts.len(), a, columns)?;
            // A block of zeros in both factors stands for a part that has none.
            if module.a.read().iter().chain(&module.up.read()).any(|v| *v != 0.0) {
                modules.push(module);
            }
        }
        Ok(modules)
    }
}

impl Module {
    /// What B is to be multiplied by so that this alpha scales the product as the file's does, where that is a power of two.
    pub fn share(&self, alpha: f32) -> Option<f32> {
        let own = self.alpha?;
        // The power of two next to the ratio, which rounding may have moved off it by a bit.
        let ratio = own / self.blocks as f32 / alpha;
        let share = f32::from_bits((ratio.to_bits() + (1 << 22)) & !0x007f_ffff);
        (is_power_of_two(share) && alpha * share * self.blocks as f32 == own).then_some(share)
    }
}

/// No digits but the first, and neither zero nor subnormal.
pub(super) fn is_power_of_two(value: f32) -> bool {
    value.is_normal() && value > 0.0 && value.to_bits() & 0x007f_ffff == 0
}

/// A factor as a matrix. Convolutions with one tap have the same factors with further axes of one.
fn matrix(files: &Arc<TensorFiles>, name: &str) -> Result<TensorView> {
    let view = TensorView::whole(files, name)?;
    view.as_matrix().ok_or_else(|| {
        let message = format!("`{name}` has axes {:?}: expected two, of any others each 1", view.shape());
        Error::file(files.path(), message)
    })
}

/// A as a matrix, with the side of its window where it has the axes of a convolution, `[R, channels, side, side]`. Those of one pixel are
/// written of linears, too.
fn filters(files: &Arc<TensorFiles>, name: &str) -> Result<(TensorView, Option<usize>)> {
    let view = TensorView::whole(files, name)?;
    match *view.shape() {
        [rank, channels, side, other] if side == other && side > 1 => {
            Ok((view.with_rows_of(rank, channels * side * side), Some(side)))
        }
        _ => Ok((matrix(files, name)?, None)),
    }
}

/// The parts of a linear with their rows of `up`, in the order of diffusers' layout; no parts if the rows cannot be shared
/// out.
fn parts(linear: &Linear, up: TensorView, path: &Path) -> Result<(Option<Vec<Part>>, TensorView)> {
    let rows = up.shape()[0];
    let all = |name: String| Some(vec![Part { name, rows: 0..rows }]);
    let found = match linear {
        Linear::Fused(place) => place.rows(rows).map(|ranges| {
            let parts = place.diffusers().into_iter().zip(ranges);
            parts.map(|(name, rows)| Part { name, rows }).collect()
        }),
        Linear::SharedA(place) => {
            let names: Vec<String> = place.diffusers().into_iter().take(super::names::uno::QKV).collect();
            rows.is_multiple_of(names.len()).then(|| {
                let each = rows / names.len();
                let part = |(i, name)| Part { name, rows: i * each..(i + 1) * each };
                names.into_iter().enumerate().map(part).collect()
            })
        }
        Linear::Part(place, part) => all(place.diffusers().swap_remove(*part)),
        Linear::Outside(outside, spelling) => {
            if outside.swapped && *spelling == super::names::Spelling::Original {
                let up = up.swapped_halves().map_err(|e| Error::file(path, e))?;
                return Ok((all(outside.diffusers.into()), up));
            }
            all(outside.diffusers.into())
        }
        Linear::Unknown(name) => all(name.clone()),
    };
    Ok((found, up))
}

/// Which parts have a block of their own on the diagonal of `up [N, R]`, in the order of the blocks; nothing if it
/// is not made of blocks. Where not all parts have one, the rows of the others are zero.
pub(super) fn blocks(up: &[f32], rank: usize, rows: &[Range<usize>]) -> Option<Vec<usize>> {
    let row = |r: usize| &up[r * rank..(r + 1) * rank];
    let diagonal = |parts: &[usize]| {
        let r = rank / parts.len();
        rank.is_multiple_of(parts.len())
            && parts.iter().enumerate().all(|(block, part)| {
                let own = block * r..(block + 1) * r;
                rows[*part].clone().all(|at| {
                    row(at).iter().enumerate().all(|(column, v)| own.contains(&column) || *v == 0.0)
                })
            })
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    if diagonal(&all) {
        return Some(all);
    }
    let used: Vec<usize> =
        all.into_iter().filter(|p| rows[*p].clone().any(|at| row(at).iter().any(|v| *v != 0.0))).collect();
    (used.len() > 1 && used.len() < rows.len() && diagonal(&used)).then_some(used)
}
