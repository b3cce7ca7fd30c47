//! What an adapter is in memory.

use std::{ops::Range, sync::Arc};

use crate::{device::DeviceVec, error::Result, linears::LinearLayout, naming::Names, size};

/// Which linears an adapter has factors for, and at what rank.
#[derive(Clone, Debug)]
pub struct AdapterLayout {
    /// What files call the linears of the network.
    pub names: &'static Names,
    /// In the order of the model.
    pub modules: Vec<LinearLayout>,
    /// Inner width of the factors.
    pub rank: usize,
    /// The branch is scaled by `alpha / rank`.
    pub alpha: f32,
}

impl PartialEq for AdapterLayout {
    fn eq(&self, other: &Self) -> bool {
        let key = |l: &Self| (l.names.network, l.rank, l.alpha);
        key(self) == key(other) && self.modules == other.modules
    }
}

impl AdapterLayout {
    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Number of values in all factors; `usize::MAX` where there are more than that.
    pub fn len(&self) -> usize {
        size::sum(self.modules.iter().map(|m| self.rank.saturating_mul(m.inputs + m.outputs)))
    }

    /// Has it no modules?
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Where A and B of each module stand in the flat run of values.
    pub fn ranges(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let mut at = 0;
        self.modules
            .iter()
            .map(|m| {
                let a = at..at + self.rank * m.inputs;
                let b = a.end..a.end + m.outputs * self.rank;
                at = b.end;
                (a, b)
            })
            .collect()
    }

    /// The name of the module whose factors hold the value at this place; `?` beyond all of them.
    pub fn module_at(&self, at: usize) -> &str {
        let found = self.ranges().iter().position(|(a, b)| a.contains(&at) || b.contains(&at));
        found.map_or("?", |i| self.modules[i].name.as_str())
    }
}

/// The factors of an adapter. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What the values mean.
    pub layout: Arc<AdapterLayout>,
    /// All factors, in the order of [`AdapterLayout::ranges`].
    pub values: DeviceVec,
}

/// An adapter whose values are in the host's memory.
#[derive(Clone, Debug)]
pub(super) struct HostAdapter {
    pub layout: Arc<AdapterLayout>,
    pub values: Arc<Vec<f32>>,
}

impl Adapter {
    /// The same adapter in the host's memory.
    ///
    /// # Errors
    /// If its device fails.
    pub(super) fn on_host(&self) -> Result<HostAdapter> {
        Ok(HostAdapter { layout: Arc::clone(&self.layout), values: self.values.host()? })
    }
}

/// The derivative of a loss by every factor, laid out as the factors are. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct AdapterGrad {
    /// What the values mean.
    pub layout: Arc<AdapterLayout>,
    /// In the order of [`AdapterLayout::ranges`].
    pub values: DeviceVec,
}
