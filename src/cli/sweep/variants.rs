//! The variants of a sweep, loaded, compared and joined.

use std::{collections::HashMap, path::Path, sync::Arc};

use prefgraph_ops::Outside;

use crate::{
    cli::{
        Failure, args,
        prepare::{self, Prepared},
    },
    graph::{Endpoint, Graph, NodeId},
    plan::{Plan, PlanOptions},
    registry::Registry,
    spec::{Loaded, Overs, RunSettings, nodes},
    sweep::{Joined, Part, join},
};

/// One variant, as it would run alone.
pub(super) struct Variant {
    /// From 1.
    pub number: u32,
    /// Its settings with their values.
    pub values: Vec<(String, String)>,
    /// The name of its folder in that of the sweep.
    pub folder: String,
    pub loaded: Loaded,
    /// The plan of a run of its own.
    pub plan: Plan,
    /// The settings of every node, in the order of its graph.
    settings: Vec<String>,
}

impl Variant {
    pub fn graph(&self) -> &Graph {
        &self.loaded.graph
    }

    /// As people read it: `variant 3 (fuse.tau=0.1, fuse.gamma=0)`.
    pub fn name(&self) -> String {
        let values: Vec<String> = self.values.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("variant {} ({})", self.number, values.join(", "))
    }

    fn part(&self) -> Part<'_> {
        Part { number: self.number, graph: &self.loaded.graph, settings: &self.settings }
    }
}

/// All variants, and their common graph.
pub(super) struct Sweep {
    pub overs: Overs,
    pub variants: Vec<Variant>,
    pub joined: Joined,
    /// Has the loss the same settings in all variants? Else their losses cannot be compared.
    pub one_loss: bool,
    /// The common graph with its plan; `resolved` is that of the first variant.
    pub all: Prepared,
}

/// Has the loss the same settings in all variants?
fn has_one_loss(variants: &[Variant]) -> bool {
    let says = |variant: &Variant| -> Vec<String> {
        let of = |at: &Endpoint| variant.settings[at.node.index()].clone();
        variant.graph().losses().iter().map(of).collect()
    };
    let mut all = variants.iter().map(says);
    let first = all.next();
    all.all(|other| Some(&other) == first.as_ref())
}

/// Load and plan what the arguments name.
pub(super) fn load(args: &args::Graph, over: &[String], registry: &Registry) -> Result<Sweep, Failure> {
    let overs = Overs::parse(over)?;
    load_some(args, overs, registry, usize::MAX)
}

/// The same with the first so many variants only.
pub(super) fn load_some(
    args: &args::Graph,
    overs: Overs,
    registry: &Registry,
    most: usize,
) -> Result<Sweep, Failure> {
    if overs.is_empty() {
        return Err(Failure::new(
            "nothing is varied: say what, as in `--over fuse.tau=0.05,0.1,0.2 --over fuse.gamma=0,0.3`",
        ));
    }
    let Some(path) = args.graph.as_deref().filter(|path| !path.as_os_str().is_empty()) else {
        return Err(Failure::new("no graph was named"));
    };
    let mut loaded = Vec::new();
    for variant in 0..overs.len().min(most) {
        loaded.push(overs.load(variant, path, &args.all_sets(), registry)?);
    }
    let settings: Vec<Vec<String>> = loaded.iter().map(settings).collect();
    let parts: Vec<Part<'_>> = (1..)
        .zip(loaded.iter().zip(&settings))
        .map(|(number, (loaded, settings))| Part { number, graph: &loaded.graph, settings })
        .collect();
    let name = loaded[0].graph.name.clone();
    let mut joined = join(&name, &parts).map_err(Failure::new)?;
    check_same(&overs, &loaded)?;
    check_data(&overs, &loaded, &joined)?;
    check_trained(&overs, &loaded, &joined)?;

    let run = loaded[0].run.clone();
    let mut graph = std::mem::take(&mut joined.graph);
    let cache = loaded[0].attach_cache(&mut graph, |id| named(&loaded, &joined, id))?;
    joined.graph = graph;
    for (variant, loaded) in loaded.iter_mut().enumerate() {
        joined.lend(variant, &mut loaded.graph);
    }
    let (options, threads, fewer) = prepare::options(&run);
    let run = RunSettings { threads, ..run };
    let mut variants = Vec::new();
    let digits = loaded.len().to_string().len();
    for (variant, (loaded, settings)) in loaded.into_iter().zip(settings).enumerate() {
        let values = overs.values_of(&loaded);
        let plan = Plan::new(&loaded.graph, &options)
            .map_err(|e| loaded.error_at(&e.node, e.input.as_deref(), &e.to_string()))?;
        let number = variant as u32 + 1;
        let folder = format!("{number:0digits$}-{}", folder_name(&values));
        variants.push(Variant { number, values, folder, loaded, plan, settings });
    }
    let graph = Arc::new(std::mem::take(&mut joined.graph));
    let plan = plan(&graph, &options, &variants)?;
    let mut notes = prepare::notes(&graph, &plan, |node| node.turn <= 1);
    notes.extend(fewer.map(|fewer| format!("run: {fewer}")));
    let first = &variants[0].loaded;
    let settings = first.settings();
    notes.extend(prepare::other_steps(&first.graph, &settings, first.run.steps));
    let cache = cache.map(|cache| {
        let status = cache.status();
        (cache, status)
    });
    let (resolved, sets, args) = (first.resolved.clone(), first.sets.clone(), args.clone());
    let all = Prepared { graph, plan, run, resolved, sets, notes, settings, args, cache };
    let one_loss = has_one_loss(&variants);
    Ok(Sweep { overs, variants, joined, one_loss, all })
}

