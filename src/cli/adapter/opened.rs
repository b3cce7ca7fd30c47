//! Adapter files of every network that is known: a file does not say which it is for, and the names of its linears do.

use std::path::Path;

use prefgraph_nn::{
    Backbone, Cpu, LinearLayout,
    lora::AdapterFile,
    models::{
        SdxlUNet,
        flux::{self, FluxFiles},
        unet,
    },
    naming::Names,
};

use crate::cli::Failure;

/// An adapter file, with the table of names that its linears are in; FLUX's where they are in none.
pub(super) struct Opened {
    pub file: AdapterFile,
    names: &'static Names,
}

impl Opened {
    /// Open a file; factors of text encoders are refused, or left out.
    ///
    /// # Errors
    /// As [`AdapterFile::open`].
    pub fn open(path: &Path, drop_text_encoders: bool) -> Result<Self, Failure> {
        let open = |names: &'static Names| {
            let file = match drop_text_encoders {
                true => AdapterFile::open_transformer(path, "", names),
                false => AdapterFile::open(path, "", names),
            };
            file.map(|file| Self { file, names })
        };
        let of_flux = open(&flux::NAMES);
        if of_flux.as_ref().is_ok_and(Self::is_of_its_network) {
            return of_flux.map_err(Failure::new);
        }
        match open(&unet::NAMES) {
            Ok(of_unet) if of_unet.is_of_its_network() => Ok(of_unet),
            _ => of_flux.map_err(Failure::new),
        }
    }

    fn is_of_its_network(&self) -> bool {
        let known = |name: &str| {
            self.names.of_diffusers(name).is_some() || self.names.outside_of_diffusers(name).is_some()
        };
        self.file.modules().iter().any(|module| known(&module.linear.name))
    }

    /// The linears of the network that it is for, which is read from `weights`.
    ///
    /// # Errors
    /// If it is no such network.
    pub fn linears(&self, weights: &Path) -> Result<Vec<LinearLayout>, Failure> {
        if std::ptr::eq(self.names, &flux::NAMES) {
            return Ok(FluxFiles::open(weights).map_err(Failure::new)?.0.layout().linears.all);
        }
        let cpu = Cpu::new(1).map_err(Failure::new)?;
        Ok(SdxlUNet::open(cpu, weights).map_err(Failure::new)?.layout().linears.all.clone())
    }
}
