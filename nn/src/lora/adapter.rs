//! What an adapter is in memory.

use std::{ops::Range, sync::Arc};

use crate::{
    device::DeviceVec,
    error::Result,
    linears::{IpAdapterPlaces, LinearLayout},
    naming::Names,
    size,
};

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
    /// Linears that are trained whole, in the order of the model: each has a matrix `[outputs, inputs]` that is added to its weight.
    pub whole: Vec<LinearLayout>,
    /// Where linears of an IP-Adapter stand in its file, which is copied with what was trained of them.
    pub ip_adapter: Option<Arc<IpAdapterPlaces>>,
}

impl PartialEq for AdapterLayout {
    fn eq(&self, other: &Self) -> bool {
        let key = |l: &Self| (l.names.network, l.rank, l.alpha);
        key(self) == key(other) && self.modules == other.modules && self.whole == other.whole
    }
}

impl AdapterLayout {
    /// Pairs of factors for these linears, and nothing that is trained whole.
    pub fn of_factors(names: &'static Names, modules: Vec<LinearLayout>, rank: usize, alpha: f32) -> Self {
        Self { names, modules, rank, alpha, whole: Vec::new(), ip_adapter: None }
    }

    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Number of values in all factors and all linears that are trained whole; `usize::MAX` where there are more than that.
    pub fn len(&self) -> usize {
        let whole = self.whole.iter().map(|m| m.inputs.saturating_mul(m.outputs));
        size::sum(self.modules.iter().map(|m| self.rank.saturating_mul(m.inputs + m.outputs)).chain(whole))
    }

    /// Is nothing trained?
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty() && self.whole.is_empty()
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

    /// Where the matrix of each linear that is trained whole stands there, behind all factors.
    pub fn whole_ranges(&self) -> Vec<Range<usize>> {
        let mut at = self.ranges().last().map_or(0, |(_, b)| b.end);
        let mut range = |m: &LinearLayout| {
            let start = at;
            at += m.outputs * m.inputs;
            start..at
        };
        self.whole.iter().map(&mut range).collect()
    }

    /// The name of the linear that the value at this place belongs to; `?` beyond all of them.
    pub fn module_at(&self, at: usize) -> &str {
        let found = self.ranges().iter().position(|(a, b)| a.contains(&at) || b.contains(&at));
        let whole = || self.whole_ranges().iter().position(|range| range.contains(&at));
        let name = found.map(|i| &self.modules[i]).or_else(|| whole().map(|i| &self.whole[i]));
        name.map_or("?", |module| module.name.as_str())
    }
}

/// The largest useful factor: the product of two larger ones would leave the range of f32.
pub const LARGEST_FACTOR: f32 = 1e18;

/// The factors of an adapter. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What the values mean.
    pub layout: Arc<AdapterLayout>,
    /// All factors, in the order of [`AdapterLayout::ranges`], and then what is [trained whole](AdapterLayout::whole_ranges).
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
    /// In the order of the adapter's.
    pub values: DeviceVec,
}
