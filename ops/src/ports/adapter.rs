//! The adapter, its cotangent, and the state of its optimiser.

use std::{collections::HashSet, sync::Arc};

use prefgraph_nn::{Adapter, AdapterGrad, AdapterLayout, LinearLayout, device::DeviceVec, naming::Names};

use crate::{
    error::OpError,
    port::{Carried, Carry, Cotangent, NamedState, NamedTensor, NoGrad, Port},
    shape::PortShape,
    words::count,
};

/// Shape of an adapter: which linears it has factors for.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterShape(pub Arc<AdapterLayout>);

impl PortShape for AdapterShape {
    fn describe(&self) -> String {
        match self.0.whole.len() {
            0 => format!("adapter rank {}, {}", self.0.rank, count(self.0.modules.len(), "linear")),
            whole if self.0.modules.is_empty() => format!("adapter, {} whole", count(whole, "linear")),
            whole => {
                let factors = count(self.0.modules.len(), "linear");
                format!("adapter rank {}, {factors}, {whole} whole", self.0.rank)
            }
        }
    }
    fn bytes(&self) -> usize {
        self.0.len().saturating_mul(size_of::<f32>())
    }
}

impl Port for Adapter {
    type Grad = AdapterGrad;
    type Shape = AdapterShape;

    fn label() -> String {
        "adapter".into()
    }
    fn shape(&self) -> AdapterShape {
        AdapterShape(self.layout.clone())
    }
    fn carry() -> Option<Carry> {
        Some(Carry::of::<Self>())
    }
}

impl Cotangent for AdapterGrad {
    fn add(self, other: Self) -> Result<Self, OpError> {
        if self.values.len() != other.values.len() {
            return Err(OpError::internal("cotangents of two adapters"));
        }
        let mut values = self.values;
        values.add(&other.values)?;
        Ok(Self { layout: self.layout, values })
    }
    fn bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
    fn components(&self) -> Result<Vec<f32>, OpError> {
        Ok(self.values.host()?.to_vec())
    }
}

/// What the change of a linear that is trained whole is called.
const WHOLE: &str = ".diff";

/// The factors of every linear as named tensors, and what is trained whole, from a flat run of values.
fn factors(layout: &AdapterLayout, values: &DeviceVec, prefix: &str) -> Result<Vec<NamedTensor>, OpError> {
    let values = values.host()?;
    let mut tensors = Vec::with_capacity(2 * layout.modules.len());
    for (module, (a, b)) in layout.modules.iter().zip(layout.ranges()) {
        let mut push = |suffix: &str, dims: Vec<usize>, range: std::ops::Range<usize>| {
            tensors.push(NamedTensor {
                name: format!("{prefix}{}.{suffix}.weight", module.name),
                dims,
                values: Arc::new(values[range].to_vec()),
            });
        };
        let [of_a, of_b] = module.factor_axes(layout.rank);
        push("lora_A", of_a, a);
        push("lora_B", of_b, b);
    }
    for (module, range) in layout.whole.iter().zip(layout.whole_ranges()) {
        tensors.push(NamedTensor {
            name: format!("{prefix}{}{WHOLE}", module.name),
            dims: vec![module.outputs, module.inputs],
            values: Arc::new(values[range].to_vec()),
        });
    }
    Ok(tensors)
}

/// The flat run of values that [`factors`] split.
///
/// # Errors
/// If a tensor is missing, surplus or of another shape: what was trained of a linear that is no target any more must not be lost unseen.
fn gather(layout: &AdapterLayout, state: &NamedState, prefix: &str) -> Result<Vec<f32>, OpError> {
    let owner = |name: &str| {
        let rest = name.strip_prefix(prefix)?;
        let ends = [".lora_A.weight", ".lora_B.weight", WHOLE];
        ends.into_iter().find_map(|end| rest.strip_suffix(end)).map(str::to_owned)
    };
    let known: HashSet<&str> = layout.modules.iter().chain(&layout.whole).map(|m| m.name.as_str()).collect();
    let mut names = state.tensors.iter().filter_map(|tensor| owner(&tensor.name));
    if let Some(surplus) = names.find(|name| !known.contains(name.as_str())) {
        return Err(OpError::new(format!(
            "the state has factors of `{surplus}`, which the graph's adapter has not"
        )));
    }
    let mut values = Vec::with_capacity(layout.len());
    for module in &layout.modules {
        for (suffix, dims) in ["lora_A", "lora_B"].into_iter().zip(module.factor_axes(layout.rank)) {
            let found = state.tensor(&format!("{prefix}{}.{suffix}.weight", module.name))?;
            if found.dims != dims {
                return Err(OpError::new(format!(
                    "`{}` has axes {:?}, the graph wants {dims:?}",
                    found.name, found.dims
                )));
            }
            values.extend_from_slice(&found.values);
        }
    }
    for module in &layout.whole {
        let (found, dims) =
            (state.tensor(&format!("{prefix}{}{WHOLE}", module.name))?, [module.outputs, module.inputs]);
        if found.dims != dims {
            return Err(OpError::new(format!(
                "`{}` has axes {:?}, the graph wants {dims:?}",
                found.name, found.dims
            )));
        }
        values.extend_from_slice(&found.values);
    }
    Ok(values)
}

