//! Whether a graph fits into the memory of the host and of its GPU, and what would make it fit.

use super::{
    Failure, args, device,
    prepare::{Prepared, prepare},
    system,
};
use crate::{
    plan::{Memory, Place, Plan},
    registry::Registry,
};

/// Settings that make a graph smaller without changing what it learns from, those that cost least first.
const SAVINGS: &[(&str, &str)] = &[
    ("packing", "streamed"),
    ("checkpointing", "selective"),
    ("checkpointing", "blocks"),
    ("ahead", "0"),
    ("compute", "bf16"),
    ("lanes", "1"),
];

/// The same for the memory of a GPU, to which weights come over the bus where they are streamed.
const GPU_SAVINGS: &[(&str, &str)] = &[
    ("checkpointing", "selective"),
    ("checkpointing", "blocks"),
    ("compute", "bf16"),
    ("packing", "streamed"),
    ("lanes", "1"),
];

/// The last resort, which changes what is learned: a smaller batch least, since more micro-batches make up for it.
const CUTS: &[(&str, &str)] = &[("batch", "1"), ("rank", "16"), ("rank", "8"), ("rank", "4")];

/// Bytes of memory of the GPU of a plan, where they are known.
///
/// # Errors
/// If its memory is stated and the graph has none.
pub(super) fn room(args: &args::Plan, prepared: &Prepared) -> Result<Option<u64>, Failure> {
    match (args.gpu_memory, prepared.plan.options().gpu) {
        (Some(_), None) => Err(Failure::new(
            "--gpu-memory is the memory of a GPU, and this graph's networks run on the processor: add --device cuda:0",
        )),
        (Some(room), Some(_)) => Ok(Some(room)),
        (None, _) => Ok(device::memory(&prepared.run.device)),
    }
}

/// Refuse a graph that needs more memory than the host has, or than its GPU has where that is known.
///
/// # Errors
/// What it needs, what there is, and which settings need less.
pub(super) fn check(prepared: &Prepared, gpu: Option<u64>, registry: &Registry) -> Result<(), Failure> {
    if let Some(there) = system::machine_memory() {
        check_host(prepared, there, registry)?;
    }
    match (gpu, gpu_memory(&prepared.plan)) {
        (Some(there), Some((place, memory))) => check_gpu(prepared, place, memory, there, registry),
        _ => Ok(()),
    }
}

/// The GPU of a plan, and what it needs there.
pub(super) fn gpu_memory(plan: &Plan) -> Option<(Place, &Memory)> {
    let gpu = plan.memory_by_place().iter().find(|(place, _)| *place != Place::Cpu)?;
    Some((gpu.0, &gpu.1))
}

/// The same for people.
pub(super) fn on_gpu(plan: &Plan) -> Option<(Place, String)> {
    gpu_memory(plan).map(|(place, memory)| (place, system::bytes(memory.peak as u64)))
}

fn check_host(prepared: &Prepared, there: u64, registry: &Registry) -> Result<(), Failure> {
    match prepared.fill_bytes().filter(|need| *need > there) {
        Some(need) => Err(Failure::new(format!(
            "filling the cache needs {} of memory, and there are {}: cache fewer nodes at first, or fill it on \
             another machine",
            system::bytes(need),
            system::bytes(there)
        ))),
        None => fits_host(prepared, there, registry),
    }
}

fn fits_host(prepared: &Prepared, there: u64, registry: &Registry) -> Result<(), Failure> {
    let Memory { peak, resident, cells, ahead, process, .. } = *prepared.plan.memory();
    if peak as u64 <= there {
        return Ok(());
    }
    let size = |bytes: usize| system::bytes(bytes as u64);
    let [need, has] = told_apart(peak as u64, there);
    let message = format!(
        "this graph needs {need} of memory (weights {}, carried {}, made ahead {}, the process itself {}), and there are {has}",
        size(resident),
        size(cells),
        size(ahead),
        size(process),
    );
    let remedies = Remedies { prepared, registry, there, peak: |plan| host_peak(plan, process) };
    Err(Failure::new(
        message + &remedies.listed(SAVINGS, "choose smaller pictures, or an adapter with fewer targets"),
    ))
}

/// What a plan needs of the host's memory if the process itself holds this much. What it holds grows with every graph that is prepared to try
/// a setting: that is no part of what the setting needs.
fn host_peak(plan: &Plan, process: usize) -> usize {
    let Memory { peak, process: held, .. } = *plan.memory();
    peak.saturating_sub(held).saturating_add(process)
}

