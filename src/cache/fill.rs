//! The pass over all samples before a run that computes every missing entry once.

use std::collections::{BTreeMap, HashMap};

use prefgraph_nn as nn;
use prefgraph_ops::{Ctx, OpError, Value, guard, tensor};

use super::{
    Cache, CacheError, Hash, Member, cached::Cached, index::Known, lineage::read_wires, stamp::Stamps,
    status::Sight,
};
use crate::{
    fingerprint::FileStamp,
    graph::{Endpoint, Graph, NodeId},
    plan::{Place, Plan},
};

/// How far a filling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    /// Samples that are done.
    pub done: usize,
    /// Samples of which something was missing or not known.
    pub samples: usize,
}

/// What a filling has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Is everything there, and are the operators dropped? Not so if somebody interrupted.
    pub complete: bool,
    /// Samples that were read.
    pub read: usize,
    /// Batches that an operator ran for.
    pub computed: usize,
    /// One sentence for every entry that was there, but not whole; they were made again.
    pub damaged: Vec<String>,
    /// Samples that cannot be used and that the settings say to leave out.
    pub left_out: usize,
}

impl Cache {
    /// Make everything that is missing, and drop the operators of the cached nodes.
    ///
    /// Before every batch `go_on` is told how far it is; if it says no, the filling ends there, and another one will go on
    /// with the samples that are left.
    ///
    /// # Errors
    /// If a sample cannot be read, an operator fails, or the cache cannot be written.
    pub fn fill(
        &mut self,
        graph: &Graph,
        plan: &Plan,
        (cpu, gpu): (&nn::Cpu, Option<&nn::cuda::Cuda>),
        go_on: &mut dyn FnMut(Filling) -> bool,
    ) -> Result<Filled, CacheError> {
        let mut filled = Filled::default();
        let work = self.work();
        let mut progress = Filling { done: 0, samples: work.iter().map(|w| w.samples.len()).sum() };
        if progress.samples > 0 {
            if let Err(e) = self.store.open() {
                // What could not be used is tried again where that can be kept, and is no reason to ask for a place to write.
                if work.iter().any(|w| w.samples.iter().any(|sample| !self.is_left_out(w, *sample))) {
                    return Err(e);
                }
                self.release();
                filled.complete = true;
                return Ok(filled);
            }
            self.store.remove_abandoned();
            for member in &self.members {
                self.store.note(&member.recipe)?;
            }
        }
        let host = tensor::host();
        for source in &work {
            let ctx = |node| Ctx { step: 0, seed: 0, node, backward_follows: false, cpu, gpu, host: &host };
            for batch in self.batches(source, plan) {
                if !go_on(progress) {
                    return Ok(filled);
                }
                let learned = self.run(graph, plan, source, &batch, &ctx, &mut filled)?;
                self.index.add(&learned)?;
                progress.done += batch.len();
            }
        }
        if progress.samples > 0 {
            go_on(progress);
        }
        self.release();
        filled.complete = true;
        Ok(filled)
    }

    /// Samples that need to be read, by source.
    fn work(&self) -> Vec<Work> {
        let mut stamps = Stamps::default();
        let mut all = Vec::new();
        for source in &self.sources {
            let hashes = source.hashes(&mut stamps);
            let members: Vec<usize> =
                (0..self.members.len()).filter(|m| self.members[*m].lineage.source == source.node).collect();
            let incomplete = |sample: &usize| {
                members.iter().map(|m| &self.members[*m]).any(|member| {
                    self.sight(member, hashes[*sample]) != Sight::Present
                        || self.known_left_out(member, hashes[*sample])
                })
            };
            let samples = (0..hashes.len()).filter(incomplete).collect();
            all.push(Work { node: source.node, members, hashes, samples });
        }
        all
    }

    fn known_left_out(&self, member: &Member, sample: Hash) -> bool {
        self.index.get(member.lookup(sample)) == Some(Known::LeftOut)
    }

    /// Is a sample known as one that could not be used?
    fn is_left_out(&self, work: &Work, sample: usize) -> bool {
        work.members.iter().all(|m| self.known_left_out(&self.members[*m], work.hashes[sample]))
    }

    /// The samples as batches of one variant each, none larger than those of training.
    fn batches(&self, work: &Work, plan: &Plan) -> Vec<Vec<usize>> {
        let source = self.sources.iter().find(|s| s.node == work.node).expect("work is that of a source");
        let rows = work.members.iter().filter_map(|m| {
            let member = &self.members[*m];
            let shapes = plan.largest().outputs(member.node).iter().enumerate();
            shapes.filter_map(|(output, shape)| member.cached.rows(output, shape)).max()
        });
        let size = rows.max().unwrap_or(1).max(1);
        let mut variants: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for sample in &work.samples {
            variants.entry(source.samples[*sample].variant).or_default().push(*sample);
        }
        variants.values().flat_map(|samples| samples.chunks(size).map(<[usize]>::to_vec)).collect()
    }

