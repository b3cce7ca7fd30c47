//! The formats that adapter files come in, and what a file of any of them says.
//!
//! ```text
//! diffusers  transformer.transformer_blocks.0.attn.to_q.lora_A.weight      alpha in the header, else the rank
//! kohya      lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight       .alpha a module, else its rank
//! uno        double_blocks.0.processor.qkv_lora1.down.weight               alpha is the rank
//! ```
//!
//! In kohya's and UNO's files q, k and v (in blocks with one stream the MLP, too) are one linear with one pair of
//! factors, `down [R, K]` and `up [N, R]`. Each of its parts has the same `down` and its own rows of `up`: that is
//! lossless, and how a [`FrozenAdapter`](super::FrozenAdapter) reads it. Where `up` consists of blocks along the
//! diagonal, one a part, the parts have factors of their own of rank `R / parts`: that is how adapters that were
//! trained apart are written, and how they are read back.
//!
//! `R` rank in the file, `K` inputs, `N` outputs of all parts

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{AdaptedLinear, Adapter, AdapterLayout, diffusers, kohya, pattern::kind, uno};
use crate::{
    backbone::LinearLayout,
    error::{Error, Result},
    files::{NamedTensor, TensorFiles, TensorView, nearest},
    naming::Place,
};

/// How an adapter file names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterFormat {
    /// PEFT's names, as diffusers writes them.
    Diffusers,
    /// The names of kohya's sd-scripts, which most programs with a picture window read.
    Kohya,
    /// The names of UNO's own adapter and of XLabs.
    Uno,
}

impl AdapterFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Diffusers, Self::Kohya, Self::Uno];

    /// As it is written on a command line and in a graph file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Kohya => "kohya",
            Self::Uno => "uno",
        }
    }

    /// The file of this format beside others of the same adapter: `adapter.safetensors`, `adapter.kohya.safetensors`.
    pub fn file_name(self, stem: &str) -> String {
        match self {
            Self::Diffusers => format!("{stem}.safetensors"),
            other => format!("{stem}.{}.safetensors", other.name()),
        }
    }

    /// The format whose names this is one of.
    fn of(name: &str) -> Option<Self> {
        if diffusers::side(name).is_some() {
            Some(Self::Diffusers)
        } else if uno::side(name).is_some() {
            Some(Self::Uno)
        } else {
            kohya::side(name).map(|_| Self::Kohya)
        }
    }
}

/// What a tensor of an adapter file is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Down,
    Up,
    Alpha,
}

/// The tensors of one module of a file: down, up, alpha.
pub(super) type Sides = [Option<String>; 3];

/// What a file is written from: tensors, and what the header says in the format's own keys.
pub(super) struct Contents<'a> {
    pub tensors: Vec<NamedTensor<'a>>,
    pub header: Vec<(String, String)>,
}

/// The tensors of a file by module: `side` takes a name apart, `bare` brings a module's name into one spelling.
///
/// # Errors
/// If a name is none of this format, or a module is there twice.
pub(super) fn gather(
    files: &TensorFiles,
    under: &str,
    side: fn(&str) -> Option<(&str, Side)>,
    bare: fn(&str) -> &str,
) -> Result<BTreeMap<String, Sides>> {
    let mut modules: BTreeMap<String, Sides> = BTreeMap::new();
    for name in files.names() {
        let Some(below) = name.strip_prefix(under) else { continue };
        let (module, side) = side(below).ok_or_else(|| {
            Error::file(files.path(), format!("`{name}` is no factor of an adapter as the others are"))
        })?;
        let sides = modules.entry(bare(module).to_owned()).or_default();
        if let Some(other) = sides[side as usize].replace(name.into()) {
            let message = format!("`{name}` and `{other}` are the same factor");
            return Err(Error::file(files.path(), message));
        }
    }
    Ok(modules)
}

/// A part of a linear of a file: a linear of diffusers' layout, and its rows of `up`.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub name: String,
    pub rows: Range<usize>,
}

/// A pair of factors as the file has it.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    /// What the file calls it.
    pub key: String,
    /// `[R, K]`.
    pub down: TensorView,
    /// `[N, R]`.
    pub up: TensorView,
    /// The product is scaled by `alpha / R`; nothing where the file says nothing.
    pub alpha: Option<f32>,
    pub parts: Vec<Part>,
}

