//! Adapters from files and into files.

use std::{path::Path, sync::Arc};

use super::{
    Adapter, AdapterFile, AdapterFormat, AdapterLayout, diffusers,
    format::Contents,
    kohya,
    pattern::{count_kinds, kind},
    uno,
};
use crate::{
    backbone::LinearLayout,
    error::{Error, Result},
    files::write_safetensors,
};

impl Adapter {
    /// Read an adapter in any of the [formats](AdapterFormat) for a model with these linears.
    ///
    /// # Errors
    /// As [`AdapterFile::open`] and [`AdapterFile::adapter`].
    pub fn read(path: &Path, linears: &[LinearLayout]) -> Result<Self> {
        AdapterFile::open(path, "")?.adapter(Some(linears))
    }

    /// Write the adapter, read the file back, and compare every value.
    ///
    /// Rank, alpha and targets are in the header, and `about`: what else is known of the adapter, by name, e.g. the
    /// graph that trained it. UNO's names have no alpha: there the scale is multiplied into B, if that is exact.
    ///
    /// # Errors
    /// If the format cannot hold the adapter; if the file cannot be written, or does not read back as what was written.
    pub fn write(&self, path: &Path, format: AdapterFormat, about: &[(String, String)]) -> Result<()> {
        let refused = |e: Error| match e {
            Error::Setting(message) => Error::file(path, format!("cannot be written: {message}")),
            other => other,
        };
        let unscaled;
        let mut written = self;
        let Contents { tensors, mut header } = match format {
            AdapterFormat::Diffusers => diffusers::tensors(self),
            AdapterFormat::Kohya => kohya::tensors(self).map_err(refused)?,
            AdapterFormat::Uno => {
                unscaled = self.unscaled().map_err(refused)?;
                written = &unscaled;
                uno::tensors(written).map_err(refused)?
            }
        };
        let layout = &written.layout;
        let targets = count_kinds(layout.modules.iter().map(|m| kind(&m.name)));
        let targets: Vec<&str> = targets.iter().map(|(kind, _)| kind.as_str()).collect();
        header.extend(
            [
                ("format", "pt".to_owned()),
                ("prefgraph.rank", layout.rank.to_string()),
                ("prefgraph.alpha", layout.alpha.to_string()),
                ("prefgraph.targets", serde_json::json!(targets).to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        let known = header.len();
        header.extend_from_slice(about);
        if let Some((key, _)) = about.iter().find(|(key, _)| header[..known].iter().any(|(k, _)| k == key)) {
            return Err(Error::Setting(format!("`{key}` in the header is the file's own")));
        }
        let pairs: Vec<(&str, &str)> = header.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        write_safetensors(path, &tensors, &pairs)?;
        written.compare_with(path)
    }

    /// Does the file hold exactly this adapter?
    fn compare_with(&self, path: &Path) -> Result<()> {
        let linears: Vec<LinearLayout> = self
            .layout
            .modules
            .iter()
            .map(|m| LinearLayout { name: m.name.clone(), inputs: m.inputs, outputs: m.outputs })
            .collect();
        let back = Self::read(path, &linears)?;
        let same = self.values.iter().map(|v| v.to_bits()).eq(back.values.iter().map(|v| v.to_bits()));
        if back.layout != self.layout || !same {
            return Err(Error::file(path, "does not read back as the adapter that was written"));
        }
        Ok(())
    }

    /// The same branches with alpha equal to the rank: the scale is multiplied into B.
    ///
    /// # Errors
    /// If a product is not exact.
    fn unscaled(&self) -> Result<Self> {
        let layout = &self.layout;
        let scale = layout.alpha / layout.rank as f32;
        if scale == 1.0 {
            return Ok(self.clone());
        }
        let mut values = self.values.to_vec();
        for (_, b) in layout.ranges() {
            for value in &mut values[b] {
                let exact = f64::from(*value) * f64::from(layout.alpha) / layout.rank as f64;
                *value = exact as f32;
                if f64::from(*value) != exact {
                    return Err(Error::Setting(format!(
                        "UNO's names have no alpha, and B times alpha / rank, {} / {}, is not exact in f32; write it in \
                         diffusers' or kohya's names, or train with alpha equal to the rank",
                        layout.alpha, layout.rank
                    )));
                }
            }
        }
        let layout = AdapterLayout { alpha: layout.rank as f32, ..(**layout).clone() };
        Ok(Self { layout: Arc::new(layout), values: Arc::new(values) })
    }
}

impl AdapterLayout {
    /// Can a file of this format hold every adapter of this layout once it is trained?
    ///
    /// # Errors
    /// If the format has no names for a module; for UNO's names also if q, k and v are adapted, whose A matrices
    /// training moves apart, or if the scale is no power of two.
    pub fn writable(&self, format: AdapterFormat) -> Result<()> {
        match format {
            AdapterFormat::Diffusers => Ok(()),
            AdapterFormat::Kohya => kohya::grouped(self).map(drop),
            AdapterFormat::Uno => {
                uno::fits(self)?;
                if let Some((place, _)) = kohya::grouped(self)?.into_iter().find(|(_, parts)| parts.len() > 1)
                {
                    return Err(Error::Setting(format!(
                        "UNO's names cannot hold what is trained here: q, k and v of `{}` share one A there, and training \
                         moves them apart; take diffusers' or kohya's names, or targets without q, k and v",
                        place.original()
                    )));
                }
                // Only a power of two multiplies every B exactly.
                let scale = self.scale();
                if scale.to_bits() & 0x007f_ffff != 0 || scale * self.rank as f32 != self.alpha {
                    return Err(Error::Setting(format!(
                        "UNO's names have no alpha, and alpha / rank, {} / {}, is no power of two that could go into B; set \
                         alpha to the rank, or take diffusers' or kohya's names",
                        self.alpha, self.rank
                    )));
                }
                Ok(())
            }
        }
    }
}
