//! The cache of encoder outputs: bits, filling, dropping, status, damage, refusals.

#[path = "../common/mod.rs"]
mod common;
mod operators;
mod refusals;
mod status;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::*;
use operators::*;
use prefgraph::{
    Graph, Plan,
    cache::{Cache, CacheError, Filled, State, show, verify},
};

const NODES: [&str; 2] = ["encoded", "twice"];

fn names(nodes: &[&str]) -> Vec<String> {
    nodes.iter().map(ToString::to_string).collect()
}

fn plain(counts: &Counts, numbers: Numbers) -> Graph {
    learner(numbers, Encoder::new(counts, 1.5), Encoder::new(counts, 0.5))
}

/// The learner with a cache in `folder` before both encoders.
fn cached(counts: &Counts, numbers: Numbers, folder: &Path) -> (Graph, Cache) {
    let mut graph = plain(counts, numbers);
    let cache = Cache::attach(&mut graph, folder, &names(&NODES), None).unwrap();
    (graph, cache)
}

fn fill(graph: &Graph, cache: &mut Cache) -> Result<Filled, CacheError> {
    let plan = Plan::new(graph, &options(2, 1)).unwrap();
    cache.fill(graph, &plan, (&cpu(), None), &mut |_| true)
}

fn trained(graph: Graph, lanes: usize, ahead: usize) -> Vec<u32> {
    bits(&mut runner(&Arc::new(graph), lanes, ahead, 11), 9)
}

/// All entries of a cache.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.join("entries")];
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match path.extension() {
                _ if path.is_dir() => open.push(path),
                Some(e) if e == "safetensors" => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_run_has_the_same_bits_without_a_cache_and_with_one_that_is_empty_or_full() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let numbers = Numbers::new(7, 2);
    let expected = trained(plain(&counts, numbers.clone()), 1, 0);
    for (lanes, ahead) in [(1, 0), (3, 2)] {
        let folder = dir.path().join(format!("{lanes}"));
        for round in ["cold", "warm"] {
            let counts = Counts::default();
            let (graph, mut cache) = cached(&counts, numbers.clone(), &folder);
            let filled = fill(&graph, &mut cache).unwrap();
            assert!(filled.complete && filled.damaged.is_empty());
            assert_eq!(counts.seen(), (if round == "cold" { 2 * 7 } else { 0 }, 2), "{round}");
            assert_eq!(filled.read, if round == "cold" { 7 } else { 0 });
            assert_eq!(trained(graph, lanes, ahead), expected, "{round}, {lanes} lanes");
            assert_eq!(counts.seen().0, if round == "cold" { 14 } else { 0 }, "training reads only");
        }
        assert_eq!(entries(&folder).len(), 14);
        assert_eq!(verify(&folder).unwrap(), (14, vec![]));
    }
}

#[test]
fn a_graph_that_runs_without_filling_keeps_its_encoders_and_writes_what_it_misses() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let expected = trained(plain(&counts, Numbers::new(5, 2)), 1, 0);
    let counts = Counts::default();
    let (graph, _cache) = cached(&counts, Numbers::new(5, 2), dir.path());
    assert_eq!(trained(graph, 2, 1), expected);
    assert!(entries(dir.path()).len() == 10 && counts.seen().0 > 10);
}

#[test]
fn a_filling_that_is_interrupted_goes_on_with_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let (graph, mut cache) = cached(&counts, Numbers::new(8, 2), dir.path());
    let plan = Plan::new(&graph, &options(1, 0)).unwrap();
    let mut told = Vec::new();
    let filled = cache.fill(&graph, &plan, (&cpu(), None), &mut |at| {
        told.push(at.done);
        at.done < 4
    });
    let filled = filled.unwrap();
    assert!(!filled.complete && filled.read == 4);
    assert_eq!((told, counts.seen()), (vec![0, 2, 4], (8, 0)), "nothing is dropped");
    let (graph, mut cache) = cached(&counts, Numbers::new(8, 2), dir.path());
    assert_eq!(cache.status()[0].present, 4);
    let filled = fill(&graph, &mut cache).unwrap();
    assert!(filled.complete && filled.read == 4);
    assert_eq!(counts.seen().0, 16);
}