/// The plan of the common graph. An error is shown where the file states the node that is at fault.
fn plan(graph: &Graph, options: &PlanOptions, variants: &[Variant]) -> Result<Plan, Failure> {
    Plan::new(graph, options).map_err(|e| {
        let (node, number) = e.node.split_once('#').unwrap_or((&e.node, "1"));
        let variant = variants.iter().find(|v| v.number.to_string() == number).unwrap_or(&variants[0]);
        Failure::from(variant.loaded.error_at(node, e.input.as_deref(), &e.to_string()))
    })
}

impl Sweep {
    /// The common graph of some variants, by index, with its plan.
    pub fn joined(&self, some: &[usize]) -> Result<(Joined, Arc<Graph>, Plan), Failure> {
        let parts: Vec<Part<'_>> = some.iter().map(|variant| self.variants[*variant].part()).collect();
        let mut joined = join(&self.all.graph.name, &parts).map_err(Failure::new)?;
        let graph = Arc::new(std::mem::take(&mut joined.graph));
        let plan = plan(&graph, self.all.plan.options(), &self.variants)?;
        Ok((joined, graph, plan))
    }
}

/// The operator and the settings of every node, in the order of the graph.
fn settings(loaded: &Loaded) -> Vec<String> {
    let mut stated: HashMap<String, String> = nodes(&loaded.resolved)
        .into_iter()
        .map(|(id, op, settings)| (id, format!("{op} {settings}")))
        .collect();
    loaded.graph.nodes().map(|(_, node)| stated.remove(&node.id).unwrap_or_default()).collect()
}

/// What the common graph calls a node of the variants: one name for every copy.
fn named(loaded: &[Loaded], joined: &Joined, id: &str) -> Vec<String> {
    let Ok(node) = loaded[0].graph.find(id) else { return vec![id.to_owned()] };
    let copies = joined.classes[node.index()].iter().enumerate().filter(|(variant, first)| variant == *first);
    match joined.is_shared(node) {
        true => vec![id.to_owned()],
        false => copies.map(|(variant, _)| format!("{id}#{}", variant + 1)).collect(),
    }
}

/// Are two of them one?
fn check_same(overs: &Overs, loaded: &[Loaded]) -> Result<(), Failure> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (variant, loaded) in loaded.iter().enumerate() {
        if let Some(first) = seen.insert(&loaded.resolved, variant) {
            return Err(overs.same(first, variant).into());
        }
    }
    Ok(())
}