impl Factors {
    /// Look up both factors and compare their axes; `parts` shares the rows of `up` out.
    pub(super) fn new(
        files: &Arc<TensorFiles>,
        key: &str,
        sides: &Sides,
        alpha: Option<f32>,
        parts: impl FnOnce(usize) -> Option<Vec<Part>>,
    ) -> Result<Self> {
        let [Some(down), Some(up), _] = sides else {
            return Err(Error::file(files.path(), format!("`{key}` has only one of its two factors")));
        };
        let (down, up) = (TensorView::whole(files, down)?, TensorView::whole(files, up)?);
        let ([rank, _], [outputs, same]) = (down.shape(), up.shape()) else {
            return Err(Error::file(
                files.path(),
                format!(
                    "the factors of `{key}` have axes {:?} and {:?}: expected two each",
                    down.shape(),
                    up.shape()
                ),
            ));
        };
        if rank != same || *rank == 0 {
            return Err(Error::file(
                files.path(),
                format!("the factors of `{key}` have ranks {rank} and {same}: expected the same, at least 1"),
            ));
        }
        let parts = parts(*outputs).ok_or_else(|| {
            Error::file(
                files.path(),
                format!("`{}` has {outputs} rows, which cannot be shared out among its parts", up.name()),
            )
        })?;
        if let Some(alpha) = alpha.filter(|a| !(a.is_finite() && *a > 0.0)) {
            let message = format!("alpha of `{key}` is {alpha}: expected a positive number");
            return Err(Error::file(files.path(), message));
        }
        Ok(Self { key: key.into(), down, up, alpha, parts })
    }

    pub(super) fn rank(&self) -> usize {
        self.down.shape()[0]
    }
}

/// Which parts have a block of their own on the diagonal of `up [N, R]`, in the order of the blocks; nothing if it
/// is not made of blocks. Where not all parts have one, the rows of the others are zero.
pub(super) fn blocks(up: &[f32], rank: usize, rows: &[Range<usize>]) -> Option<Vec<usize>> {
    let row = |r: usize| &up[r * rank..(r + 1) * rank];
    let diagonal = |parts: &[usize]| {
        let r = rank / parts.len();
        rank.is_multiple_of(parts.len())
            && parts.iter().enumerate().all(|(block, part)| {
                let own = block * r..(block + 1) * r;
                rows[*part].clone().all(|at| {
                    row(at).iter().enumerate().all(|(column, v)| own.contains(&column) || *v == 0.0)
                })
            })
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    if diagonal(&all) {
        return Some(all);
    }
    let used: Vec<usize> =
        all.into_iter().filter(|p| rows[*p].clone().any(|at| row(at).iter().any(|v| *v != 0.0))).collect();
    (used.len() > 1 && used.len() < rows.len() && diagonal(&used)).then_some(used)
}

/// The factors of one linear of diffusers' layout, as they are to be trained.
#[derive(Clone, Debug)]
struct Module {
    linear: AdaptedLinear,
    rank: usize,
    /// The file's alpha is for so many times the rank.
    blocks: usize,
    alpha: Option<f32>,
    a: TensorView,
    /// All columns that the file has for these rows.
    up: TensorView,
    columns: Range<usize>,
    key: String,
}

/// An adapter file whose names and shapes have been understood.
#[derive(Debug)]
pub struct AdapterFile {
    files: Arc<TensorFiles>,
    format: AdapterFormat,
    factors: Vec<Factors>,
    modules: Vec<Module>,
}

/// What a file says of one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct FileModule {
    /// In diffusers' names, with the widths that the factors have.
    pub linear: AdaptedLinear,
    /// Inner width of the factors.
    pub rank: usize,
    /// Of this linear: the branch is scaled by alpha / rank. The rank where the file says nothing.
    pub alpha: f32,
}

