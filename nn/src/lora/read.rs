//! An adapter file of any tool: what its names, shapes and configuration say.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    adapter::{Adapter, AdapterLayout},
    factors::{Factors, Module, is_power_of_two},
    folder,
    format::AdapterFormat,
    gather::{self, Gathered, Styles},
    header,
    names::{network_of, unknown_linear},
    pattern::{count_kinds, kind},
    peft::PeftConfig,
};
use crate::{
    error::{Error, Result},
    files::{TensorFiles, nearest},
    linears::LinearLayout,
    naming::{Names, Place},
};

/// An adapter file whose names and shapes have been understood.
#[derive(Debug)]
pub struct AdapterFile {
    files: Arc<TensorFiles>,
    /// Of the network that it is for.
    names: &'static Names,
    factors: Vec<Factors>,
    modules: Vec<Module>,
    styles: Styles,
    left_out: usize,
}

/// What a file says of one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct FileModule {
    /// In diffusers' names, with the widths that the factors have.
    pub linear: LinearLayout,
    /// Inner width of the factors.
    pub rank: usize,
    /// Of this linear: the branch is scaled by alpha / rank. The rank where the file says nothing.
    pub alpha: f32,
}

impl AdapterFile {
    /// Open a file, or a folder with one, in the names of any tool that is known, for a network whose linears have these
    /// names; only tensors whose names start with `under` are looked at. Where PEFT's `adapter_config.json` lies beside the file, it counts.
    ///
    /// # Errors
    /// If the file cannot be read, or holds anything but the two factors of linears and their scale; if a factor is
    /// missing, there twice, or of other axes than its partner; if two places state different scales or ranks; if there
    /// are factors of text encoders, too.
    pub fn open(path: &Path, under: &str, names: &'static Names) -> Result<Self> {
        let file = Self::open_transformer(path, under, names)?;
        match &file.left_out {
            0 => Ok(file),
            count => Err(Error::file(
                file.files.path(),
                format!(
                    "also holds {count} tensors of text encoders; only the transformer is adapted here. `graph-run \
                     adapter convert --drop-text-encoders` leaves them out"
                ),
            )),
        }
    }

    /// As [`open`](Self::open), but factors of text encoders are [left out](Self::left_out).
    ///
    /// # Errors
    /// As [`open`](Self::open), text encoders aside.
    pub fn open_transformer(path: &Path, under: &str, names: &'static Names) -> Result<Self> {
        let path = folder::file_in(path)?;
        let files = Arc::new(TensorFiles::open(&path)?);
        let Gathered { mut factors, styles, text_encoders } = gather::gather(&files, under, names)?;
        factors.sort_by_cached_key(|f| order(names, &f.parts[0].name));
        let mut modules = Vec::new();
        for pair in &factors {
            modules.extend(pair.modules()?);
        }
        let mut seen = BTreeMap::new();
        for module in &modules {
            if let Some(other) = seen.insert(&module.linear.name, &module.key) {
                let name = &module.linear.name;
                let message = format!("has factors for `{name}` twice, as `{other}` and as `{}`", module.key);
                return Err(Error::file(path, message));
            }
        }
        Ok(Self { files, names, factors, modules, styles, left_out: text_encoders })
    }

    /// The files that an adapter at `path` is read from: a folder counts whole, and beside a file PEFT's configuration does.
    pub fn files_at(path: &Path) -> Vec<PathBuf> {
        std::iter::once(path.to_owned()).chain(PeftConfig::file_beside(path)).collect()
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.files.path().to_owned()
    }

    /// The format that is written here in which it could have been written; nothing if its names are others.
    pub fn format(&self) -> Option<AdapterFormat> {
        self.styles.format()
    }

    /// How it names its tensors, for people: `kohya names`, or prefix, names and endings where no format has them so.
    pub fn names(&self) -> String {
        self.styles.to_string()
    }

