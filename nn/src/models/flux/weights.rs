//! The frozen weights, packed, in the order in which a pass uses them.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use super::{FluxFiles, FrozenUse, config::FluxConfig};
use crate::{
    backbone::LinearLayout,
    device::{Device, Kind},
    error::{Error, Result},
    layers::{Embedder, Frozen, FrozenBranch, Linear, Loading, Packing, approach, vector},
    lora::{FrozenAdapter, FrozenFactors},
};

/// One stream of a block with two streams.
#[derive(Debug)]
pub(super) struct Stream<D: Device> {
    pub modulation: Linear<D>,
    pub q: Linear<D>,
    pub k: Linear<D>,
    pub v: Linear<D>,
    pub out: Linear<D>,
    pub up: Linear<D>,
    pub down: Linear<D>,
    pub norm_q: D::Buffer,
    pub norm_k: D::Buffer,
}

impl<D: Device> Stream<D> {
    fn linears(&self) -> [&Linear<D>; 7] {
        [&self.modulation, &self.q, &self.k, &self.v, &self.out, &self.up, &self.down]
    }
}

/// A block whose text and image tokens have linears of their own and meet in the attention.
#[derive(Debug)]
pub(super) struct DoubleBlock<D: Device> {
    pub text: Stream<D>,
    pub image: Stream<D>,
}

/// A block in which attention and MLP stand side by side, over all tokens.
#[derive(Debug)]
pub(super) struct SingleBlock<D: Device> {
    pub modulation: Linear<D>,
    pub q: Linear<D>,
    pub k: Linear<D>,
    pub v: Linear<D>,
    pub up: Linear<D>,
    pub out: Linear<D>,
    pub norm_q: D::Buffer,
    pub norm_k: D::Buffer,
}

impl<D: Device> SingleBlock<D> {
    fn linears(&self) -> [&Linear<D>; 6] {
        [&self.modulation, &self.q, &self.k, &self.v, &self.up, &self.out]
    }
}

/// All weights of the model.
#[derive(Debug)]
pub(super) struct Weights<D: Device> {
    pub image_in: Linear<D>,
    pub text_in: Linear<D>,
    pub time: Embedder<D>,
    pub guidance: Option<Embedder<D>>,
    pub pooled: Embedder<D>,
    pub double: Vec<DoubleBlock<D>>,
    pub single: Vec<SingleBlock<D>>,
    pub final_modulation: Linear<D>,
    pub out: Linear<D>,
    packing: Packing,
}

impl<D: Device> Weights<D> {
    /// The linears of a block, by its number; none beyond the last.
    pub fn block(&self, number: usize) -> Vec<&Linear<D>> {
        let Some(single) = number.checked_sub(self.double.len()) else {
            let DoubleBlock { text, image } = &self.double[number];
            return [text.linears(), image.linears()].concat();
        };
        self.single.get(single).map_or_else(Vec::new, |block| block.linears().to_vec())
    }

    /// Search a block's values before its first use.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn check(&self, number: usize) -> Result<()> {
        self.block(number).into_iter().try_for_each(Linear::check)
    }

    /// The linears before and behind the blocks.
    fn outer(&self) -> impl Iterator<Item = &Linear<D>> {
        let embedders = [Some(&self.time), self.guidance.as_ref(), Some(&self.pooled)];
        let embedders = embedders.into_iter().flatten().flat_map(|e| [&e.first, &e.second]);
        [&self.image_in, &self.text_in, &self.final_modulation, &self.out].into_iter().chain(embedders)
    }

    /// The block at `place` of this order of blocks runs next: see [`approach`].
    ///
    /// # Errors
    /// As there.
    pub fn approach(&self, queue: &D::Queue, order: &[usize], place: usize) -> Result<()> {
        approach(queue, self.packing, order, place, |number| self.block(number))
    }
}

struct Reader<'a, D: Device> {
    device: &'a D,
    files: &'a FluxFiles,
    /// An adapter of the frozen network.
    adapter: Option<(&'a FrozenAdapter, FrozenUse)>,
    /// The first factors of its branches, by their names in the file: linears share them.
    downs: RefCell<HashMap<String, Arc<Frozen<D>>>>,
    layouts: HashMap<String, (LinearLayout, Option<usize>)>,
    head: usize,
    loading: Loading,
}

