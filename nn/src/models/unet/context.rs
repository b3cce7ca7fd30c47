//! What every function of a pass needs to know, and the way of a pass through the weights.
//!
//! `N` batch, `L` text tokens, `K` image tokens, `E` their width, `D` width of the time's embedding.

use super::weights::Weights;
use crate::{
    device::{Device, Kind, Queue, View},
    error::Result,
    layers::{Context, Linear},
    models::checkpointing::Keep,
};

/// Tokens that have keys and values, `[N U, width]`.
pub(super) struct Tokens<'a, D: Device> {
    pub values: View<'a, D>,
    /// U.
    pub count: usize,
}

impl<D: Device> Clone for Tokens<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Tokens<'_, D> {}

/// What every function of a pass needs to know.
pub(super) struct Pass<'a, D: Device> {
    pub ctx: Context<'a, D>,
    /// `N`.
    pub batch: usize,
    /// `silu(temb)`, `[N, D]`.
    pub condition: &'a D::Buffer,
    /// `[N L, E]`.
    pub text: Tokens<'a, D>,
    /// `[N K, E]`, where the network takes them.
    pub image: Option<Tokens<'a, D>>,
    /// What attention over image tokens is multiplied by.
    pub image_scale: f32,
    /// What is kept for a backward.
    pub keep: Keep,
}

impl<D: Device> Clone for Pass<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Pass<'_, D> {}

impl<D: Device> Pass<'_, D> {
    /// Working memory for this many activations.
    pub fn take(&self, len: usize) -> D::Buffer {
        self.ctx.queue.take(len, Kind::Activation)
    }

    /// The same for what runs again, because its backward comes next.
    pub fn again(self) -> Self {
        Self { keep: Keep::All, ..self }
    }

    /// Is one of these linears adapted, so that a backward reads what they have read?
    pub fn adapts(&self, linears: &[&Linear<D>]) -> bool {
        linears.iter().any(|linear| self.ctx.adapts(linear))
    }

    /// What these linears have read, where a backward reads it again and it is kept.
    pub fn fresh<T>(&self, read: T, linears: &[&Linear<D>]) -> Option<T> {
        (self.keep == Keep::All && self.adapts(linears)).then_some(read)
    }
}

/// The derivatives that a backward makes.
pub(super) struct Grads<D: Device> {
    /// By the values of the adapter.
    pub adapter: D::Buffer,
    /// By image tokens, `[N K, E]`, summed over cross-attentions in the order of the backward; where something is trained that made them.
    pub image: Option<D::Buffer>,
}

/// The units of the weights in the order in which a pass comes to them.
pub(super) struct Route<'a, D: Device> {
    queue: &'a D::Queue,
    weights: &'a Weights<D>,
    order: Vec<usize>,
    /// Number of the first unit that an adapter reaches.
    pub first: usize,
    backward: bool,
}

impl<'a, D: Device> Route<'a, D> {
    pub fn forward(weights: &'a Weights<D>, ctx: Context<'a, D>) -> Self {
        let (queue, first) = (ctx.queue, weights.first_adapted(ctx));
        Self { queue, weights, order: (0..weights.units()).collect(), first, backward: false }
    }

    pub fn backward(weights: &'a Weights<D>, ctx: Context<'a, D>) -> Self {
        let (queue, first) = (ctx.queue, weights.first_adapted(ctx));
        Self { queue, weights, order: (first..weights.units()).rev().collect(), first, backward: true }
    }

    /// A unit runs next.
    ///
    /// # Errors
    /// If a file was truncated, a weight is not finite, or the device has no room.
    pub fn approach(&self, unit: usize) -> Result<()> {
        let place = if self.backward { self.weights.units() - 1 - unit } else { unit };
        self.weights.approach(self.queue, &self.order, place)
    }
}
