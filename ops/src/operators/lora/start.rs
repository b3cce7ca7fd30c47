//! An adapter file as the start of a run.

use std::{path::Path, sync::Arc};

use prefgraph_nn::{
    Adapter, AdapterLayout, LinearLayout,
    lora::{AdapterFile, LARGEST_FACTOR},
    models::{flux, unet},
};

use crate::error::OpError;

/// An open file, in the names of any known tool.
pub(super) struct Start(AdapterFile);

impl Start {
    pub(super) fn open(path: &Path, under: &str) -> Result<Self, OpError> {
        // Names without dots are understood by the table of their network, and which that is the file alone does not say. Where neither
        // can take it, the one that fails for another reason than names of the other one says more.
        let no_flux = format!("not of {}", flux::NAMES.network);
        let file = AdapterFile::open(path, under, &flux::NAMES).or_else(|of_flux| {
            AdapterFile::open(path, under, &unet::NAMES)
                .map_err(|of_unet| if of_flux.to_string().contains(&no_flux) { of_unet } else { of_flux })
        });
        file.map(Self).map_err(|e| OpError::new(format!("{e} (see `from` and `from_prefix`)")))
    }

    /// What a run with this layout starts from.
    pub(super) fn notes(&self, wanted: &AdapterLayout) -> Vec<String> {
        let file = self.0.path();
        let file = file.display();
        let mut notes = vec![format!("starts from {file} ({})", self.0.names())];
        let scale = wanted.alpha / wanted.rank as f32;
        // Elsewhere such factors count as they are. Only who trained them can know better.
        if scale != 1.0 && matches!(self.0.alpha(), Ok(None)) {
            notes.push(format!(
                "warning: {file} states no alpha. With alpha {} its factors count {scale} times what they count as part of a frozen network: leave \
                 `alpha` out unless they were trained with it",
                wanted.alpha
            ));
        }
        notes
    }

    /// Are there factors for exactly these linears, of this rank and scale?
    pub(super) fn check(&self, wanted: &AdapterLayout, linears: &[LinearLayout]) -> Result<(), OpError> {
        let found = self.0.layout(Some(linears))?;
        let complain = |what: String| Err(OpError::new(format!("{} {what}", self.0.path().display())));
        if found.rank != wanted.rank {
            return complain(format!(
                "has factors of rank {}, the graph wants {}: set `rank`",
                found.rank, wanted.rank
            ));
        }
        let has = |layout: &AdapterLayout, name: &str| layout.modules.iter().any(|m| m.name == name);
        if let Some(missing) = wanted.modules.iter().find(|m| !has(&found, &m.name)) {
            return complain(format!(
                "has no factors for `{}`, which `targets` matches; it has {}",
                missing.name,
                kinds(&self.0)
            ));
        }
        if let Some(surplus) = found.modules.iter().find(|m| !has(wanted, &m.name)) {
            return complain(format!(
                "has factors for `{}`, a linear that `targets` does not match; it has {}",
                surplus.name,
                kinds(&self.0)
            ));
        }
        match self.0.alpha()? {
            Some(alpha) if alpha != wanted.alpha => complain(format!(
                "has factors for alpha {alpha}, the graph says {}: set `alpha` to {alpha}",
                wanted.alpha
            )),
            _ => Ok(()),
        }
    }

    /// The factors, in the graph's layout.
    pub(super) fn read(
        &self,
        layout: &Arc<AdapterLayout>,
        linears: &[LinearLayout],
    ) -> Result<Adapter, OpError> {
        self.check(layout, linears)?;
        let adapter = self.0.adapter(Some(linears))?;
        let host = adapter.values.host()?;
        if let Some(at) = host.iter().position(|v| v.is_nan() || v.abs() > LARGEST_FACTOR) {
            return Err(OpError::new(format!(
                "{} holds {:e} among the factors of `{}`: beyond {LARGEST_FACTOR:e} nothing can be trained; the file is damaged, or its training \
                 had diverged",
                self.0.path().display(),
                host[at],
                adapter.layout.module_at(at)
            )));
        }
        // Both are in the order of the model; behind the factors stands what is trained whole, which is zero.
        let mut values = host.to_vec();
        values.resize(layout.len(), 0.0);
        Ok(Adapter { layout: Arc::clone(layout), values: values.into() })
    }
}

/// What a file has factors for.
fn kinds(file: &AdapterFile) -> String {
    let kinds = file.kinds().into_iter().map(|(kind, count)| format!("{kind} ({count})"));
    kinds.collect::<Vec<_>>().join(", ")
}
