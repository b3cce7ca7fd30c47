//! The modules of an adapter by the linears of the original layout.

use std::collections::BTreeMap;

use crate::{
    error::{Error, Result},
    lora::adapter::AdapterLayout,
    naming::{Outside, Place},
};

/// The modules of a layout, by number, under the linears of the original layout that they are or are parts of.
pub(super) struct Groups {
    /// For each part of a linear its module, if it has one.
    pub fused: BTreeMap<Place, Vec<Option<usize>>>,
    /// Those outside the blocks.
    pub outside: Vec<(&'static Outside, usize)>,
}

/// Find the linear of each module.
///
/// # Errors
/// If a module is no linear of the network.
pub(super) fn grouped(layout: &AdapterLayout) -> Result<Groups> {
    let mut groups = Groups { fused: BTreeMap::new(), outside: Vec::new() };
    for (number, module) in layout.modules.iter().enumerate() {
        if let Some((place, part)) = layout.names.of_diffusers(&module.name) {
            let parts = groups.fused.entry(place).or_insert_with(|| vec![None; place.diffusers().len()]);
            parts[part] = Some(number);
        } else if let Some(outside) = layout.names.outside_of_diffusers(&module.name) {
            groups.outside.push((outside, number));
        } else {
            return Err(Error::Setting(format!(
                "`{}` is no linear of {}, which kohya's and UNO's names are made for: write the adapter in diffusers' names",
                module.name, layout.names.network
            )));
        }
    }
    Ok(groups)
}
