//! The status of a cache before any sample is read.

use std::{collections::BTreeSet, fs, path::Path};

use prefgraph::{
    Graph,
    cache::{Cache, State, clean, show},
};
use prefgraph_nn::files::Unfinished;

use crate::{Counts, Encoder, NODES, Numbers, cached, entries, fill, learner, names, plain};

fn said(cache: &Cache) -> Vec<String> {
    cache.status().iter().map(ToString::to_string).collect()
}

fn attach(mut graph: Graph, folder: &Path) -> (Graph, Cache) {
    let cache = Cache::attach(&mut graph, folder, &names(&NODES), None).unwrap();
    (graph, cache)
}

#[test]
fn it_tells_hits_from_misses_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let (counts, numbers) = (Counts::default(), Numbers::new(5, 2));
    let (graph, mut cache) = cached(&counts, numbers.clone(), dir.path());
    assert_eq!(said(&cache), ["miss: no entries yet", "miss: no entries yet"]);
    fill(&graph, &mut cache).unwrap();
    assert_eq!(said(&cache), ["hit: all 5 samples", "hit: all 5 samples"]);
    let (_, again) = cached(&counts, numbers.clone(), dir.path());
    assert_eq!(said(&again), ["hit: all 5 samples", "hit: all 5 samples"]);

    let own = again.recipes().next().unwrap().1.id();
    let all = entries(dir.path());
    let victims: Vec<_> = all.iter().filter(|p| p.to_string_lossy().contains(&own)).take(2).collect();
    victims.iter().for_each(|p| fs::remove_file(p).unwrap());
    assert_eq!(said(&again)[0], "miss: 2 of 5 samples are missing");
    assert_eq!(said(&again)[1], "hit: all 5 samples");

    // Another setting of the first: what comes after it depends on it, but has entries of its own kind.
    let other = learner(numbers.clone(), Encoder::new(&counts, 2.5), Encoder::new(&counts, 0.5));
    let (_, other) = attach(other, dir.path());
    assert_eq!(said(&other)[0], "miss: settings changed: scale 1.5 -> 2.5");
    assert!(said(&other)[1].starts_with("unknown until the data is read: 5 of 5"), "{:?}", said(&other));

    fs::write(dir.path().join("format"), "prefgraph cache, format 0\n").unwrap();
    let (graph, mut old) = cached(&counts, numbers, dir.path());
    assert!(said(&old)[0].contains("format 0, this build writes format 1"), "{:?}", said(&old));
    let error = fill(&graph, &mut old).unwrap_err().to_string();
    assert!(error.contains("format 0") && error.contains("remove the folder"), "{error}");
}

#[test]
fn other_weights_are_other_entries() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let weights = dir.path().join("weights.safetensors");
    let folder = dir.path().join("cache");
    let graph = |bytes: &[u8]| {
        fs::write(&weights, bytes).unwrap();
        let first = Encoder::with_weights(&counts, 1.0, &weights);
        learner(Numbers::new(3, 2), first, Encoder::new(&counts, 1.0))
    };
    let (graph_a, mut cache) = attach(graph(b"a"), &folder);
    fill(&graph_a, &mut cache).unwrap();
    assert_eq!(said(&attach(graph(b"a"), &folder).1)[0], "hit: all 3 samples");
    assert_eq!(said(&attach(graph(b"b"), &folder).1)[0], "miss: weights changed: weights");
}

#[test]
fn a_sample_whose_file_changed_is_not_known_until_it_is_read_and_nothing_else_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let folder = dir.path().join("cache");
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    (0..4).for_each(|n| fs::write(data.join(n.to_string()), n.to_string()).unwrap());
    let numbers = Numbers { folder: Some(data.clone()), ..Numbers::new(4, 2) };
    let (graph, mut cache) = cached(&counts, numbers.clone(), &folder);
    fill(&graph, &mut cache).unwrap();
    assert_eq!(counts.seen().0, 8);

    // Touched, but the same: read again, encoded not.
    let file = fs::File::options().write(true).open(data.join("1")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let (graph, mut cache) = cached(&counts, numbers.clone(), &folder);
    assert_eq!((cache.status()[0].state(), cache.status()[0].unindexed), (State::Unknown, 1));
    let filled = fill(&graph, &mut cache).unwrap();
    assert_eq!((filled.read, filled.computed, counts.seen().0), (1, 0, 8));

    // Changed: encoded too.
    fs::write(data.join("2"), "17.5").unwrap();
    let (graph, mut cache) = cached(&counts, numbers.clone(), &folder);
    assert_eq!(cache.status()[0].unindexed, 1);
    let filled = fill(&graph, &mut cache).unwrap();
    assert_eq!((filled.read, filled.computed, counts.seen().0), (1, 2, 10));

    // Without the index everything is read, and nothing encoded.
    fs::remove_file(folder.join("index")).unwrap();
    let (graph, mut cache) = cached(&counts, numbers, &folder);
    assert_eq!(cache.status()[0].state(), State::Unknown);
    let filled = fill(&graph, &mut cache).unwrap();
    assert_eq!((filled.read, filled.computed, counts.seen().0), (4, 0, 10));
}

#[test]
fn cleaning_keeps_what_a_graph_uses_and_removes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    for scale in [1.5, 2.5] {
        let numbers = Numbers::new(4, 2);
        let graph = learner(numbers, Encoder::new(&counts, scale), Encoder::new(&counts, 0.5));
        let (graph, mut cache) = attach(graph, dir.path());
        fill(&graph, &mut cache).unwrap();
    }
    assert_eq!(show(dir.path()).unwrap().iter().map(|g| g.entries).sum::<usize>(), 16);
    let place = entries(dir.path())[0].clone();
    // A run that is at work is about to write this entry.
    let mut living = Unfinished::beside(&place).unwrap();
    let left = place.with_file_name(".writing-abc");
    fs::write(&left, b"half").unwrap();
    let (_, cache) = attach(plain(&counts, Numbers::new(4, 2)), dir.path());
    let keep: BTreeSet<String> = cache.recipes().map(|(_, recipe)| recipe.id()).collect();
    let cleaned = clean(dir.path(), &keep).unwrap();
    assert_eq!((cleaned.entries, cleaned.unfinished), (4, 1));
    assert!(cleaned.bytes > 0 && !left.exists());
    let (_, cache) = attach(plain(&counts, Numbers::new(4, 2)), dir.path());
    assert_eq!(cache.status()[0].state(), State::Hit);
    assert_eq!(clean(dir.path(), &BTreeSet::new()).unwrap().entries, 12);
    assert!(entries(dir.path()).is_empty());
    std::io::Write::write_all(living.file(), b"whole").unwrap();
    living.keep(&place).unwrap();
    assert_eq!(fs::read(&place).unwrap(), b"whole", "what was being written is written");
    clean(dir.path(), &BTreeSet::new()).unwrap();
    assert!(entries(dir.path()).is_empty() && show(dir.path()).unwrap().is_empty());
}
