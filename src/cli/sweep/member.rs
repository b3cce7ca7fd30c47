//! A variant in a running sweep: its part of a step, and its folder, which is the folder of a run.

use std::collections::{BTreeMap, HashMap};

use prefgraph_ops::NamedState;

use super::variants::Variant;
use crate::{
    cli::{
        health::Health,
        session::Session,
        trained::{AdapterCell, adapter_cells},
    },
    graph::{Endpoint, Graph},
    run::{Runner, StepOutput},
    sources::{Comparison, Sources},
    sweep::Joined,
};

/// Where a variant's values are in the graph of all that run.
#[derive(Clone)]
pub(super) struct Place {
    /// By cell of the variant's graph: its path, where it is, and its path there.
    cells: Vec<(String, Endpoint, String)>,
    /// The ids of the variant's nodes, by those of the nodes that compute them.
    own: HashMap<String, String>,
    /// Which of the losses is the variant's.
    loss: Option<usize>,
    adapters: Vec<AdapterCell>,
}

impl Place {
    /// Of the variant number `at` of those that run in `all`.
    pub fn new(variant: &Variant, joined: &Joined, at: usize, all: &Graph) -> Self {
        let graph = variant.graph();
        let moved = |from: Endpoint| joined.endpoint(at, from);
        let cells = graph.carries().iter().map(|c| c.cell);
        let cells = cells.map(|cell| (graph.path(cell), moved(cell), all.path(moved(cell)))).collect();
        let own =
            graph.nodes().map(|(id, node)| (all[joined.node(at, id)].id.clone(), node.id.clone())).collect();
        let loss = graph.loss().and_then(|loss| all.losses().iter().position(|l| *l == moved(loss)));
        let adapters = adapter_cells(graph);
        let adapters =
            adapters.into_iter().map(|a| AdapterCell { value: moved(a.value), next: moved(a.next), ..a });
        Self { cells, own, loss, adapters: adapters.collect() }
    }

    /// The cells that hold adapters: named as in the variant's graph, with their values in the graph of all.
    pub fn adapters(&self) -> &[AdapterCell] {
        &self.adapters
    }

    /// The variant's part of a step, as its own run would have given it.
    pub fn part(&self, output: &StepOutput) -> StepOutput {
        let effects = output.effects.iter();
        let effects =
            effects.filter_map(|(node, effect)| Some((self.own.get(node)?.clone(), effect.clone())));
        let loss = self.loss.and_then(|at| output.losses.get(at).copied());
        StepOutput {
            step: output.step,
            loss,
            losses: loss.into_iter().collect(),
            effects: effects.collect(),
            times: Vec::new(),
            seconds: output.seconds,
            data_seconds: output.data_seconds,
            kept: output.kept.clone(),
        }
    }

    /// The variant's cells, by the names that its own run gives them.
    pub fn cells(&self, runner: &Runner) -> Result<BTreeMap<String, NamedState>, crate::RunError> {
        let mut all = runner.cells_of(|at| self.cells.iter().any(|(_, cell, _)| *cell == at))?;
        Ok(self.cells.iter().filter_map(|(own, _, there)| Some((own.clone(), all.remove(there)?))).collect())
    }

    /// Add the variant's cells to those of all.
    pub fn add_cells(&self, own: &BTreeMap<String, NamedState>, all: &mut BTreeMap<String, NamedState>) {
        for (name, _, there) in &self.cells {
            if let Some(state) = own.get(name).filter(|_| !all.contains_key(there)) {
                all.insert(there.clone(), state.clone());
            }
        }
    }

    /// A key `node.setting` of the graph of all, as the variant's own graph has it.
    fn own_key(&self, key: &str) -> Option<String> {
        let (node, setting) = key.split_once('.')?;
        Some(format!("{}.{setting}", self.own.get(node)?))
    }

    /// The data and weights of the variant, of those of all.
    pub fn sources(&self, all: &Sources) -> Sources {
        let own = all.0.iter().filter_map(|(key, source)| Some((self.own_key(key)?, source.clone())));
        Sources(own.collect())
    }

    /// The data and weights of the variant, added to those of all.
    pub fn add_sources(&self, own: &Sources, all: &mut Sources) {
        for (there, node) in &self.own {
            let of_node = own.0.iter().filter_map(|(key, source)| {
                let (owner, setting) = key.split_once('.')?;
                (owner == node).then(|| (format!("{there}.{setting}"), source.clone()))
            });
            for (key, source) in of_node {
                all.0.entry(key).or_insert(source);
            }
        }
    }

    /// What a comparison of the data and weights of all says of the variant's.
    pub fn comparison(&self, all: &Comparison) -> Comparison {
        let same = all.same.iter().filter_map(|key| self.own_key(key)).collect();
        Comparison { same, changes: all.changes.iter().filter_map(|change| self.own_key(change)).collect() }
    }

    /// Is this node of the graph of all one of the variant's?
    pub fn has(&self, node: &str) -> bool {
        self.own.contains_key(node)
    }
}

/// A variant that is still trained.
pub(super) struct Member {
    /// Its place among the variants of the sweep.
    pub variant: usize,
    pub place: Place,
    /// Its place when the data and weights of all were looked at.
    pub read_at: Place,
    pub session: Session,
    pub health: Health,
}