impl AdapterFile {
    /// Open a file and find out its format; only tensors whose names start with `under` are looked at.
    ///
    /// # Errors
    /// If the file cannot be read, or is no adapter in one of the formats; if a factor is missing, there twice, or of
    /// other axes than its partner; if the file states something that cannot be kept, e.g. an alpha for each module.
    pub fn open(path: &Path, under: &str) -> Result<Self> {
        let files = Arc::new(TensorFiles::open(path)?);
        let names = || files.names().filter_map(|n| n.strip_prefix(under));
        let Some(format) = names().find_map(AdapterFormat::of) else {
            let there = files.names().next().map_or("none".into(), |n| format!("e.g. `{n}`"));
            let place = if under.is_empty() { String::new() } else { format!(" under `{under}`") };
            return Err(Error::file(
                path,
                format!(
                    "holds no factors{place}: expected names as diffusers, kohya or UNO write them; tensors that it \
                     has: {there}"
                ),
            ));
        };
        let mut factors = match format {
            AdapterFormat::Diffusers => diffusers::factors(&files, under),
            AdapterFormat::Kohya => kohya::factors(&files, under),
            AdapterFormat::Uno => uno::factors(&files, under),
        }?;
        factors.sort_by_cached_key(|f| order(&f.parts[0].name));
        let mut modules = Vec::new();
        for pair in &factors {
            modules.extend(split(pair, format)?);
        }
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = modules.iter().find(|m| !seen.insert(m.linear.name.as_str())) {
            let message = format!("has factors for `{}` twice", twice.linear.name);
            return Err(Error::file(path, message));
        }
        Ok(Self { factors, modules, files, format })
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.files.path().to_owned()
    }

    /// How it names its tensors.
    pub fn format(&self) -> AdapterFormat {
        self.format
    }

    /// The strings of its header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.files.metadata()
    }

    pub(super) fn factors(&self) -> &[Factors] {
        &self.factors
    }

    /// The linears it has factors for, in the order of the model where they are FLUX's.
    pub fn modules(&self) -> Vec<FileModule> {
        let module = |m: &Module| FileModule {
            linear: m.linear.clone(),
            rank: m.rank,
            alpha: m.alpha.map_or(m.rank as f32, |alpha| alpha / m.blocks as f32),
        };
        self.modules.iter().map(module).collect()
    }

    /// Alpha of the adapter, if the file states one.
    ///
    /// # Errors
    /// If modules are scaled differently.
    pub fn alpha(&self) -> Result<Option<f32>> {
        let stated = |m: &Module, alpha: f32| m.alpha == Some(alpha * m.blocks as f32);
        let Some(first) = self.modules.first() else { return Ok(None) };
        let Some(found) = first.alpha else { return Ok(None) };
        // Three times an alpha, rounded, does not always give it back when divided: the header has it as it was.
        let network = self.metadata().get(kohya::NETWORK_ALPHA).and_then(|a| a.parse().ok());
        let alpha = network.filter(|a| stated(first, *a)).unwrap_or(found / first.blocks as f32);
        match self.modules.iter().find(|m| !stated(m, alpha)) {
            None => Ok(Some(alpha)),
            Some(other) => Err(Error::file(
                self.files.path(),
                format!(
                    "scales its modules differently: alpha is {alpha} for `{}` and {} for `{}` at one rank; an adapter \
                     that is trained has one alpha",
                    first.key,
                    other.alpha.map_or("not stated".into(), |a| format!("{}", a / other.blocks as f32)),
                    other.key
                ),
            )),
        }
    }

    /// The layout of the adapter, without reading its values. With the linears of a model its modules must be among
    /// them, and are in their order.
    ///
    /// # Errors
    /// If a module is none of the linears or has other widths; if ranks or alphas differ.
    pub fn layout(&self, linears: Option<&[LinearLayout]>) -> Result<AdapterLayout> {
        let modules = self.ordered(linears)?;
        let Some(first) = modules.first() else {
            return Err(Error::file(self.files.path(), "holds no factors"));
        };
        if let Some(other) = modules.iter().find(|m| m.rank != first.rank) {
            return Err(Error::file(
                self.files.path(),
                format!(
                    "has modules of different ranks: {} for `{}`, {} for `{}`; an adapter that is trained has one rank. \
                     As part of the frozen network it can be used as it is",
                    first.rank, first.key, other.rank, other.key
                ),
            ));
        }
        let alpha = self.alpha()?.unwrap_or(first.rank as f32);
        let rank = first.rank;
        Ok(AdapterLayout { modules: modules.into_iter().map(|m| m.linear.clone()).collect(), rank, alpha })
    }

    /// The adapter, with one pair of factors for each linear of diffusers' layout. As [`layout`](Self::layout).
    ///
    /// # Errors
    /// As [`layout`](Self::layout); if a value is not finite.
    pub fn adapter(&self, linears: Option<&[LinearLayout]>) -> Result<Adapter> {
        let layout = self.layout(linears)?;
        let mut values = Vec::with_capacity(layout.len());
        for module in self.ordered(linears)? {
            values.extend(module.a.read_finite()?);
            let up = module.up.read_finite()?;
            let width = module.up.shape()[1];
            values.extend(up.chunks_exact(width).flat_map(|row| &row[module.columns.clone()]));
        }
        Ok(Adapter { layout: Arc::new(layout), values: Arc::new(values) })
    }

    /// The modules in the order of these linears, which must have all of them.
    fn ordered(&self, linears: Option<&[LinearLayout]>) -> Result<Vec<&Module>> {
        let Some(linears) = linears else { return Ok(self.modules.iter().collect()) };
        let mut left: BTreeMap<&str, &Module> =
            self.modules.iter().map(|m| (m.linear.name.as_str(), m)).collect();
        let mut ordered = Vec::with_capacity(left.len());
        for linear in linears {
            let Some(module) = left.remove(linear.name.as_str()) else { continue };
            let found = (module.linear.inputs, module.linear.outputs);
            if found != (linear.inputs, linear.outputs) {
                return Err(Error::shape(
                    format!("inputs and outputs of `{}` of {}", linear.name, self.files.path().display()),
                    (linear.inputs, linear.outputs),
                    found,
                ));
            }
            ordered.push(module);
        }
        if let Some(unknown) = left.keys().next() {
            let near = nearest(unknown, linears.iter().map(|l| l.name.as_str()));
            let hint = near.map_or(String::new(), |n| format!("; nearest: `{n}`"));
            let message = format!("{} modules are not in the model, e.g. `{unknown}`{hint}", left.len());
            return Err(Error::file(self.files.path(), message));
        }
        Ok(ordered)
    }

    /// How many linears of each kind it has factors for, in the order of the model.
    pub fn kinds(&self) -> Vec<(String, usize)> {
        super::pattern::count_kinds(self.modules.iter().map(|m| kind(&m.linear.name)))
    }
}