/// The layout of an adapter that was [saved](Carried::save), of a network with these names, with the alpha that it is scaled
/// by; nothing if the state is
/// that of something else.
pub fn saved_layout(state: &NamedState, names: &'static Names, alpha: f32) -> Option<AdapterLayout> {
    let factors = state.tensors.iter().take_while(|t| !t.name.ends_with(WHOLE)).count();
    let (factors, whole) = state.tensors.split_at(factors);
    let (pairs, odd) = factors.as_chunks::<2>();
    if state.tensors.is_empty() || !odd.is_empty() || !state.counters.is_empty() {
        return None;
    }
    let whole = whole.iter().map(|t| {
        let ([outputs, inputs], name) = (&t.dims[..], t.name.strip_suffix(WHOLE)?) else { return None };
        Some(LinearLayout { name: name.into(), inputs: *inputs, outputs: *outputs, window: None })
    });
    let whole = whole.collect::<Option<Vec<_>>>()?;
    let module = |[a, b]: &[NamedTensor; 2]| {
        let name = a.name.strip_suffix(".lora_A.weight")?;
        let (inputs, window) = match a.dims[..] {
            [_, inputs] => (inputs, None),
            [_, channels, side, other] if side == other => (channels * side * side, Some(side)),
            _ => return None,
        };
        let ([rank, ..], [outputs, ..]) = (&a.dims[..], &b.dims[..]) else { return None };
        let linear = LinearLayout { name: name.into(), inputs, outputs: *outputs, window };
        let fits = b.name.strip_suffix(".lora_B.weight") == Some(name)
            && [&a.dims, &b.dims].into_iter().eq(linear.factor_axes(*rank).iter());
        fits.then_some((*rank, linear))
    };
    let (ranks, modules): (Vec<usize>, Vec<LinearLayout>) =
        pairs.iter().map(module).collect::<Option<Vec<_>>>()?.into_iter().unzip();
    let rank = ranks.first().copied().unwrap_or(1);
    let layout = AdapterLayout { whole, ..AdapterLayout::of_factors(names, modules, rank, alpha) };
    ranks.iter().all(|r| *r == rank).then_some(layout)
}

impl Carried for Adapter {
    fn save(&self) -> Result<NamedState, OpError> {
        Ok(NamedState { tensors: factors(&self.layout, &self.values, "")?, counters: Vec::new() })
    }
    fn restore(shape: &AdapterShape, state: &NamedState) -> Result<Self, OpError> {
        let values = gather(&shape.0, state, "")?.into();
        Ok(Self { layout: shape.0.clone(), values })
    }
}

/// What AdamW and gradient accumulation remember between steps.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Of the adapter.
    pub layout: Arc<AdapterLayout>,
    /// First moments, laid out as the adapter's values.
    pub m: DeviceVec,
    /// Second moments.
    pub v: DeviceVec,
    /// Gradients summed since the last update; empty when nothing is pending.
    pub pending: DeviceVec,
    /// Micro-batches in `pending`.
    pub micro_batches: u64,
    /// Updates made.
    pub updates: u64,
    /// Sum of the learning rates of all updates: AdamW moves a weight about so far at most, weight decay aside. Where its gradient grows, it
    /// can be half as much again.
    pub travel: f64,
}

/// Shape of [`Moments`]: that of the adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct MomentsShape(pub Arc<AdapterLayout>);

impl PortShape for MomentsShape {
    fn describe(&self) -> String {
        "moments".into()
    }
    /// Without gradients that wait for more: whoever lets them wait declares them.
    fn bytes(&self) -> usize {
        self.0.len().saturating_mul(2 * size_of::<f32>())
    }
}

impl Port for Moments {
    type Grad = NoGrad;
    type Shape = MomentsShape;

    fn label() -> String {
        "moments".into()
    }
    fn shape(&self) -> MomentsShape {
        MomentsShape(self.layout.clone())
    }
    fn carry() -> Option<Carry> {
        Some(Carry::of::<Self>())
    }
}

impl Carried for Moments {
    fn save(&self) -> Result<NamedState, OpError> {
        let mut tensors = factors(&self.layout, &self.m, "m.")?;
        tensors.extend(factors(&self.layout, &self.v, "v.")?);
        if !self.pending.is_empty() {
            tensors.extend(factors(&self.layout, &self.pending, "pending.")?);
        }
        let counters = vec![
            ("micro_batches".into(), self.micro_batches),
            ("updates".into(), self.updates),
            ("travel_bits".into(), self.travel.to_bits()),
        ];
        Ok(NamedState { tensors, counters })
    }
    fn restore(shape: &MomentsShape, state: &NamedState) -> Result<Self, OpError> {
        let micro_batches = state.counter("micro_batches")?;
        let pending = if micro_batches > 0 { gather(&shape.0, state, "pending.")? } else { Vec::new() };
        Ok(Self {
            layout: shape.0.clone(),
            m: gather(&shape.0, state, "m.")?.into(),
            v: gather(&shape.0, state, "v.")?.into(),
            pending: pending.into(),
            micro_batches,
            updates: state.counter("updates")?,
            travel: f64::from_bits(state.counter("travel_bits")?),
        })
    }
}
