//! How a file has a text encoder: alone, or inside a whole checkpoint.

use super::{model::ClipModel, open_clip};
use crate::{
    encoders::weights::{Layout, Place, transformers},
    files::TensorFiles,
};

/// The prefix of the names, and their layout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub prefix: &'static str,
    pub layout: Layout,
    /// The matrix behind the token that ends a text, with its prefix.
    pub projection: &'static str,
    /// Does that matrix have a row for each input, not for each output?
    pub transposed: bool,
}

impl Source {
    /// By the names in a file.
    pub fn of(files: &TensorFiles, model: ClipModel) -> Self {
        let projection = "text_projection.weight";
        let plain = |prefix| Self { prefix, layout: transformers, projection, transposed: false };
        let inside = match model {
            ClipModel::Pair => plain("text_model."),
            ClipModel::L => plain("conditioner.embedders.0.transformer.text_model."),
            ClipModel::BigG => Self {
                prefix: "conditioner.embedders.1.model.",
                layout: open_clip::place,
                projection: "conditioner.embedders.1.model.text_projection",
                transposed: true,
            },
        };
        let alone = plain("text_model.");
        let there = |source: &Self| files.names().any(|name| name.starts_with(source.prefix));
        [inside, alone].into_iter().find(there).unwrap_or(plain(""))
    }

    /// What a tensor of transformers is called in the file.
    pub fn name(&self, name: &str) -> String {
        let Place { name, .. } = (self.layout)(name);
        format!("{}{name}", self.prefix)
    }

    /// The axes of the matrix behind the token that ends a text.
    pub fn projection_shape(&self, inputs: usize, outputs: usize) -> [usize; 2] {
        if self.transposed { [inputs, outputs] } else { [outputs, inputs] }
    }

    /// What the names of all blocks begin with.
    pub fn blocks(&self) -> String {
        let first = self.name("encoder.layers.0.layer_norm1");
        first.rsplit_once("0.").map_or(first.clone(), |(blocks, _)| blocks.to_owned())
    }
}