/// Why a sample could not be used may lie outside the data: a limit of the run, a right of the folder, memory.
#[test]
fn samples_that_cannot_be_used_are_left_out_and_tried_again_by_the_next_filling() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let numbers = Numbers { bad: vec![1, 3, 4], ..Numbers::new(5, 2) };
    let (graph, mut cache) = cached(&counts, numbers.clone(), dir.path());
    let filled = fill(&graph, &mut cache).unwrap();
    assert_eq!((filled.read, filled.left_out), (2, 3));
    let (graph, mut cache) = cached(&counts, numbers, dir.path());
    assert_eq!(cache.status()[0].state(), State::Hit);
    let again = fill(&graph, &mut cache).unwrap();
    assert_eq!(again, Filled { complete: true, left_out: 3, ..Filled::default() });
    let (graph, mut cache) = cached(&counts, Numbers::new(5, 2), dir.path());
    let mended = fill(&graph, &mut cache).unwrap();
    assert_eq!((mended.read, mended.left_out), (3, 0));
    assert_eq!(fill(&graph, &mut cache).unwrap(), Filled { complete: true, ..Filled::default() });
}

#[test]
fn the_plan_counts_no_weights_of_cached_encoders_and_the_filling_does() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let bare = Plan::new(&plain(&counts, Numbers::new(4, 2)), &options(1, 0)).unwrap();
    assert!(bare.memory().resident >= 2 * HEAVY);
    let (graph, cache) = cached(&counts, Numbers::new(4, 2), dir.path());
    let plan = Plan::new(&graph, &options(1, 0)).unwrap();
    assert_eq!(plan.memory().resident, 0);
    assert!(plan.memory().peak < 1 << 20);
    assert!((3 * HEAVY..3 * HEAVY + (1 << 20)).contains(&cache.fill_bytes(&graph, &plan)));
}

#[test]
fn torn_foreign_and_altered_entries_are_told_once_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let numbers = Numbers::new(6, 2);
    let expected = trained(plain(&counts, numbers.clone()), 1, 0);
    let (graph, mut cache) = cached(&counts, numbers.clone(), dir.path());
    fill(&graph, &mut cache).unwrap();
    let all = entries(dir.path());
    let good: Vec<Vec<u8>> = all.iter().map(|p| fs::read(p).unwrap()).collect();
    fs::write(&all[0], &good[0][..good[0].len() / 2]).unwrap();
    fs::write(&all[1], &good[2]).unwrap();
    let mut flipped = good[3].clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&all[3], flipped).unwrap();
    fs::write(&all[4], b"").unwrap();
    assert_eq!(verify(dir.path()).unwrap().1.len(), 4);

    let (graph, mut cache) = cached(&counts, numbers.clone(), dir.path());
    let missing: usize = cache.status().iter().map(|s| s.missing).sum();
    assert_eq!(missing, 4);
    let filled = fill(&graph, &mut cache).unwrap();
    assert_eq!(filled.damaged.len(), 4, "{:?}", filled.damaged);
    assert!(filled.damaged.iter().any(|d| d.contains("another sample")), "{:?}", filled.damaged);
    assert_eq!(trained(graph, 2, 1), expected);
    assert_eq!(all.iter().map(|p| fs::read(p).unwrap()).collect::<Vec<_>>(), good);
    let (graph, mut cache) = cached(&counts, numbers, dir.path());
    assert!(fill(&graph, &mut cache).unwrap().damaged.is_empty());
}

#[test]
fn an_entry_that_is_damaged_while_a_run_is_going_stops_it_and_the_next_run_makes_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let (graph, mut cache) = cached(&counts, Numbers::new(2, 2), dir.path());
    fill(&graph, &mut cache).unwrap();
    for path in entries(dir.path()) {
        // Length and time stay: nothing but the checksum can tell.
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
    let mut runner = runner(&Arc::new(graph), 1, 0, 11);
    let error = runner.step().unwrap_err().to_string();
    assert!(error.contains("checksum") && error.contains("--resume"), "{error}");
    let (graph, mut cache) = cached(&counts, Numbers::new(2, 2), dir.path());
    assert!(cache.status()[0].missing > 0);
    fill(&graph, &mut cache).unwrap();
    assert!(trained(graph, 1, 0).len() > 9);
}

#[test]
fn two_runs_that_fill_one_folder_at_once_leave_it_whole() {
    let dir = tempfile::tempdir().unwrap();
    let expected = trained(plain(&Counts::default(), Numbers::new(24, 2)), 1, 0);
    let run = || {
        let (graph, mut cache) = cached(&Counts::default(), Numbers::new(24, 2), dir.path());
        assert!(fill(&graph, &mut cache).unwrap().complete);
        trained(graph, 2, 1)
    };
    std::thread::scope(|scope| {
        let both = [scope.spawn(run), scope.spawn(run)];
        both.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), expected));
    });
    assert_eq!(verify(dir.path()).unwrap(), (48, vec![]));
    let (_, cache) = cached(&Counts::default(), Numbers::new(24, 2), dir.path());
    assert!(cache.status().iter().all(|s| s.state() == State::Hit));
    assert_eq!(show(dir.path()).unwrap().len(), 2);
}
