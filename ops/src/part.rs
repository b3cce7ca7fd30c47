//! What a node is to the nodes around it, for what a plan must check and no node can see alone.

/// The part that a node plays in a graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Part {
    /// None that other nodes depend on.
    #[default]
    Ordinary,
    /// A fixed transform where a trained network has an encoder or a decoder of its own: enough for a small network that was
    /// trained with it, noise to any other.
    Toy(Toy),
    /// A pass over noised latents whose prediction is compared with those of other passes over the same latents.
    Pass {
        /// Its guidance, where it has one.
        guidance: Option<f64>,
    },
}

/// See [`Part::Toy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toy {
    /// The setting that chooses it, e.g. `kind: dct`.
    pub chosen_by: &'static str,
    /// Settings of the trained encoder, as `--set NODE.` takes them.
    pub instead: &'static [&'static str],
}

impl Part {
    /// The part of a node that is set to a toy; an ordinary one where the user has said that this is meant.
    pub(crate) fn of_toy(toy: Toy, allowed: bool) -> Self {
        if allowed { Self::Ordinary } else { Self::Toy(toy) }
    }
}