    /// Number of tensors of text encoders, which are not read.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The strings of its header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.files.metadata()
    }

    pub(super) fn factors(&self) -> &[Factors] {
        &self.factors
    }

    /// The linears it has factors for, in the order of the model where they are the network's.
    pub fn modules(&self) -> Vec<FileModule> {
        let module = |m: &Module| FileModule {
            linear: m.linear.clone(),
            rank: m.rank,
            alpha: m.alpha.map_or(m.rank as f32, |alpha| alpha / m.blocks as f32),
        };
        self.modules.iter().map(module).collect()
    }

    /// Alpha that the adapter was trained with, where the file was written here and alpha / rank has gone into its
    /// factors.
    pub fn trained_alpha(&self) -> Option<f32> {
        let first = self.modules.first()?;
        let alpha: f32 = self.metadata().get(header::TRAINED_ALPHA)?.parse().ok()?;
        let rank = first.rank as f32;
        let plain = |m: &Module| m.rank == first.rank && m.alpha.is_none_or(|a| a == rank);
        // Only a power of two is multiplied in, and divided out again, without rounding.
        let exact = is_power_of_two(alpha / rank) && alpha / rank * rank == alpha;
        (exact && self.modules.iter().all(plain)).then_some(alpha)
    }

    /// Alpha of the adapter, if the file states one.
    ///
    /// # Errors
    /// If modules are scaled differently, unless their scales differ by powers of two: those go into B without rounding.
    pub fn alpha(&self) -> Result<Option<f32>> {
        if let Some(trained) = self.trained_alpha() {
            return Ok(Some(trained));
        }
        let Some(first) = self.modules.first() else { return Ok(None) };
        let Some(found) = first.alpha else { return Ok(None) };
        // Three times an alpha, rounded, does not always give it back when divided: the header has it as it was.
        let network = self.metadata().get(header::NETWORK_ALPHA).and_then(|a| a.parse().ok());
        let alpha = network.filter(|a| first.share(*a) == Some(1.0)).unwrap_or(found / first.blocks as f32);
        match self.modules.iter().find(|m| m.share(alpha).is_none()) {
            None => Ok(Some(alpha)),
            Some(other) => Err(Error::file(
                self.files.path(),
                format!(
                    "scales its modules differently: alpha is {alpha} for `{}` and {} for `{}` at one rank; an adapter \
                     that is trained or converted has one alpha. As part of the frozen network it can be used as it is",
                    first.key,
                    other.alpha.map_or("not stated".into(), |a| format!("{}", a / other.blocks as f32)),
                    other.key
                ),
            )),
        }
    }

    /// The layout of the adapter, without reading its values. With the linears of a model its modules must be among
    /// them, and are in their order; without, they must be linears of the network that it was opened for.
    ///
    /// # Errors
    /// If a module is none of the linears or has other widths; if ranks or alphas differ.
    pub fn layout(&self, linears: Option<&[LinearLayout]>) -> Result<AdapterLayout> {
        let modules = self.ordered(linears)?;
        let Some(first) = modules.first() else {
            return Err(Error::file(self.files.path(), "holds no factors"));
        };
        let first = first.0;
        if let Some((other, _)) = modules.iter().find(|(m, _)| m.rank != first.rank) {
            return Err(Error::file(
                self.files.path(),
                format!(
                    "has modules of different ranks: {} for `{}`, {} for `{}`; an adapter that is trained or converted \
                     has one rank. As part of the frozen network it can be used as it is",
                    first.rank, first.key, other.rank, other.key
                ),
            ));
        }
        let alpha = self.alpha()?.unwrap_or(first.rank as f32);
        let rank = first.rank;
        let linear = |(m, window): (&Module, Option<usize>)| LinearLayout { window, ..m.linear.clone() };
        let modules = modules.into_iter().map(linear).collect();
        Ok(AdapterLayout::of_factors(self.names, modules, rank, alpha))
    }

    /// The adapter, with one pair of factors for each linear of diffusers' layout. As [`layout`](Self::layout).
    ///
    /// # Errors
    /// As [`layout`](Self::layout); if a value is not finite.
    pub fn adapter(&self, linears: Option<&[LinearLayout]>) -> Result<Adapter> {
        let layout = self.layout(linears)?;
        let stated = self.alpha()?;
        let inside = self.trained_alpha().map_or(1.0, |alpha| alpha / layout.rank as f32);
        let mut values = Vec::with_capacity(layout.len());
        for (module, _) in self.ordered(linears)? {
            values.extend(module.a.read_finite()?);
            let up = module.up.read_finite()?;
            let width = module.up.shape()[1];
            // A power of two.
            let share = match stated {
                Some(_) if inside != 1.0 => 1.0 / inside,
                Some(alpha) => module.share(alpha).unwrap_or(1.0),
                None => 1.0,
            };
            for value in up.chunks_exact(width).flat_map(|row| &row[module.columns.clone()]) {
                let shared = value * share;
                if shared / share != *value {
                    let message = format!(
                        "`{}` holds {value}, and f32 cannot hold {share} times that",
                        module.up.name()
                    );
                    return Err(Error::file(self.files.path(), message));
                }
                values.push(shared);
            }
        }
        Ok(Adapter { layout: Arc::new(layout), values: values.into() })
    }

    /// The modules in the order of these linears, which must have all of them, and the sides of their windows.
    fn ordered(&self, linears: Option<&[LinearLayout]>) -> Result<Vec<(&Module, Option<usize>)>> {
        let Some(linears) = linears else {
            let one_pixel = |m: &Module| m.linear.name.ends_with(".conv_shortcut").then_some(1);
            let modules = self.known()?.into_iter();
            return Ok(modules.map(|m| (m, m.linear.window.or_else(|| one_pixel(m)))).collect());
        };
        let mut left: BTreeMap<&str, &Module> =
            self.modules.iter().map(|m| (m.linear.name.as_str(), m)).collect();
        let mut ordered = Vec::with_capacity(left.len());
        for linear in linears {
            let Some(module) = left.remove(linear.name.as_str()) else { continue };
            let found = (module.linear.inputs, module.linear.outputs);
            if let Some(of) = of_other_text(&linear.name, module.linear.inputs, linear.inputs) {
                let message = format!(
                    "was trained for another model: its `{}` takes text {} wide, {of}, and this network's is {} wide",
                    linear.name, module.linear.inputs, linear.inputs
                );
                return Err(Error::file(self.files.path(), message));
            }
            if found != (linear.inputs, linear.outputs) {
                return Err(Error::shape(
                    format!("inputs and outputs of `{}` of {}", linear.name, self.files.path().display()),
                    (linear.inputs, linear.outputs),
                    found,
                ));
            }
            let window = module.linear.window;
            if window.unwrap_or(1) != linear.window.unwrap_or(1) {
                return Err(Error::shape(
                    format!("side of the windows of `{}` of {}", linear.name, self.files.path().display()),
                    format!("{:?}", linear.window),
                    format!("{window:?}"),
                ));
            }
            ordered.push((module, linear.window));
        }
        if let Some((unknown, module)) = left.iter().next() {
            let spelled =
                if module.key == **unknown { String::new() } else { format!(" (`{}`)", module.key) };
            let (why, count) = (not_adapted(self.names, unknown, linears), left.len());
            let more = if count > 1 { format!(" ({} more)", count - 1) } else { String::new() };
            let message = format!("has factors for `{unknown}`{spelled}, {why}{more}");
            return Err(Error::file(self.files.path(), message));
        }
        Ok(ordered)
    }

    /// The modules, all of which must be linears of the network: other names nobody would read.
    fn known(&self) -> Result<Vec<&Module>> {
        let name = |m: &Module| m.linear.name.clone();
        let known = |m: &&Module| {
            let name = &m.linear.name;
            self.names.of_diffusers(name).is_some() || self.names.outside_of_diffusers(name).is_some()
        };
        match self.modules.iter().find(|m| !known(m)) {
            None => Ok(self.modules.iter().collect()),
            Some(other) => {
                let name = name(other);
                let message =
                    format!("has factors for `{name}`, which {}", unknown_linear(self.names, &name));
                Err(Error::file(self.files.path(), message))
            }
        }
    }

    /// How many linears of each kind it has factors for, in the order of the model.
    pub fn kinds(&self) -> Vec<(String, usize)> {
        count_kinds(self.modules.iter().map(|m| kind(&m.linear.name)))
    }
}

