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
    /// Records metrics in the run's file, under names that begin with the prefix.
    Record {
        /// Empty for none.
        prefix: String,
    },
    /// A sum over the pairs of a set, batch by batch, of what other nodes measure of them.
    Sum(Sum),
}

/// See [`Part::Sum`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Steps that measure the set: as many as it has batches.
    pub over: u64,
    /// The setting that chooses which sum is the best, e.g. `criterion: loss`.
    pub chosen_by: &'static str,
    /// The metrics of which that takes any one.
    pub takes: &'static [&'static str],
}

/// See [`Part::Toy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toy {
    /// The setting that chooses it, e.g. `kind: dct`.
    pub chosen_by: &'static str,
    /// Settings of the trained encoder, as `--set NODE.` takes them.
    pub instead: &'static [&'static str],
}

impl Sum {
    /// The error where the best sum cannot be told; `lacking` says who has none of the metrics, e.g. "`update` does not measure".
    pub fn cannot_be_told(&self, lacking: &str) -> String {
        let names: Vec<String> = self.takes.iter().map(|name| format!("`{name}`")).collect();
        format!(
            "`{}` takes the metric {}, which {lacking}: connect the metrics of a `masked-loss`, or leave `adapter` unconnected",
            self.chosen_by,
            names.join(" or ")
        )
    }
}

impl Part {
    /// The part of a node that is set to a toy; an ordinary one where the user has said that this is meant.
    pub(crate) fn of_toy(toy: Toy, allowed: bool) -> Self {
        if allowed { Self::Ordinary } else { Self::Toy(toy) }
    }
}
