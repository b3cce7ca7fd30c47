//! The network whose adapter a checkpoint holds, as the checkpoint's graph states it.

use std::{path::Path, sync::Arc};

use prefgraph_nn::{
    linears::IpAdapterPlaces,
    models::{flux, unet},
    naming::Names,
};
use prefgraph_ops::{
    DataPath, Operator,
    operators::backbone::{Backbone, BackboneKind, BackboneSettings},
};

use crate::{
    graph::Graph,
    sources::{Sources, Survey},
    spec::{self, Stated},
};

/// A `backbone` node of the graph.
pub(super) struct Network<'a> {
    id: &'a str,
    settings: BackboneSettings,
}

impl<'a> Network<'a> {
    /// That which the `lora` node `cell` reads.
    pub fn of(stated: &'a Stated, cell: &str) -> Result<Self, String> {
        let id = stated.nodes.get(cell).and_then(|node| node.reads.get("backbone"));
        let found =
            id.and_then(|id| Some((id, stated.nodes.get(id).filter(|node| node.op == Backbone::NAME)?)));
        let (id, node) = found.ok_or_else(|| {
            format!("`{cell}` of its graph reads no `backbone` node, which says what the adapter's linears are called")
        })?;
        let all: Vec<String> = node.settings.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let settings = spec::text::read(&format!("({})", all.join(", ")))
            .map_err(|e| format!("the settings of `{id}` of its graph: {e}"))?;
        Ok(Self { id, settings })
    }

    /// What files call its linears.
    pub fn names(&self) -> &'static Names {
        match self.settings.kind {
            BackboneKind::FluxUno => &flux::NAMES,
            BackboneKind::Sdxl => &unet::NAMES,
        }
    }

    /// Where the linears of its IP-Adapter stand in that one's file. The file must be the one that was trained, by what the run recorded of
    /// it: a change that is added to other weights is none that anybody trained. `moved` are other places of the IP-Adapter and of the
    /// network than the graph's.
    pub fn ip_adapter(
        &self,
        recorded: Option<&Sources>,
        moved: (Option<&Path>, Option<&Path>),
    ) -> Result<Arc<IpAdapterPlaces>, String> {
        let (id, mut settings) = (self.id, self.settings.clone());
        if settings.ip_adapter.is_empty() {
            return Err(format!(
                "`{id}` of its graph has no IP-Adapter, whose file could be copied with what was trained of it"
            ));
        }
        for (path, moved) in [(&mut settings.ip_adapter, moved.0), (&mut settings.weights, moved.1)] {
            if let Some(moved) = moved {
                *path = DataPath(moved.to_owned());
            }
        }
        let fault = |e: &dyn std::fmt::Display| {
            format!(
                "the IP-Adapter that was trained is copied, and which of its tensors is which the network says, but they cannot \
                 be opened: {e}; --ip-adapter and --weights say where they lie now"
            )
        };
        let backbone = Backbone::new(settings).map_err(|e| fault(&e))?;
        let (shape,) = Operator::shapes(&backbone, (), 0).map_err(|e| fault(&e))?;
        let places = shape.layout().linears.ip_adapter.clone();
        let mut graph = Graph::new("network");
        graph.add(id, backbone, ());
        let setting = format!("{id}.ip_adapter");
        let survey = Survey::of(&graph).map_err(|e| fault(&e))?;
        let (now, then) = (survey.sources().0.get(&setting), recorded.and_then(|r| r.0.get(&setting)));
        if then.is_some_and(|then| now != Some(then)) {
            return Err(format!(
                "the file that `{setting}` leads to is another than the run has trained: its changes belong to the weights of \
                 that file alone; --ip-adapter says where it lies now"
            ));
        }
        places.ok_or_else(|| "internal error, please report it: an IP-Adapter without places".into())
    }
}