/// The order of the model for FLUX's linears; others follow by name.
fn order(name: &str) -> (bool, Option<(Place, usize)>, String) {
    let place = Place::of_diffusers(name);
    (place.is_none(), place, name.into())
}

/// The modules of a pair of factors, with factors of their own where `up` consists of blocks.
fn split(pair: &Factors, format: AdapterFormat) -> Result<Vec<Module>> {
    let rows: Vec<Range<usize>> = pair.parts.iter().map(|p| p.rows.clone()).collect();
    let rank = pair.rank();
    // UNO's files hold one pair for all parts by definition.
    let candidate = format == AdapterFormat::Kohya && rows.len() > 1;
    let found = if candidate { blocks(&pair.up.read(), rank, &rows) } else { None };
    let module = |part: usize, rank: usize, blocks: usize, a: TensorView, columns: Range<usize>| {
        let Part { name, rows } = &pair.parts[part];
        let linear = AdaptedLinear { name: name.clone(), inputs: a.shape()[1], outputs: rows.len() };
        let up = pair.up.rows(rows.clone())?;
        let key = pair.key.clone();
        Ok(Module { linear, rank, blocks, alpha: pair.alpha, a, up, columns, key })
    };
    let Some(parts) = found else {
        return (0..rows.len()).map(|part| module(part, rank, 1, pair.down.clone(), 0..rank)).collect();
    };
    let mut modules = Vec::new();
    let r = rank / parts.len();
    for (block, part) in parts.iter().enumerate() {
        let columns = block * r..(block + 1) * r;
        let a = pair.down.rows(columns.clone())?;
        let module = module(*part, r, parts.len(), a, columns)?;
        // A block of zeros in both factors stands for a part that has none.
        if module.a.read().iter().chain(&module.up.read()).any(|v| *v != 0.0) {
            modules.push(module);
        }
    }
    Ok(modules)
}
