//! Writes adapters to files, and reads them back to compare.
//!
//! ```text
//! diffusers, kohya, uno  tensors and header of each format     groups    modules by linears of the original layout
//! ip_adapter             a copy of an IP-Adapter's file
//! contents               what a format gives                   strength  alpha / rank inside the factors
//! ```

mod contents;
mod diffusers;
mod groups;
mod ip_adapter;
mod kohya;
mod strength;
mod uno;

use std::{path::Path, sync::Arc};

use super::{
    adapter::{Adapter, AdapterLayout, HostAdapter},
    factors::is_power_of_two,
    format::AdapterFormat,
    header,
    pattern::{count_kinds, kind},
    read::AdapterFile,
};
use crate::{
    error::{Error, Result},
    files::write_safetensors_checked,
    linears::{LinearLayout, Linears},
};
use contents::Contents;
use groups::grouped;
use strength::{Folded, folded};

/// What writing an adapter did to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written {
    /// The largest relative rounding of a factor. It is 0 unless alpha / rank, which is no power of two, went into B.
    pub rounding: f64,
}

impl Adapter {
    /// Read an adapter in the names of any known tool for a model with these linears.
    ///
    /// # Errors
    /// As [`AdapterFile::open`] and [`AdapterFile::adapter`].
    pub fn read(path: &Path, linears: &Linears) -> Result<Self> {
        AdapterFile::open(path, "", linears.names)?.adapter(Some(linears))
    }

