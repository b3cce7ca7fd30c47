//! Variants of a graph: lists of values on the command line, `node.setting=V1,V2,...`.
//!
//! One list is an axis, several give their product. Settings that go together stand in one list, with semicolons between them:
//! `loss.objective=dpo,ipo; loss.beta=2000,0.1` is two variants, not four.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use prefgraph_ops::words::count;

use super::{
    Loaded, build, merge, read, scan,
    set::{self, Setting},
    source::{At, Sources, Span, SpecError, VARIED},
};
use crate::registry::Registry;

/// More variants than this are a typo.
const MOST: usize = 256;

/// Settings whose values go together, and their values.
#[derive(Clone, Debug)]
struct Axis {
    settings: Vec<Setting>,
    /// By setting, its values.
    values: Vec<Vec<At<String>>>,
}

impl Axis {
    fn len(&self) -> usize {
        self.values.first().map_or(0, Vec::len)
    }
}

/// Everything that is varied. Variants are numbered from 0; the last list varies fastest.
#[derive(Clone, Debug)]
pub struct Overs {
    sources: Sources,
    axes: Vec<Axis>,
}

impl Overs {
    /// Read the lists.
    ///
    /// # Errors
    /// If one is malformed or varies what belongs to the whole run, if a setting is varied twice, or if there are too many variants.
    pub fn parse(texts: &[String]) -> Result<Self, Box<SpecError>> {
        let mut sources = Sources::default();
        let mut axes = Vec::new();
        for text in texts {
            let file = sources.add(VARIED, text.as_str(), Path::new("."));
            axes.push(axis(&sources, file)?);
        }
        let overs = Self { sources, axes };
        overs.check_names()?;
        overs.check_number()?;
        Ok(overs)
    }

    fn settings(&self) -> impl Iterator<Item = &Setting> {
        self.axes.iter().flat_map(|axis| &axis.settings)
    }

    fn check_names(&self) -> Result<(), Box<SpecError>> {
        let mut seen: HashMap<String, Span> = HashMap::new();
        for setting in self.settings() {
            let (name, span) = (setting.name(), setting.field.span);
            if let Some(help) = whole_run(setting) {
                let error =
                    self.sources.error(format!("`{name}` cannot be varied"), span, "not of a variant");
                return Err(error.help(help));
            }
            if let Some(first) = seen.insert(name.clone(), span) {
                let error = self.sources.error(format!("`{name}` is varied twice"), span, "again here");
                return Err(self.sources.also(error, first, "first here"));
            }
        }
        Ok(())
    }

    fn check_number(&self) -> Result<(), Box<SpecError>> {
        let count = self.axes.iter().map(Axis::len).fold(1usize, usize::saturating_mul);
        match self.axes.last() {
            Some(axis) if count > MOST => {
                let message = format!("that is {count} variants; a sweep has at most {MOST}");
                Err(self.sources.error(message, axis.settings[0].field.span, "the product of all lists"))
            }
            _ => Ok(()),
        }
    }

    /// How many variants there are.
    pub fn len(&self) -> usize {
        self.axes.iter().map(Axis::len).product()
    }

    /// Is nothing varied?
    pub fn is_empty(&self) -> bool {
        self.axes.is_empty()
    }

    /// By axis: the names of its settings, and its values as people read them.
    pub fn axes(&self) -> Vec<(Vec<String>, Vec<String>)> {
        let axis = |axis: &Axis| {
            let shown = |at: usize| {
                let values = axis.values.iter().map(|values| plain(&values[at].value));
                values.collect::<Vec<_>>().join(" ")
            };
            (axis.settings.iter().map(Setting::name).collect(), (0..axis.len()).map(shown).collect())
        };
        self.axes.iter().map(axis).collect()
    }

    /// By axis: which of its values a variant has.
    pub fn picks(&self, variant: usize) -> Vec<usize> {
        let mut rest = variant;
        let mut picks: Vec<usize> = self
            .axes
            .iter()
            .rev()
            .map(|axis| {
                let pick = rest % axis.len().max(1);
                rest /= axis.len().max(1);
                pick
            })
            .collect();
        picks.reverse();
        picks
    }

    /// The settings of a variant with their values as people read them, as the lists state them: paths may be relative.
    pub fn values(&self, variant: usize) -> Vec<(String, String)> {
        let picked = self.axes.iter().zip(self.picks(variant));
        let of = |(axis, pick): (&Axis, usize)| {
            let pairs = axis.settings.iter().zip(&axis.values);
            pairs.map(|(setting, values)| (setting.name(), plain(&values[pick].value))).collect::<Vec<_>>()
        };
        picked.flat_map(of).collect()
    }