impl<D: Device> Reader<'_, D> {
    fn linear(&self, name: &str) -> Result<Linear<D>> {
        let (layout, index) = self
            .layouts
            .get(name)
            .ok_or_else(|| Error::Internal(format!("`{name}` is not among the model's linears")))?;
        let view = |what: &str| self.files.view(&format!("{name}.{what}"));
        let tensors = (view("weight")?, Some(view("bias")?));
        let (branch, merged) = match self.adapter.and_then(|(a, how)| Some((a.get(name)?, how))) {
            None => (None, None),
            Some((factors, FrozenUse::Branch)) => (Some(self.branch(factors, layout)?), None),
            Some((factors, FrozenUse::Merged)) => (None, Some(factors.clone())),
        };
        Linear::new(self.device, tensors, layout, *index, branch, merged, self.loading)
    }

    fn branch(&self, factors: &FrozenFactors, layout: &LinearLayout) -> Result<FrozenBranch<D>> {
        let rank = factors.rank();
        let read = |view: &crate::files::TensorView, shape| {
            Frozen::new(self.device, view.clone(), shape, self.loading, None)
        };
        let mut downs = self.downs.borrow_mut();
        let down = match downs.get(factors.down.name()) {
            Some(down) => Arc::clone(down),
            None => {
                let down = Arc::new(read(&factors.down, (rank, layout.inputs))?);
                downs.insert(factors.down.name().into(), Arc::clone(&down));
                down
            }
        };
        Ok(FrozenBranch { down, up: read(&factors.up, (layout.outputs, rank))?, scale: factors.scale })
    }

    fn embedder(&self, name: &str) -> Result<Embedder<D>> {
        let linear = |n| self.linear(&format!("time_text_embed.{name}.linear_{n}"));
        Ok(Embedder { first: linear(1)?, second: linear(2)? })
    }

    fn norm(&self, name: &str) -> Result<D::Buffer> {
        let weight = self.files.view(&format!("{name}.weight"))?;
        vector(self.device, &weight, self.head, Kind::Exact, self.loading.precision)
    }

    fn double(&self, block: usize) -> Result<DoubleBlock<D>> {
        let stream = |names: [&str; 9]| -> Result<Stream<D>> {
            let at = |name: &str| format!("transformer_blocks.{block}.{name}");
            let [modulation, q, k, v, out, up, down, norm_q, norm_k] = names;
            Ok(Stream {
                modulation: self.linear(&at(modulation))?,
                q: self.linear(&at(q))?,
                k: self.linear(&at(k))?,
                v: self.linear(&at(v))?,
                out: self.linear(&at(out))?,
                up: self.linear(&at(up))?,
                down: self.linear(&at(down))?,
                norm_q: self.norm(&at(norm_q))?,
                norm_k: self.norm(&at(norm_k))?,
            })
        };
        Ok(DoubleBlock {
            text: stream([
                "norm1_context.linear",
                "attn.add_q_proj",
                "attn.add_k_proj",
                "attn.add_v_proj",
                "attn.to_add_out",
                "ff_context.net.0.proj",
                "ff_context.net.2",
                "attn.norm_added_q",
                "attn.norm_added_k",
            ])?,
            image: stream([
                "norm1.linear",
                "attn.to_q",
                "attn.to_k",
                "attn.to_v",
                "attn.to_out.0",
                "ff.net.0.proj",
                "ff.net.2",
                "attn.norm_q",
                "attn.norm_k",
            ])?,
        })
    }

    fn single(&self, block: usize) -> Result<SingleBlock<D>> {
        let at = |name: &str| format!("single_transformer_blocks.{block}.{name}");
        Ok(SingleBlock {
            modulation: self.linear(&at("norm.linear"))?,
            q: self.linear(&at("attn.to_q"))?,
            k: self.linear(&at("attn.to_k"))?,
            v: self.linear(&at("attn.to_v"))?,
            up: self.linear(&at("proj_mlp"))?,
            out: self.linear(&at("proj_out"))?,
            norm_q: self.norm(&at("attn.norm_q"))?,
            norm_k: self.norm(&at("attn.norm_k"))?,
        })
    }
}

impl<D: Device> Weights<D> {
    /// Read everything, and pack it where it is to be resident; streamed blocks are searched before their first use.
    ///
    /// # Errors
    /// If a tensor cannot be read or holds a value that is not finite.
    pub fn read(
        device: &D,
        files: &FluxFiles,
        adapter: Option<(&FrozenAdapter, FrozenUse)>,
        config: &FluxConfig,
        loading: Loading,
    ) -> Result<Self> {
        let numbered = config.linears().into_iter().enumerate().map(|(i, l)| (l, Some(i)));
        let outer = config.outer_linears().into_iter().map(|l| (l, None));
        let layouts = numbered.chain(outer).map(|(l, i)| (l.name.clone(), (l, i))).collect();
        let reader = Reader {
            device,
            files,
            adapter,
            downs: RefCell::default(),
            layouts,
            head: config.attention_head_dim,
            loading,
        };
        let weights = Self {
            image_in: reader.linear("x_embedder")?,
            text_in: reader.linear("context_embedder")?,
            time: reader.embedder("timestep_embedder")?,
            guidance: config.guidance_embeds.then(|| reader.embedder("guidance_embedder")).transpose()?,
            pooled: reader.embedder("text_embedder")?,
            double: (0..config.num_layers).map(|i| reader.double(i)).collect::<Result<_>>()?,
            single: (0..config.num_single_layers).map(|i| reader.single(i)).collect::<Result<_>>()?,
            final_modulation: reader.linear("norm_out.linear")?,
            out: reader.linear("proj_out")?,
            packing: loading.packing,
        };
        weights.outer().try_for_each(Linear::check)?;
        Ok(weights)
    }
}