    /// Write the adapter, read the file back, and compare every value.
    ///
    /// Rank, alpha and targets are in the header, and `about`: what else is known of the adapter, by name, e.g. the
    /// graph that trained it. diffusers' and UNO's names have no alpha that every program reads: there alpha / rank is
    /// multiplied into B. Of a power of two that is exact, and reading divides it out again; for diffusers' names other
    /// scales are rounded, for UNO's they are refused.
    ///
    /// # Errors
    /// If the format cannot hold the adapter; if the file cannot be written, or does not read back as what was written.
    pub fn write(&self, path: &Path, format: AdapterFormat, about: &[(String, String)]) -> Result<Written> {
        let refused = |e: Error| match e {
            Error::Setting(message) => Error::file(path, format!("cannot be written: {message}")),
            other => other,
        };
        let mut own = self.on_host()?;
        if format == AdapterFormat::IpAdapter {
            ip_adapter::write(&own, path, about).map_err(refused)?;
            return Ok(Written { rounding: 0.0 });
        }
        if !own.layout.whole.is_empty() {
            own = own.of_factors(self.layout.beside_whole(format).map_err(refused)?);
        }
        let mut plain = Folded { adapter: own.clone(), rounding: 0.0 };
        if format != AdapterFormat::Kohya {
            plain = folded(&own).map_err(refused)?;
        }
        let Folded { adapter: written, rounding } = &plain;
        let Contents { tensors, mut header } = match format {
            AdapterFormat::Diffusers => diffusers::tensors(written),
            AdapterFormat::Kohya => kohya::tensors(written).map_err(refused)?,
            AdapterFormat::Uno if *rounding > 0.0 => {
                return Err(refused(Error::Setting(format!(
                    "UNO's names have no alpha, and B times alpha / rank, {} / {}, is not exact in f32; write it in \
                     diffusers' or kohya's names, or train with alpha equal to the rank",
                    self.layout.alpha, self.layout.rank
                ))));
            }
            AdapterFormat::Uno => uno::tensors(written).map_err(refused)?,
            AdapterFormat::IpAdapter => return Err(Error::Internal("no format of factors".into())),
        };
        let layout = &written.layout;
        let targets = count_kinds(layout.modules.iter().map(|m| kind(&m.name)));
        let targets: Vec<&str> = targets.iter().map(|(kind, _)| kind.as_str()).collect();
        header.extend(
            [
                ("format", "pt".to_owned()),
                (header::RANK, layout.rank.to_string()),
                (header::ALPHA, layout.alpha.to_string()),
                (header::TARGETS, serde_json::json!(targets).to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        // Reading gives back the adapter as it is here where the scale can be divided out again, else as it is written.
        let scaled = layout.alpha != own.layout.alpha;
        let restored = scaled && *rounding == 0.0 && power_of_two(&own.layout);
        if restored {
            header.push((header::TRAINED_ALPHA.to_owned(), own.layout.alpha.to_string()));
        }
        let known = header.len();
        header.extend_from_slice(about);
        if let Some((key, _)) = about.iter().find(|(key, _)| header[..known].iter().any(|(k, _)| k == key)) {
            return Err(Error::Setting(format!("`{key}` in the header is the file's own")));
        }
        let pairs: Vec<(&str, &str)> = header.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let expected = if restored { &own } else { written };
        write_safetensors_checked(path, &tensors, &pairs, |found| expected.compare_with(found))?;
        Ok(Written { rounding: *rounding })
    }
}

impl HostAdapter {
    /// The factors of these modules alone.
    fn of_factors(&self, layout: AdapterLayout) -> Self {
        let kept = self.layout.modules.iter().zip(self.layout.ranges());
        let kept = kept.filter(|(module, _)| layout.modules.contains(module));
        let values = kept.flat_map(|(_, (a, b))| &self.values[a.start..b.end]).copied().collect();
        Self { layout: Arc::new(layout), values: Arc::new(values) }
    }

    /// Does the file hold exactly this adapter?
    fn compare_with(&self, path: &Path) -> Result<()> {
        let linears = Linears::new(self.layout.names, self.layout.modules.clone());
        let back = Adapter::read(path, &linears)?.on_host()?;
        let same = self.values.iter().map(|v| v.to_bits()).eq(back.values.iter().map(|v| v.to_bits()));
        if back.layout != self.layout || !same {
            return Err(Error::file(path, "does not read back as the adapter that was written"));
        }
        Ok(())
    }
}

/// Is alpha / rank a power of two?
fn power_of_two(layout: &AdapterLayout) -> bool {
    let scale = layout.scale();
    is_power_of_two(scale) && scale * layout.rank as f32 == layout.alpha
}

impl AdapterLayout {
    /// Can a file of this format hold every adapter of this layout once it is trained?
    ///
    /// # Errors
    /// If the format has no names for a module; for UNO's names also if q, k and v are adapted, whose A matrices
    /// training moves apart, or if the scale is no power of two.
    pub fn writable(&self, format: AdapterFormat) -> Result<()> {
        if !self.whole.is_empty() && format != AdapterFormat::IpAdapter {
            return self.beside_whole(format)?.writable(format);
        }
        match format {
            AdapterFormat::IpAdapter => ip_adapter::fits(self),
            AdapterFormat::Diffusers => Ok(()),
            AdapterFormat::Kohya => grouped(self).map(drop),
            AdapterFormat::Uno => {
                uno::fits(self)?;
                if let Some((place, _)) = grouped(self)?.fused.into_iter().find(|(_, parts)| parts.len() > 1)
                {
                    return Err(Error::Setting(format!(
                        "UNO's names cannot hold what is trained here: q, k and v of `{}` share one A there, and training \
                         moves them apart; take diffusers' or kohya's names, or targets without q, k and v",
                        place.original()
                    )));
                }
                // Only a power of two multiplies every B exactly.
                if power_of_two(self) {
                    return Ok(());
                }
                Err(Error::Setting(format!(
                    "UNO's names have no alpha, and alpha / rank, {} / {}, is no power of two that could go into B; set \
                     alpha to the rank, or take diffusers' or kohya's names",
                    self.alpha, self.rank
                )))
            }
        }
    }

    /// The formats that a run writes in any case: diffusers' names for pairs of factors; where linears are trained whole, their IP-Adapter's
    /// file, and diffusers' names for factors that it does not hold.
    pub fn formats(&self) -> Vec<AdapterFormat> {
        if self.whole.is_empty() {
            return vec![AdapterFormat::Diffusers];
        }
        let beside = self.beside_whole(AdapterFormat::Diffusers).is_ok();
        std::iter::once(AdapterFormat::IpAdapter).chain(beside.then_some(AdapterFormat::Diffusers)).collect()
    }

    /// The factors that the IP-Adapter's file does not hold, where linears are trained whole: a file of this format has those.
    fn beside_whole(&self, format: AdapterFormat) -> Result<Self> {
        let held =
            |m: &LinearLayout| self.ip_adapter.as_ref().is_some_and(|f| f.places.contains_key(&m.name));
        let modules: Vec<LinearLayout> = self.modules.iter().filter(|m| !held(m)).cloned().collect();
        match self.whole.first() {
            Some(whole) if modules.is_empty() => Err(Error::Setting(format!(
                "`{}` is trained whole, and {} names hold pairs of factors: what is trained whole goes into a copy of its \
                 IP-Adapter's file, `ip_adapter` among the formats of an export",
                whole.name,
                format.name()
            ))),
            _ => Ok(Self::of_factors(self.names, modules, self.rank, self.alpha)),
        }
    }

    /// Is what a file of this format holds rounded, because alpha / rank is multiplied into B and is no power of two?
    pub fn is_rounded_in(&self, format: AdapterFormat) -> bool {
        format == AdapterFormat::Diffusers && !power_of_two(self)
    }
}