    /// Load a variant of the graph file at `path`, without a cache: [`Loaded::attach_cache`] puts it before the graph that runs.
    ///
    /// # Errors
    /// As [`load`](super::load); if a setting is both set and varied.
    pub fn load(
        &self,
        variant: usize,
        path: &Path,
        sets: &[String],
        registry: &Registry,
    ) -> Result<Loaded, Box<SpecError>> {
        let mut sources = self.sources.clone();
        let (text, folder) = read(path)?;
        let file = sources.add(path.display().to_string(), text, folder);
        let mut merged = merge::merge(&mut sources, file, Some(path))?;
        let sets = set::apply(&mut sources, &mut merged, sets, Path::new("."), registry)?;
        self.check_sets(&sets)?;
        let mut all = sets;
        for (axis, pick) in self.axes.iter().zip(self.picks(variant)) {
            for (setting, values) in axis.settings.iter().zip(&axis.values) {
                all.push(set::assign(&sources, &mut merged, setting, &values[pick], registry)?);
            }
        }
        build(sources, merged, all, registry)
    }

    /// The varied settings of a variant that was loaded, with their values as people read them; paths are absolute.
    pub fn values_of(&self, loaded: &Loaded) -> Vec<(String, String)> {
        let varied = self.settings().count();
        let sets = loaded.sets.iter().skip(loaded.sets.len().saturating_sub(varied));
        sets.filter_map(|set| set.split_once('='))
            .map(|(name, value)| (name.to_owned(), plain(value)))
            .collect()
    }

    /// The lists so that they mean the same in every folder; `sets` are those of every variant.
    pub fn anywhere(&self, sets: &[&[String]]) -> Vec<String> {
        let with = |axis: usize, pick: usize| {
            (0..sets.len()).find(|variant| self.picks(*variant).get(axis) == Some(&pick)).map(|at| sets[at])
        };
        let value = |axis: usize, setting: &Setting, pick: usize| {
            let name = format!("{}=", setting.name());
            let found = with(axis, pick)?.iter().rev().find_map(|set| set.strip_prefix(&name))?;
            Some(found.to_owned())
        };
        let list = |axis: usize, setting: &Setting| {
            let values = (0..self.axes[axis].len()).filter_map(|pick| value(axis, setting, pick));
            format!("{}={}", setting.name(), values.collect::<Vec<_>>().join(","))
        };
        let one = |(at, axis): (usize, &Axis)| {
            axis.settings.iter().map(|setting| list(at, setting)).collect::<Vec<_>>().join("; ")
        };
        self.axes.iter().enumerate().map(one).collect()
    }

    fn check_sets(&self, sets: &[String]) -> Result<(), Box<SpecError>> {
        let set: HashSet<&str> = sets.iter().filter_map(|set| Some(set.split_once('=')?.0)).collect();
        match self.settings().find(|setting| set.contains(setting.name().as_str())) {
            Some(setting) => {
                let message = format!("`{}` is set and varied at once", setting.name());
                let error = self.sources.error(message, setting.field.span, "varied here");
                Err(error.help("leave out its `--set`, or this list"))
            }
            None => Ok(()),
        }
    }

    /// Two variants that are the same.
    pub fn same(&self, first: usize, second: usize) -> Box<SpecError> {
        let (a, b) = (self.picks(first), self.picks(second));
        let differ = (0..self.axes.len()).find(|axis| a[*axis] != b[*axis]).unwrap_or(0);
        // Values of several settings stand in several lists, of which the first is enough.
        let at = |pick: usize| self.axes[differ].values[0][pick].span;
        let message = format!("variants {} and {} are the same", first + 1, second + 1);
        let error = self.sources.error(message, at(b[differ]), "means the same");
        self.sources
            .also(error, at(a[differ]), "as this")
            .help("a variant is trained once: leave one of them out")
    }

    /// An error about what an axis varies.
    pub fn error(&self, axis: usize, message: &str, label: &str, help: &str) -> Box<SpecError> {
        let setting = &self.axes[axis].settings[0];
        let span = Span { start: setting.node.span.start, ..setting.field.span };
        self.sources.error(message, span, label).help(help)
    }
}

/// Why a setting is not one of a variant.
fn whole_run(setting: &Setting) -> Option<String> {
    let name = setting.name();
    match (setting.node.value.as_str(), setting.field.value.as_str()) {
        ("run", "seed") => Some(
            "all variants see the same data and draw the same numbers: that makes them comparable, and is what they share; \
             --seed sets the seed of all"
                .into(),
        ),
        ("run" | "cache", _) => {
            Some(format!("all variants are one run: `--set {name}=...` sets it for all of them"))
        }
        _ => None,
    }
}