/// Of keys and values of text in a U-Net: the model whose text is as wide as an adapter's, where the network's is not.
fn of_other_text(name: &str, found: usize, wanted: usize) -> Option<&'static str> {
    let of_text = [".attn2.to_k", ".attn2.to_v"].iter().any(|end| name.ends_with(end));
    match (found, of_text && found != wanted) {
        (768, true) => Some("that of Stable Diffusion 1"),
        (1024, true) => Some("that of Stable Diffusion 2"),
        (1280, true) => Some("that of SDXL's refiner"),
        (2048, true) => Some("that of SDXL"),
        _ => None,
    }
}

/// Why a linear that a file has factors for is none of these.
pub(super) fn not_adapted(names: &Names, name: &str, linears: &[LinearLayout]) -> String {
    let own = linears.iter().find_map(|linear| network_of(&linear.name));
    if let (Some(other), Some(own)) = (network_of(name).filter(|other| Some(*other) != own), own) {
        return format!(
            "which is a linear of {other}, and this network is {own}: the adapter was trained for another model"
        );
    }
    if names.outside_of_diffusers(name).is_some() {
        let network = names.short;
        return format!("which is outside the blocks of {network}; within them alone adapters are used here");
    }
    let near = nearest(name, linears.iter().map(|l| l.name.as_str()));
    let hint = near.map_or(String::new(), |near| format!("; nearest: `{near}`"));
    format!("which is not in the model{hint}")
}

/// The order of the model for its linears; others follow by name.
fn order(names: &'static Names, name: &str) -> (bool, Option<(Place, usize)>, String) {
    let place = names.of_diffusers(name);
    (place.is_none(), place, name.into())
}
