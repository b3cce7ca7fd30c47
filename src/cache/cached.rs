//! An operator whose rows are cached on disk.
//!
//! It knows everything of the operator it stands for but how to compute: that it asks the operator for, and once the
//! cache is filled the operator is dropped, with all its weights.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use prefgraph_ops::{
    Cost, Ctx, DynOperator, ErasedShape, External, Identity, InputSpec, NamedState, OpError, OutputSpec,
    Part, Value, Wanted, operator::Residuals, rows::Keep,
};

use super::{
    Hash, Recipe,
    entry::{self, Absent, Row},
    store::Store,
};

/// See the module.
pub(super) struct Cached {
    name: String,
    inputs: Vec<InputSpec>,
    outputs: Vec<OutputSpec>,
    keeps: Vec<Keep>,
    identity: Identity,
    recipe: Hash,
    /// Name of the folder of its entries.
    folder: String,
    store: Arc<Store>,
    inner: RwLock<Option<Arc<dyn DynOperator>>>,
    /// Shapes that the operator has inferred: a graph can be planned again when it is gone.
    shapes: Mutex<Vec<Inferred>>,
}

/// Input shapes, variant, output shapes.
type Inferred = (Vec<Vec<ErasedShape>>, usize, Vec<ErasedShape>);

/// What became of the rows of one batch.
pub(super) struct Batch {
    pub outputs: Vec<Value>,
    /// The keys of the rows; `None` where there is nothing to keep.
    pub keys: Option<Vec<Hash>>,
    /// Sentences about entries that were there, but not whole.
    pub damaged: Vec<String>,
    /// Did the operator run?
    pub computed: bool,
}

impl Cached {
    /// In the place of `op`, which is given by [`compute_by`](Self::compute_by).
    pub fn new(op: &dyn DynOperator, identity: Identity, recipe: &Recipe, store: Arc<Store>) -> Self {
        let outputs = op.outputs();
        Self {
            name: op.name().to_owned(),
            inputs: op.inputs(),
            keeps: outputs.iter().filter_map(|o| o.ty.rows?.keep).collect(),
            outputs,
            identity,
            recipe: recipe.hash(),
            folder: recipe.id(),
            store,
            inner: RwLock::new(None),
            shapes: Mutex::default(),
        }
    }

    /// Ask this operator for rows that are missing.
    pub fn compute_by(&self, op: Arc<dyn DynOperator>) {
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = Some(op);
    }