fn check_gpu(
    prepared: &Prepared,
    place: Place,
    memory: &Memory,
    there: u64,
    registry: &Registry,
) -> Result<(), Failure> {
    let Memory { peak, resident, cells, queues, ahead, process, .. } = *memory;
    if peak as u64 <= there {
        return Ok(());
    }
    let passes = peak.saturating_sub(prefgraph_nn::size::sum([resident, cells, queues, ahead, process]));
    let size = |bytes: usize| system::bytes(bytes as u64);
    let [need, has] = told_apart(peak as u64, there);
    let message = format!(
        "this graph needs {need} of {place}'s memory (weights {}, adapter and optimiser {}, passes {}, workspaces {}, made ahead {}, \
         the driver about {}), and {place} has {has}",
        size(resident),
        size(cells),
        size(passes),
        size(queues),
        size(ahead),
        size(process),
    );
    let peak = |plan: &Plan| gpu_memory(plan).map_or(0, |(_, memory)| memory.peak);
    let remedies = Remedies { prepared, registry, there, peak };
    Err(Failure::new(
        message
            + &remedies.listed(
                GPU_SAVINGS,
                "choose smaller pictures, an adapter with fewer targets, or --device cpu",
            ),
    ))
}

/// Two amounts with as many digits as tell them apart.
fn told_apart(need: u64, there: u64) -> [String; 2] {
    let both = [need, there].map(system::bytes);
    match both[0] == both[1] {
        true => [need, there].map(|bytes| format!("{bytes} bytes")),
        false => both,
    }
}

/// What would make a graph fit into the memory of a place.
struct Remedies<'a, P: Fn(&Plan) -> usize> {
    prepared: &'a Prepared,
    registry: &'a Registry,
    /// Bytes that the place has.
    there: u64,
    /// Bytes of it that a plan needs.
    peak: P,
}

impl<P: Fn(&Plan) -> usize> Remedies<'_, P> {
    /// What each of the savings would leave, and with which the graph would fit: of those that leave what is learned as it is, if they are enough.
    /// `otherwise` is what else can be done.
    fn listed(&self, free: &[(&str, &str)], otherwise: &str) -> String {
        let Self { prepared, there, peak, .. } = self;
        let need = peak(&prepared.plan) as u64;
        // A saving that no digit shows is none, unless it is enough.
        let helps = |peak: u64| peak <= *there || peak < need && system::bytes(peak) != system::bytes(need);
        let alone = |saving: String| Some((self.with(std::slice::from_ref(&saving))?, saving));
        let of = |all: &[(&str, &str)]| -> Vec<(u64, String)> {
            savings(prepared, all).into_iter().filter_map(alone).filter(|(peak, _)| helps(*peak)).collect()
        };
        let (free, cuts) = (of(free), of(CUTS));
        let all = [free.clone(), cuts.clone()].concat();
        if all.is_empty() {
            return format!("; no setting of this graph needs less of it: {otherwise}");
        }
        let mut message = "\nwhat needs less:".to_owned();
        let width = all.iter().map(|(_, saving)| saving.len()).max().unwrap_or(0);
        for (peak, saving) in &all {
            let verdict = if peak <= there { ", which fits" } else { "" };
            message += &format!("\n  --set {saving:<width$}  {}{verdict}", system::bytes(*peak));
        }
        let names =
            |some: &[(u64, String)]| some.iter().map(|(_, saving)| saving.clone()).collect::<Vec<_>>();
        // What is enough alone is known: every other trial prepares the graph again.
        let one = |some: &[(u64, String)]| {
            some.iter().find(|(peak, _)| peak <= there).map(|(peak, saving)| (vec![saving.clone()], *peak))
        };
        let found = one(&free)
            .or_else(|| self.enough(&names(&free)))
            .or_else(|| one(&cuts))
            .or_else(|| self.enough(&names(&all)));
        match found {
            Some((made, peak)) => {
                let sets: Vec<String> = made.iter().map(|set| format!("--set {set}")).collect();
                message += &format!("\nit would fit, with {}, with {}", system::bytes(peak), sets.join(" "));
                if made.iter().any(|set| set == "pairs.batch=1") {
                    message += "\nraise the update's `accumulate` by the same factor to keep the number of samples of an update";
                }
            }
            None => {
                let left =
                    self.with(&least_of(&names(&all))).map_or_else(|| "too much".into(), system::bytes);
                message += &format!("\nall of them together leave {left}: {otherwise}");
            }
        }
        message
    }

    /// Savings, in their order, with which the graph fits, and its peak then. What saves nothing beside those before it, what the graph cannot be
    /// built with, and what it fits without are left out.
    fn enough(&self, savings: &[String]) -> Option<(Vec<String>, u64)> {
        let mut made: Vec<String> = Vec::new();
        let mut least = (self.peak)(&self.prepared.plan) as u64;
        for saving in savings {
            let before = made.clone();
            make(&mut made, saving);
            let Some(peak) = self.with(&made).filter(|peak| *peak < least) else {
                made = before;
                continue;
            };
            least = peak;
            if peak <= self.there {
                return Some(self.without_surplus(made, peak));
            }
        }
        None
    }

    /// Of savings with which the graph fits, those that it does not fit without, and the peak with them. What costs most goes first.
    fn without_surplus(&self, mut made: Vec<String>, mut peak: u64) -> (Vec<String>, u64) {
        for saving in made.clone().into_iter().rev() {
            let fewer: Vec<String> = made.iter().filter(|made| **made != saving).cloned().collect();
            if let Some(enough) = self.with(&fewer).filter(|peak| *peak <= self.there) {
                (made, peak) = (fewer, enough);
            }
        }
        (made, peak)
    }

    /// The peak with these settings; none if the graph cannot be built with them.
    fn with(&self, savings: &[String]) -> Option<u64> {
        with(self.prepared, savings, self.registry).map(|smaller| (self.peak)(&smaller.plan) as u64)
    }
}

