//! The pictures and masks of one sample: read and, for a run, scaled to the training size.

use std::path::Path;

use super::{
    geometry,
    picture::{Foreground, Rgb},
    row::Row,
    settings::{PairsSettings, Size, grid},
};
use crate::guard;

/// A sample at the size of training.
pub(super) struct Sample {
    pub winner: Vec<u8>,
    /// How the winner came to its size.
    pub crop: [f32; 4],
    pub loser: Vec<u8>,
    pub references: Vec<Vec<u8>>,
    pub reference_masks: Vec<Vec<f32>>,
    pub priors: Vec<Vec<f32>>,
}

/// Read a mask and compare it with its picture.
///
/// # Errors
/// Naming the file of the mask.
pub(super) fn mask_of(path: &Path, picture: &Rgb, max_pixels: usize) -> Result<Foreground, String> {
    let mask = Foreground::open(path, max_pixels)?;
    geometry::check_shape(&mask, picture).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(mask)
}

/// A mask on the focus grid of a picture of this size, whose cells have `cell` pixels along a side.
///
/// # Errors
/// Naming the file of the mask.
pub(super) fn cells_of(path: &Path, mask: &Foreground, size: Size, cell: usize) -> Result<Vec<f32>, String> {
    geometry::on_grid(mask, size, cell).map_err(|e| format!("{}: {e}", path.display()))
}

/// A picture at the size of training.
struct Fitted {
    rgb: Vec<u8>,
    /// How it came to its size: see [`geometry::crop`].
    crop: [f32; 4],
    /// Its masks on the grid.
    masks: Vec<Vec<f32>>,
}

fn picture(path: &Path, masks: &[&Path], size: Size, settings: &PairsSettings) -> Result<Fitted, String> {
    let PairsSettings { max_pixels, cell, .. } = *settings;
    let picture = Rgb::open(path, max_pixels)?;
    let masks = masks
        .iter()
        .map(|path| cells_of(path, &mask_of(path, &picture, max_pixels)?, size, cell))
        .collect::<Result<_, _>>()?;
    let crop = geometry::crop((picture.height, picture.width), size);
    Ok(Fitted { rgb: geometry::fitted(picture, size), crop, masks })
}

impl Sample {
    /// Read the files of a row.
    ///
    /// # Errors
    /// If one of them cannot be used; the message names it.
    pub fn read(row: &Row, settings: &PairsSettings) -> Result<Self, String> {
        guard::reason(|| Self::read_all(row, settings))
    }

    fn read_all(row: &Row, settings: &PairsSettings) -> Result<Self, String> {
        let (size, reference_size) = (settings.size(), settings.reference_size());
        let read = |path: &Path, masks: &[&Path], size| picture(path, masks, size, settings);
        let whole = |size| {
            let (h, w) = grid(size, settings.cell);
            vec![1.0; h * w]
        };
        let priors: Vec<&Path> = row.priors.iter().map(AsRef::as_ref).collect();
        let Fitted { rgb: winner, crop, masks: mut priors } = read(&row.winner, &priors, size)?;
        let loser = read(row.loser(), &[], size)?.rgb;
        if row.priors.is_empty() {
            priors = vec![whole(size); row.references.len()];
        }
        let (mut references, mut reference_masks) = (Vec::new(), Vec::new());
        for reference in &row.references {
            let masks: Vec<&Path> = reference.mask.iter().map(AsRef::as_ref).collect();
            let Fitted { rgb, masks: mut found, .. } = read(&reference.image, &masks, reference_size)?;
            references.push(rgb);
            reference_masks.push(found.pop().unwrap_or_else(|| whole(reference_size)));
        }
        Ok(Self { winner, crop, loser, references, reference_masks, priors })
    }
}