    /// Run the nodes that are needed for a batch; what the index is to learn of it.
    fn run<'g>(
        &self,
        graph: &'g Graph,
        plan: &Plan,
        work: &Work,
        batch: &[usize],
        ctx: &dyn Fn(&'g str) -> Ctx<'g>,
        filled: &mut Filled,
    ) -> Result<Vec<(Hash, Known)>, CacheError> {
        let source = &graph[work.node];
        let failed = |node: NodeId, e: &dyn std::fmt::Display| {
            let (id, op) = (&graph[node].id, graph[node].op.name());
            CacheError::new(format!("while the cache was filled: node `{id}` (`{op}`) failed: {e}"))
        };
        let read = caught(|| source.op.read(&ctx(&source.id), batch)).map_err(|e| failed(work.node, &e))?;
        let (read, outputs) = read.unwrap_or_default();
        filled.read += read.len();
        filled.left_out += batch.len() - read.len();
        let mut learned = Vec::new();
        for sample in batch.iter().filter(|s| !read.contains(s)) {
            let left_out = |m: &usize| (self.members[*m].lookup(work.hashes[*sample]), Known::LeftOut);
            learned.extend(work.members.iter().map(left_out));
        }
        if read.is_empty() {
            return Ok(learned);
        }
        let mut values: HashMap<(NodeId, usize), Value> = HashMap::new();
        let put = |values: &mut HashMap<_, _>, node, outputs: Vec<Value>| {
            values.extend(outputs.into_iter().enumerate().map(|(port, value)| ((node, port), value)));
        };
        put(&mut values, work.node, outputs);
        for node in self.needs(work) {
            let member = work.members.iter().map(|m| &self.members[*m]).find(|m| m.node == node);
            let inputs = inputs(graph, plan, node, &values).map_err(|e| failed(node, &e))?;
            let ctx = ctx(&graph[node].id);
            let outputs = match member {
                None => {
                    caught(|| Ok(graph[node].op.forward(&ctx, &inputs)?.0)).map_err(|e| failed(node, &e))?
                }
                Some(member) => {
                    let done = caught(|| member.cached.batch(&ctx, &inputs)).map_err(|e| failed(node, &e))?;
                    filled.computed += usize::from(done.computed);
                    filled.damaged.extend(done.damaged);
                    learned.extend(note(member, work, &read, done.keys)?);
                    done.outputs
                }
            };
            put(&mut values, node, outputs);
        }
        Ok(learned)
    }

    fn needs(&self, work: &Work) -> Vec<NodeId> {
        let mut needs: Vec<NodeId> =
            work.members.iter().flat_map(|m| self.members[*m].lineage.needs.iter().copied()).collect();
        needs.sort_unstable();
        needs.dedup();
        needs
    }

    /// Bytes that filling will hold at most: all encoders at once, and everything of one batch.
    pub fn fill_bytes(&self, graph: &Graph, plan: &Plan) -> usize {
        let mut nodes: Vec<NodeId> = self.sources.iter().map(|s| s.node).collect();
        nodes.extend(self.members.iter().flat_map(|m| m.lineage.needs.iter().copied()));
        nodes.sort_unstable();
        nodes.dedup();
        let (mut held, mut scratch) = (0, 0);
        for node in nodes {
            let outputs = plan.largest().outputs(node);
            let member = self.members.iter().find(|m| m.node == node);
            let ask = |cached: &Cached| {
                let inputs = plan.input_shapes(graph, node);
                cached.inner(|inner| guard::catch(|| inner.cost(&inputs, outputs)).unwrap_or_default())
            };
            let cost = member.map_or_else(|| *plan.cost(node), |m| ask(&m.cached).unwrap_or_default());
            let values = outputs.iter().map(prefgraph_ops::ErasedShape::bytes);
            let working = cost.scratch_bytes.saturating_add(cost.saved_bytes);
            let (weights, working) = match plan.place(node) {
                Place::Cpu => (cost.resident_bytes, working),
                Place::Cuda(_) => (0, cost.host_bytes),
            };
            held = nn::size::sum(values.chain([held, weights]));
            scratch = scratch.max(working);
        }
        nn::size::sum([held, scratch])
    }
}

/// Samples of one source that have to be read.
struct Work {
    node: NodeId,
    /// Indices of the cached nodes that are computed from it.
    members: Vec<usize>,
    /// By sample.
    hashes: Vec<Hash>,
    /// Numbers of those that have to be read.
    samples: Vec<usize>,
}

/// What a node reads: computed values, and hollow ones where only the shape is looked at.
fn inputs(
    graph: &Graph,
    plan: &Plan,
    node: NodeId,
    values: &HashMap<(NodeId, usize), Value>,
) -> Result<Vec<Vec<Value>>, OpError> {
    let at = &graph[node];
    let identity = at.op.cacheable();
    let mut inputs: Vec<Vec<Value>> = vec![Vec::new(); at.inputs.len()];
    let read: Vec<(usize, Endpoint)> = read_wires(graph, node, identity.as_ref()).collect();
    for (input, spec) in at.inputs.iter().enumerate() {
        for wire in &at.wires[input] {
            let value = match read.contains(&(input, *wire)) {
                true => values.get(&(wire.node, wire.port)).cloned(),
                false => (spec.ty.hollow)(&plan.shape(graph, *wire)),
            };
            let missing = || OpError::internal(format!("there is no value for `{}`", spec.name));
            inputs[input].push(value.ok_or_else(missing)?);
        }
    }
    Ok(inputs)
}

/// Which entries the samples of a batch have.
fn note(
    member: &Member,
    work: &Work,
    read: &[usize],
    keys: Option<Vec<Hash>>,
) -> Result<Vec<(Hash, Known)>, CacheError> {
    let mut learned = Vec::new();
    for (row, sample) in read.iter().enumerate() {
        let known = match keys.as_ref().map(|keys| keys.get(row)) {
            None => Known::Nothing,
            Some(key) => {
                let key = *key.ok_or_else(|| {
                    CacheError::new("internal error, please report it: a batch has fewer rows than samples")
                })?;
                let path = member.cached.path(key);
                let stamp = FileStamp::of(&path).map_err(|e| CacheError::io("find", &path, e))?;
                Known::Entry(key, stamp)
            }
        };
        learned.push((member.lookup(work.hashes[*sample]), known));
    }
    Ok(learned)
}

fn caught<R>(body: impl FnOnce() -> Result<R, OpError>) -> Result<R, OpError> {
    guard::catch(body).unwrap_or_else(|panic| Err(OpError::new(format!("panicked: {panic}"))))
}