/// Settings that a graph has and that need less memory of the host, as `--set` takes them: of each the value that needs least. Lanes are not
/// among them: in a sweep they are of the variants.
pub(super) fn host_savings(prepared: &Prepared) -> Vec<String> {
    let mut all = least_of(&savings(prepared, SAVINGS));
    all.retain(|saving| name_of(saving) != "run.lanes");
    all
}

/// Of several values of a setting the last, which needs least.
fn least_of(savings: &[String]) -> Vec<String> {
    let mut least: Vec<String> = Vec::new();
    for saving in savings {
        make(&mut least, saving);
    }
    least
}

/// Add a saving to others, in the place of one of the same setting: that has one value.
fn make(made: &mut Vec<String>, saving: &str) {
    made.retain(|made| name_of(made) != name_of(saving));
    made.push(saving.to_owned());
}

/// What `node.setting=VALUE` sets.
fn name_of(saving: &str) -> &str {
    saving.split('=').next().unwrap_or(saving)
}

/// Settings that a graph has, of those that make it smaller, as `--set` takes them. Of several values of a setting each needs less than those
/// before it.
fn savings(prepared: &Prepared, all: &[(&str, &str)]) -> Vec<String> {
    let of = |&(setting, better): &(&str, &str)| -> Vec<String> {
        let needs_less = |value: &str| match (value.parse::<f64>(), better.parse::<f64>()) {
            (Ok(value), Ok(better)) => better < value,
            _ => {
                let mut from_here =
                    all.iter().filter(|(name, _)| *name == setting).skip_while(|(_, v)| *v != value);
                from_here.next().is_none() || from_here.any(|(_, v)| *v == better)
            }
        };
        let can = |name: &str, value: &str| match name {
            // 0 leaves their number to the plan.
            "run.lanes" => setting == "lanes" && prepared.plan.options().lanes > 1,
            _ => name.rsplit('.').next() == Some(setting) && needs_less(value.trim()),
        };
        let found = prepared.settings.iter().filter(|(name, value)| can(name, value));
        found.map(|(name, _)| format!("{name}={better}")).collect()
    };
    all.iter().flat_map(of).collect()
}