    /// Drop the operator.
    pub fn release(&self) {
        // A panic while it was read has not changed it.
        drop(self.inner.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What the operator says, while it is there.
    pub fn inner<R>(&self, ask: impl FnOnce(&dyn DynOperator) -> R) -> Option<R> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.as_deref().map(ask)
    }

    /// Rows of a value of an output of this shape.
    pub fn rows(&self, output: usize, shape: &ErasedShape) -> Option<usize> {
        (self.keeps.get(output)?.measure)(shape).map(|(rows, _)| rows)
    }

    pub fn names(&self) -> Vec<&str> {
        self.outputs.iter().map(|o| o.name).collect()
    }

    pub fn path(&self, key: Hash) -> std::path::PathBuf {
        self.store.entry(&self.folder, key)
    }

    /// The key of every row; `None` if the inputs do not tell how many rows there are.
    fn keys(&self, inputs: &[Vec<Value>]) -> Result<Option<Vec<Hash>>, OpError> {
        let mut digests = Vec::new();
        let mut count = None;
        for (spec, values) in self.inputs.iter().zip(inputs) {
            if self.identity.is_shape_only(spec.name) {
                continue;
            }
            let rows = spec.ty.rows.ok_or_else(|| OpError::internal(format!("{} has no rows", spec.ty)))?;
            let values = values.iter().map(rows.digests).collect::<Result<Vec<_>, _>>()?;
            for rows in values.iter().flatten() {
                if *count.get_or_insert(rows.len()) != rows.len() {
                    return Err(OpError::new(format!("input `{}` has another number of rows", spec.name)));
                }
            }
            digests.push((spec.name, values));
        }
        let key = |row: usize| {
            let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 key of a cache entry");
            hash.update(self.recipe.as_bytes());
            for (name, values) in &digests {
                hash.update(format!("{name} {}\n", values.len()).as_bytes());
                for value in values {
                    // An empty list is the same for all rows.
                    hash.update(value.as_ref().map_or(&[0; 32], |rows| &rows[row]));
                }
            }
            hash.finalize()
        };
        Ok(count.map(|count| (0..count).map(key).collect()))
    }

    /// The outputs for a batch: from the disk, or computed and written where rows are missing.
    pub fn batch(&self, ctx: &Ctx<'_>, inputs: &[Vec<Value>]) -> Result<Batch, OpError> {
        let names = self.names();
        let keys = self.keys(inputs)?;
        let Some(keys) = keys else {
            let outputs = self.keeps.iter().map(|keep| (keep.join)(&[])).collect::<Result<_, _>>()?;
            return Ok(Batch { outputs, keys: None, damaged: Vec::new(), computed: false });
        };
        let found: Vec<Result<Row, Absent>> =
            keys.iter().map(|key| entry::read(&self.path(*key), *key, &names)).collect();
        let mut damaged = Vec::new();
        for (key, row) in keys.iter().zip(&found) {
            if let Err(Absent::Damaged(why)) = row {
                damaged.push(format!("`{}`: {why}", self.path(*key).display()));
            }
        }
        if let Ok(rows) = found.iter().map(Result::as_ref).collect::<Result<Vec<&Row>, _>>() {
            let outputs = self.keeps.iter().enumerate().map(|(o, keep)| {
                let rows: Vec<NamedState> = rows.iter().map(|row| row[o].clone()).collect();
                (keep.join)(&rows)
            });
            return Ok(Batch {
                outputs: outputs.collect::<Result<_, _>>()?,
                keys: Some(keys),
                damaged,
                computed: false,
            });
        }
        let computed = self.inner(|inner| inner.forward(ctx, inputs));
        let (outputs, _) = computed.ok_or_else(|| self.gone(&keys, &found, &damaged))??;
        let split = self.keeps.iter().zip(&outputs).map(|(keep, value)| (keep.split)(value));
        let split = split.collect::<Result<Vec<_>, _>>()?;
        for (row, key) in keys.iter().enumerate().filter(|(row, _)| found[*row].is_err()) {
            let one = |rows: &Vec<NamedState>| {
                rows.get(row).cloned().ok_or_else(|| OpError::internal("fewer rows came out than went in"))
            };
            let row = split.iter().map(one).collect::<Result<Row, _>>()?;
            entry::write(&self.path(*key), *key, &names, &row)
                .map_err(|e| OpError::new(format!("an entry of the cache cannot be written: {e}")))?;
        }
        Ok(Batch { outputs, keys: Some(keys), damaged, computed: true })
    }

    /// Entries that were there when the operator was dropped are not whole any more. Those that are damaged go, so that
    /// the next run makes them again: their size and time may be what the index knows. Where one is missing, the index
    /// goes.
    fn gone(&self, keys: &[Hash], found: &[Result<Row, Absent>], damaged: &[String]) -> OpError {
        let mut missing = None;
        for (key, row) in keys.iter().zip(found) {
            match row {
                Ok(_) => {}
                Err(Absent::Missing) => missing = Some(self.path(*key)),
                // One that cannot be removed is found damaged again, and said so again.
                Err(Absent::Damaged(_)) => drop(std::fs::remove_file(self.path(*key))),
            }
        }
        if missing.is_some() {
            // The index said that it is there: whatever it was wrong about, the data must be read again.
            let _ = std::fs::remove_file(self.store.index());
        }
        let what = match (damaged.first(), missing) {
            (Some(damaged), _) => format!("an entry of the cache is damaged, and was removed: {damaged}"),
            (None, Some(path)) => format!("`{}` no longer exists", path.display()),
            (None, None) => "internal error, please report it: no row is missing".to_owned(),
        };
        OpError::new(format!(
            "{what}; the encoder was dropped when the cache was whole: start again with --resume, which makes it again"
        ))
    }
}

/// [`Cached`] as an operator of a graph.
pub(super) struct Handle(pub Arc<Cached>);

fn dropped() -> OpError {
    OpError::internal("an operator was asked after its cache was filled and it was dropped")
}

impl DynOperator for Handle {
    fn name(&self) -> &str {
        &self.0.name
    }
    fn inputs(&self) -> Vec<InputSpec> {
        self.0.inputs.clone()
    }
    fn outputs(&self) -> Vec<OutputSpec> {
        self.0.outputs.clone()
    }
    fn differentiable(&self) -> bool {
        // What is read from the disk has no derivative.
        false
    }
    fn variants(&self) -> usize {
        1
    }
    fn shapes(&self, inputs: &[Vec<ErasedShape>], variant: usize) -> Result<Vec<ErasedShape>, OpError> {
        let mut known = self.0.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., outputs)) = known.iter().find(|(i, v, _)| i == inputs && *v == variant) {
            return Ok(outputs.clone());
        }
        let outputs =
            self.0.inner(|inner| inner.shapes(inputs, variant)).unwrap_or_else(|| Err(dropped()))?;
        known.push((inputs.to_vec(), variant, outputs.clone()));
        Ok(outputs)
    }
    /// Of reading: the operator is not there when steps are made.
    fn cost(&self, _: &[Vec<ErasedShape>], outputs: &[ErasedShape]) -> Cost {
        let bytes = outputs.iter().map(ErasedShape::bytes).sum::<usize>();
        Cost { moved_bytes: 4.0 * bytes as f64, scratch_bytes: 2 * bytes, ..Cost::default() }
    }
    fn notes(&self, inputs: &[Vec<ErasedShape>]) -> Vec<String> {
        self.0.inner(|inner| inner.notes(inputs)).unwrap_or_default()
    }
    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        self.0.inner(|inner| inner.exports()).unwrap_or_default()
    }
    fn cacheable(&self) -> Option<Identity> {
        Some(self.0.identity.clone())
    }
    fn external(&self) -> Vec<External> {
        self.0.inner(|inner| inner.external()).unwrap_or_default()
    }
    fn part(&self) -> Part {
        self.0.inner(|inner| inner.part()).unwrap_or_default()
    }
    fn forward(&self, ctx: &Ctx<'_>, inputs: &[Vec<Value>]) -> Result<(Vec<Value>, Residuals), OpError> {
        Ok((self.0.batch(ctx, inputs)?.outputs, Box::new(())))
    }
    fn backward(
        &self,
        _: &Ctx<'_>,
        _: Wanted<'_>,
        _: Residuals,
        _: &[Option<Value>],
    ) -> Result<Vec<Vec<Option<Value>>>, OpError> {
        Err(OpError::internal("no derivative crosses a cached node"))
    }
}