/// A value without the quotes around a text.
fn plain(value: &str) -> String {
    super::text::read::<String>(value).unwrap_or_else(|_| value.to_owned())
}

fn axis(sources: &Sources, file: usize) -> Result<Axis, Box<SpecError>> {
    let text = sources.text(file);
    let at = |start: usize, part: &str| Span { file, start, end: start + part.len() };
    let (mut settings, mut values): (Vec<Setting>, Vec<Vec<At<String>>>) = (Vec::new(), Vec::new());
    for part in scan::split(text, ';') {
        let whole = &text[part.clone()];
        let start = part.start + whole.len() - whole.trim_start().len();
        let whole = whole.trim();
        let named = whole.split_once('=').and_then(|(path, list)| {
            let (node, field) = path.trim_end().split_once('.')?;
            Some((node, field, path.len() + 1, list))
        });
        let Some((node, field, list_at, list)) = named else {
            let error = sources.error(
                format!("`{whole}` varies nothing"),
                at(start, whole),
                "not `node.setting=V1,V2`",
            );
            return Err(error.help("as in `--over fuse.tau=0.05,0.1,0.2 --over fuse.gamma=0,0.3`"));
        };
        settings.push(Setting {
            node: At { value: node.to_owned(), span: at(start, node) },
            field: At { value: field.to_owned(), span: at(start + node.len() + 1, field) },
        });
        let mut own = Vec::new();
        for range in scan::split(list, ',') {
            let value = &list[range.clone()];
            let value_at = start + list_at + range.start + value.len() - value.trim_start().len();
            let value = value.trim();
            if value.is_empty() {
                let place = at((start + list_at + range.start).saturating_sub(1), "=");
                let error =
                    sources.error(format!("`{node}.{field}` has an empty value"), place, "nothing here");
                return Err(error.help("write `\"\"` for an empty text"));
            }
            own.push(At { value: value.to_owned(), span: at(value_at, value) });
        }
        values.push(own);
    }
    let lengths = |i: usize| format!("`{}` has {}", settings[i].name(), count(values[i].len(), "value"));
    if let Some(other) = (1..values.len()).find(|i| values[*i].len() != values[0].len()) {
        let message = format!("{} and {}", lengths(0), lengths(other));
        let error = sources.error(message, settings[other].field.span, "as many are needed");
        let error = sources.also(error, settings[0].field.span, "as here");
        return Err(error.help("settings with a semicolon between them go together, value by value; for their product repeat `--over`"));
    }
    Ok(Axis { settings, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overs(texts: &[&str]) -> Result<Overs, Box<SpecError>> {
        Overs::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn several_lists_give_their_product_and_a_semicolon_pairs_them() {
        let found = overs(&["a.x=1,2", "b.y = 0 , -1e-3; c.z=\"p,q\",[1,2]"]).unwrap();
        assert_eq!(found.len(), 4);
        assert_eq!(found.picks(1), [0, 1]);
        assert_eq!(found.picks(2), [1, 0]);
        let values: Vec<String> = found.values(3).into_iter().map(|(n, v)| format!("{n} {v}")).collect();
        assert_eq!(values, ["a.x 2", "b.y -1e-3", "c.z [1,2]"]);
        assert_eq!(
            found.axes()[1],
            (vec!["b.y".into(), "c.z".into()], vec!["0 p,q".into(), "-1e-3 [1,2]".into()])
        );
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_stands() {
        for (texts, message, place) in [
            (&["tau"][..], "varies nothing", "tau"),
            (&["fuse.tau="], "empty value", "="),
            (&["fuse.tau=1,,2"], "empty value", ","),
            (&["fuse.tau=1,2;fuse.gamma=1"], "`fuse.tau` has 2 values and `fuse.gamma` has 1 value", "gamma"),
            (&["fuse.tau=1", "fuse.tau=2"], "varied twice", "tau"),
            (&["run.seed=0,1"], "`run.seed` cannot be varied", "seed"),
            (&["run.steps=1,2"], "`run.steps` cannot be varied", "steps"),
        ] {
            let error = overs(texts).unwrap_err();
            assert!(error.message().contains(message), "{}", error.message());
            assert_eq!(error.places()[0].1, place, "{texts:?}");
        }
        let list = (0..20).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let error = overs(&[&format!("a.x={list}"), &format!("a.y={list}")]).unwrap_err();
        assert!(error.message().contains("400 variants"), "{}", error.message());
    }
}