/// The graph with more settings; none if it cannot be built with them.
fn with(prepared: &Prepared, more: &[String], registry: &Registry) -> Option<Prepared> {
    let mut args = prepared.args.clone();
    args.sets.extend_from_slice(more);
    prepare(&args, registry).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::args;

    fn prepared(device: Option<&str>) -> Prepared {
        let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/diffusion_dpo.ron");
        let device = device.map(str::to_owned);
        let args = args::Graph { graph: Some(graph), device, ..args::Graph::default() };
        match prepare(&args, &Registry::standard()) {
            Ok(prepared) => prepared,
            Err(_) => panic!("the graph can be prepared"),
        }
    }

    fn refusal(result: Result<(), Failure>) -> String {
        match result {
            Err(Failure::Message(message)) => message,
            _ => panic!("it does not fit"),
        }
    }

    #[test]
    fn a_graph_that_does_not_fit_is_refused_with_the_settings_that_make_it_smaller() {
        let (prepared, registry) = (prepared(None), Registry::standard());
        let peak = prepared.plan.memory().peak as u64;
        assert!(fits_host(&prepared, peak, &registry).is_ok());
        let message = refusal(fits_host(&prepared, peak - 1, &registry));
        assert!(
            message.contains("it would fit") && message.contains("--set backbone.packing=streamed"),
            "{message}"
        );
        for part in ["--set pairs.batch=1", "--set run.lanes=1", "weights"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        // The shipped rank is 8.
        assert!(!message.contains("rank=16") && !message.contains("rank=8"), "{message}");
    }

    #[test]
    fn what_is_learned_stays_as_it_is_where_other_settings_are_enough() {
        let (prepared, registry) = (prepared(None), Registry::standard());
        let peak_of = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            let plan = with(&prepared, &sets, &registry).unwrap().plan;
            host_peak(&plan, prepared.plan.memory().process) as u64
        };
        let last = |there: u64| {
            let message = refusal(fits_host(&prepared, there, &registry));
            message.lines().find(|line| line.starts_with("it would fit")).unwrap_or(&message).to_owned()
        };
        // A batch of one is enough alone, and so are two settings that change nothing of what is learned.
        let two = peak_of(&["backbone.checkpointing=blocks", "backbone.packing=streamed"]);
        let blocks = peak_of(&["backbone.checkpointing=blocks"]);
        assert!(peak_of(&["pairs.batch=1"]) < blocks && two < blocks);
        let said = last(two.max(peak_of(&["pairs.batch=1"])));
        assert!(!said.contains("batch") && said.contains("checkpointing=blocks"), "{said}");
        // One that is enough is named alone.
        assert_eq!(last(blocks).matches("--set").count(), 1, "{}", last(blocks));
        // Where only a smaller batch is enough, so is said what makes up for it.
        let message = refusal(fits_host(
            &prepared,
            peak_of(&[
                "backbone.checkpointing=blocks",
                "backbone.packing=streamed",
                "run.lanes=1",
                "run.ahead=0",
                "backbone.compute=bf16",
                "pairs.batch=1",
            ]),
            &registry,
        ));
        assert!(
            message.contains("pairs.batch=1") && message.contains("raise the update's `accumulate`"),
            "{message}"
        );
        assert_eq!(told_apart(2_000_000_000, 1_999_999_999), ["2000000000 bytes", "1999999999 bytes"]);
    }

    #[test]
    fn of_a_setting_only_values_that_need_less_than_the_present_one_are_offered() {
        let offered = |sets: &[&str]| {
            let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/diffusion_dpo.ron");
            let sets = sets.iter().map(|set| (*set).to_owned()).collect();
            let args = args::Graph { graph: Some(graph), sets, ..args::Graph::default() };
            let Ok(prepared) = prepare(&args, &Registry::standard()) else { panic!("it can be prepared") };
            let of = |all: Vec<String>| -> Vec<String> {
                let kept = all
                    .into_iter()
                    .filter_map(|saving| saving.split_once("checkpointing=").map(|s| s.1.to_owned()));
                kept.collect()
            };
            (of(savings(&prepared, GPU_SAVINGS)), of(host_savings(&prepared)))
        };
        let blocks = vec!["blocks".to_owned()];
        assert_eq!(offered(&[]), (vec!["selective".into(), "blocks".into()], blocks.clone()));
        assert_eq!(offered(&["backbone.checkpointing=selective"]), (blocks.clone(), blocks));
        assert_eq!(offered(&["backbone.checkpointing=blocks"]), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_graph_that_does_not_fit_its_gpu_is_refused_with_the_bytes_that_each_setting_would_leave() {
        let (prepared, registry) = (prepared(Some("cuda:3")), Registry::standard());
        let need = gpu_memory(&prepared.plan).unwrap().1.peak as u64;
        assert!(check(&prepared, Some(need), &registry).is_ok());
        assert!(check(&prepared, None, &registry).is_ok(), "a GPU that nobody knows holds what it may");
        let message = refusal(check(&prepared, Some(need - 1), &registry));
        let order = ["checkpointing=selective", "checkpointing=blocks", "compute=bf16", "pairs.batch=1"];
        let places: Vec<usize> = order.iter().map(|set| message.find(set).expect(set)).collect();
        assert!(places.is_sorted() && message.contains("of cuda:3's memory"), "{message}");
        // Three blocks of the demo's network are on the GPU at once where weights are streamed: that is no less.
        assert!(!message.contains("packing=streamed"), "{message}");
        assert!(message.contains(", which fits") && message.contains("it would fit"), "{message}");
        // Between what selective recomputation and what that of blocks needs, one of them is named, once.
        let of = |saving: &str| {
            let line = message.lines().find(|line| line.contains(saving)).expect(saving);
            line.split_whitespace().rev().find(|word| word.parse::<f64>().is_ok()).map(str::to_owned)
        };
        assert_ne!(of("=selective"), of("=blocks"), "{message}");
        let fits = message.lines().find(|line| line.contains("it would fit")).expect("looked at above");
        assert_eq!(fits.matches("checkpointing").count(), 1, "{fits}");
        // Nothing is enough for a GPU without memory.
        let message = refusal(check(&prepared, Some(1), &registry));
        assert!(
            message.contains("all of them together leave") && !message.contains("which fits"),
            "{message}"
        );
    }
}