/// The axis that tells a node's classes apart; the first of several.
fn axis_of(overs: &Overs, joined: &Joined, node: NodeId) -> usize {
    let classes = &joined.classes[node.index()];
    let picks: Vec<Vec<usize>> = (0..classes.len()).map(|variant| overs.picks(variant)).collect();
    let differ = |a: usize, b: usize, axis: usize| {
        classes[a] != classes[b] && (0..picks[a].len()).all(|i| (i == axis) == (picks[a][i] != picks[b][i]))
    };
    let tells =
        |axis: &usize| (0..classes.len()).any(|a| (a + 1..classes.len()).any(|b| differ(a, b, *axis)));
    (0..overs.axes().len()).find(tells).unwrap_or(0)
}

/// All variants see the same data.
fn check_data(overs: &Overs, loaded: &[Loaded], joined: &Joined) -> Result<(), Failure> {
    for (id, node) in loaded[0].graph.nodes().filter(|(id, _)| !joined.is_shared(*id)) {
        let reads = node.op.external().iter().any(|e| matches!(e.what, Outside::Samples(_)));
        if reads || node.op.samples().is_some() {
            let message =
                format!("this reaches the data: `{}` (`{}`) would read others", node.id, node.op.name());
            let help = "variants of one sweep see the same samples in the same order, which makes them comparable and is what they \
                        share; compare data in runs of their own";
            return Err(overs.error(axis_of(overs, joined, id), &message, "varied here", help).into());
        }
    }
    Ok(())
}

/// Every axis changes what is trained.
fn check_trained(overs: &Overs, loaded: &[Loaded], joined: &Joined) -> Result<(), Failure> {
    let graph = &loaded[0].graph;
    let trained: Vec<NodeId> = graph.carries().iter().map(|carry| carry.next.node).collect();
    let picks: Vec<Vec<usize>> = (0..loaded.len()).map(|variant| overs.picks(variant)).collect();
    for (axis, (names, _)) in overs.axes().into_iter().enumerate() {
        let alone = |a: usize, b: usize| (0..picks[a].len()).all(|i| i == axis || picks[a][i] == picks[b][i]);
        let shared = (0..loaded.len()).find_map(|a| {
            let same = |b: &usize| {
                alone(a, *b)
                    && trained.iter().all(|node| {
                        let classes = &joined.classes[node.index()];
                        classes[a] == classes[*b]
                    })
            };
            (a + 1..loaded.len()).find(same)
        });
        if shared.is_some() {
            let message = format!("`{}` changes nothing of what is trained", names.join("` and `"));
            let help = "all of its variants would be one and the same adapter; vary what the loss or the update depends on";
            return Err(overs.error(axis, &message, "varied here", help).into());
        }
    }
    Ok(())
}

/// Settings with their values as a part of a file's name: by their last names where those differ.
fn folder_name(values: &[(String, String)]) -> String {
    const LONGEST: usize = 80;
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let unique = |name: &str| values.iter().filter(|(other, _)| last(other) == last(name)).count() == 1;
    // Of a path the last part: it is the same wherever the path begins.
    let short = |value: &str| value.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let shown = |(name, value): &(String, String)| {
        let value = short(value);
        format!("{}={value}", if unique(name) { last(name) } else { name.clone() })
    };
    let safe = |c: char| if c.is_alphanumeric() || "._-=,+".contains(c) { c } else { '_' };
    let name: String = values.iter().map(shown).collect::<Vec<_>>().join(",").chars().map(safe).collect();
    name.chars().take(LONGEST).collect()
}

/// Where a graph's run goes if nobody says.
pub(super) fn default_folder(graph: &Path) -> Result<std::path::PathBuf, Failure> {
    Ok(Path::new("runs").join(format!("{}-sweep", crate::spec::name(graph)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_by_the_last_names_of_settings_where_they_differ() {
        let named = |all: &[(&str, &str)]| {
            folder_name(&all.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect::<Vec<_>>())
        };
        assert_eq!(named(&[("fuse.tau", "0.05"), ("fuse.gamma", "-1e-3")]), "tau=0.05,gamma=-1e-3");
        assert_eq!(named(&[("a.lr", "1"), ("b.lr", "2")]), "a.lr=1,b.lr=2");
        assert_eq!(named(&[("lora.from", "../x/[y] z")]), "from=_y__z");
    }
}
