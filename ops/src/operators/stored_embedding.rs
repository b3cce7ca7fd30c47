//! `stored-embedding`: embeddings that another program computed.
//!
//! Shape letters: `B` pictures, `F` width of an embedding.

use prefgraph_nn::files::TensorFiles;

use super::tensors::tensor;
use crate::{
    identity::Identity,
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Embeddings, Texts},
    settings,
    settings::DataPath,
};

settings! {
    /// Settings of [`StoredEmbedding`].
    pub struct StoredEmbeddingSettings {
        /// A safetensors file with a tensor of one axis for each id.
        pub path: DataPath = DataPath::default(),
    }
}

/// Embeddings by id, of any encoder: one that this library does not run can be measured with, too.
pub struct StoredEmbedding {
    files: TensorFiles,
    /// F.
    width: usize,
}

impl Operator for StoredEmbedding {
    const NAME: &'static str = "stored-embedding";
    const DOC: &'static str = "Embeddings that another program computed, by id: a safetensors file with a tensor of one axis for each.";
    const IN: [&'static str; 1] = ["ids"];
    const OUT: [&'static str; 1] = ["embeddings"];
    type Settings = StoredEmbeddingSettings;
    type In = (Texts,);
    type Out = (Embeddings,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: StoredEmbeddingSettings) -> Result<Self, OpError> {
        if settings.path.is_empty() {
            return Err(OpError::new("path: a safetensors file with a tensor for each id is needed"));
        }
        let files =
            TensorFiles::open(settings.path.as_path()).map_err(|e| OpError::new(format!("path: {e}")))?;
        let first = files.names().next().and_then(|name| files.info(name)).map(|info| info.shape.clone());
        let Some([width]) = first.as_deref().filter(|shape| *shape != [0]) else {
            return Err(OpError::new(format!(
                "path: {}: a tensor of one axis, with at least one value, for each id is needed",
                settings.path.as_path().display()
            )));
        };
        Ok(Self { width: *width, files })
    }

    // An embedding that nobody reads is not wanted.
    fn due(&self, _: u64) -> bool {
        false
    }

    fn shapes(&self, (ids,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((ids.batch, self.width),))
    }

    fn cacheable(&self) -> Option<Identity> {
        Some(Identity::new().file("path", self.files.path()))
    }

    fn forward(&self, ctx: &Ctx<'_>, (ids,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let mut values = Vec::with_capacity(ids.0.len() * self.width);
        for id in ids.0.iter() {
            values.extend(self.files.read_finite(id, &[self.width])?);
        }
        Ok(((tensor(ctx, (ids.0.len(), self.width), values)?.into(),), ()))
    }
}

#[cfg(test)]
mod tests {
    use prefgraph_nn::files::{NamedTensor, write_safetensors};

    use super::*;
    use crate::operators::testing::Bench;

    #[test]
    fn embeddings_are_found_by_id_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embeddings.safetensors");
        let of = |name: &str, values: &[f32]| NamedTensor::f32(name.to_owned(), vec![2], values);
        write_safetensors(&path, &[of("a", &[1.0, 2.0]), of("b/c d", &[3.0, 4.0])], &[]).unwrap();
        let op = StoredEmbedding::new(StoredEmbeddingSettings { path: DataPath(path) }).unwrap();
        let texts = |ids: &[&str]| Texts(ids.iter().map(|id| (*id).to_owned()).collect());
        let bench = Bench::new();
        let ((found,), ()) = op.forward(&bench.ctx(), (texts(&["b/c d", "a"]),)).unwrap();
        assert_eq!(found.as_vec(), [3.0, 4.0, 1.0, 2.0]);
        let error = op.forward(&bench.ctx(), (texts(&["x"]),)).err().unwrap().to_string();
        assert!(error.contains('x'), "{error}");
    }

    #[test]
    fn embeddings_without_values_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embeddings.safetensors");
        write_safetensors(&path, &[NamedTensor::f32("a", vec![0], &[])], &[]).unwrap();
        let error = StoredEmbedding::new(StoredEmbeddingSettings { path: DataPath(path) }).err().unwrap();
        assert!(error.to_string().contains("with at least one value"), "{error}");
    }
}
