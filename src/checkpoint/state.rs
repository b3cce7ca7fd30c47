//! `state.bin`: the part of a checkpoint that is not a tensor. Only this file knows its format.
//!
//! ```text
//!  8 bytes  "prefgrph"
//!  4 bytes  format version, little-endian
//! 32 bytes  blake3 of all that follows and of cells.safetensors
//!    rest   bincode 2, standard configuration: `Head`, from version 2 on the data and weights, from version 3 on what the run remembers
//! ```

use std::io::{self, Read};

use bincode::{Decode, Encode, config::standard};

use crate::sources::{SampleRecord, Source, Sources};

const MAGIC: &[u8; 8] = b"prefgrph";
const VERSION: u32 = 3;
/// An older version that is still read: it did not record data and weights.
const WITHOUT_SOURCES: u32 = 1;
/// Another: the run itself remembered nothing.
const WITHOUT_KEPT: u32 = 2;
const HEAD: usize = MAGIC.len() + size_of::<u32>() + blake3::OUT_LEN;

/// What stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub step: u64,
    pub seed: u64,
    pub graph: String,
    pub sources: Option<Sources>,
    pub cells: Vec<CellState>,
    pub kept: Vec<KeptState>,
}

/// What is remembered of a node besides its tensors.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct KeptState {
    pub node: String,
    /// Names of its tensors, in their order.
    pub tensors: Vec<String>,
    pub text: String,
}

/// What is known of a cell besides its tensors.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct CellState {
    pub name: String,
    /// Names of its tensors, in their order.
    pub tensors: Vec<String>,
    pub counters: Vec<(String, u64)>,
}

/// The part that every version has.
#[derive(Encode, Decode)]
struct Head {
    step: u64,
    seed: u64,
    /// blake3 of `graph`.
    graph_hash: [u8; 32],
    graph: String,
    cells: Vec<CellState>,
}

#[derive(Encode, Decode)]
enum SourceState {
    Files(String),
    Samples(Vec<SampleState>),
}

#[derive(Encode, Decode)]
struct SampleState {
    id: String,
    facts: [u8; 16],
    stamp: [u8; 16],
    contents: Option<[u8; 16]>,
}

/// By name; nothing where nothing was recorded.
type SourceStates = Option<Vec<(String, SourceState)>>;

fn to_states(sources: &Sources) -> Vec<(String, SourceState)> {
    let one = |source: &Source| match source {
        Source::Files(identity) => SourceState::Files(identity.clone()),
        Source::Samples(samples) => {
            let sample = |s: &SampleRecord| SampleState {
                id: s.id.clone(),
                facts: s.facts,
                stamp: s.stamp,
                contents: s.contents,
            };
            SourceState::Samples(samples.iter().map(sample).collect())
        }
    };
    sources.0.iter().map(|(name, source)| (name.clone(), one(source))).collect()
}

fn from_states(states: Vec<(String, SourceState)>) -> Sources {
    let one = |state| match state {
        SourceState::Files(identity) => Source::Files(identity),
        SourceState::Samples(samples) => {
            let sample =
                |SampleState { id, facts, stamp, contents }| SampleRecord { id, facts, stamp, contents };
            Source::Samples(samples.into_iter().map(sample).collect())
        }
    };
    Sources(states.into_iter().map(|(name, state)| (name, one(state))).collect())
}

fn checksum(body: &[u8], tensors: &mut impl Read) -> io::Result<blake3::Hash> {
    let mut hash = blake3::Hasher::new();
    hash.update(&(body.len() as u64).to_le_bytes());
    hash.update(body);
    hash.update_reader(tensors)?;
    Ok(hash.finalize())
}

impl State {
    /// The bytes of the file, beside a `cells.safetensors` of these bytes.
    pub fn encode(&self, tensors: &mut impl Read) -> Result<Vec<u8>, String> {
        let head = Head {
            step: self.step,
            seed: self.seed,
            graph_hash: *blake3::hash(self.graph.as_bytes()).as_bytes(),
            graph: self.graph.clone(),
            cells: self.cells.clone(),
        };
        let sources: SourceStates = self.sources.as_ref().map(to_states);
        let body =
            bincode::encode_to_vec((head, sources, &self.kept), standard()).map_err(|e| e.to_string())?;
        let sum = checksum(&body, tensors).map_err(|e| e.to_string())?;
        let mut bytes = Vec::with_capacity(HEAD + body.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(sum.as_bytes());
        bytes.extend(body);
        Ok(bytes)
    }

    /// What [`encode`](Self::encode) wrote, or why it is not; nothing is believed before the checksum is.
    ///
    /// # Errors
    /// If the tensors cannot be read.
    pub fn decode(bytes: &[u8], tensors: &mut impl Read) -> io::Result<Result<Self, String>> {
        let (version, sum, body) = match parts(bytes) {
            Ok(parts) => parts,
            Err(e) => return Ok(Err(e)),
        };
        if checksum(body, tensors)? != sum {
            return Ok(Err("the checksum does not fit: a file is torn or was altered".into()));
        }
        Ok(Self::decode_body(version, body))
    }

    fn decode_body(version: u32, body: &[u8]) -> Result<Self, String> {
        let limited = standard().with_limit::<LIMIT>();
        let fault = |e: bincode::error::DecodeError| format!("state.bin: {e}");
        type All = (Head, SourceStates, Vec<KeptState>);
        let ((head, sources, kept), used): (All, usize) = match version {
            WITHOUT_SOURCES => {
                let (head, used) = bincode::decode_from_slice(body, limited).map_err(fault)?;
                ((head, None, Vec::new()), used)
            }
            WITHOUT_KEPT => {
                let ((head, sources), used) = bincode::decode_from_slice(body, limited).map_err(fault)?;
                ((head, sources, Vec::new()), used)
            }
            _ => bincode::decode_from_slice(body, limited).map_err(fault)?,
        };
        let Head { step, seed, graph_hash, graph, cells } = head;
        if used != body.len() || *blake3::hash(graph.as_bytes()).as_bytes() != graph_hash {
            return Err("state.bin contradicts itself".into());
        }
        Ok(Self { step, seed, graph, sources: sources.map(from_states), cells, kept })
    }
}

/// Version, checksum and the rest.
fn parts(bytes: &[u8]) -> Result<(u32, blake3::Hash, &[u8]), String> {
    let torn = || "state.bin is torn: it ends too early".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or("state.bin is not the state of a checkpoint, or torn")?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(torn)?;
    let version = u32::from_le_bytes(*version);
    if !(WITHOUT_SOURCES..=VERSION).contains(&version) {
        return Err(format!(
            "state.bin has format {version}, this build reads formats {WITHOUT_SOURCES} to {VERSION}"
        ));
    }
    let (sum, body) = rest.split_first_chunk::<{ blake3::OUT_LEN }>().ok_or_else(torn)?;
    Ok((version, blake3::Hash::from_bytes(*sum), body))
}

/// No state is this large; a forged length must not ask for all memory.
const LIMIT: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let sample =
            |id: &str, contents| SampleRecord { id: id.into(), facts: [1; 16], stamp: [2; 16], contents };
        let samples = Source::Samples(vec![sample("a", None), sample("b", Some([3; 16]))]);
        let sources =
            [("pairs.path".to_owned(), samples), ("w.x".to_owned(), Source::Files("whole 1".into()))];
        State {
            step: 1,
            seed: 2,
            graph: "Graph()".into(),
            sources: Some(Sources(sources.into())),
            cells: vec![],
            kept: vec![KeptState { node: "m".into(), tensors: vec!["a".into()], text: "{}".into() }],
        }
    }

    fn decode(bytes: &[u8]) -> Result<State, String> {
        State::decode(bytes, &mut &b"t"[..]).unwrap()
    }

    #[test]
    fn what_is_decoded_is_what_was_encoded() {
        let state = state();
        assert_eq!(decode(&state.encode(&mut &b"t"[..]).unwrap()).unwrap(), state);
        let unknown = State { sources: None, ..state };
        assert_eq!(decode(&unknown.encode(&mut &b"t"[..]).unwrap()).unwrap(), unknown);
    }

    #[test]
    fn states_of_earlier_versions_are_read_and_record_no_more_than_they_did() {
        let State { step, seed, graph, cells, sources, .. } = state();
        let graph_hash = *blake3::hash(graph.as_bytes()).as_bytes();
        let head = || Head { step, seed, graph_hash, graph: graph.clone(), cells: cells.clone() };
        let states: SourceStates = sources.as_ref().map(to_states);
        let bodies = [
            bincode::encode_to_vec(head(), standard()).unwrap(),
            bincode::encode_to_vec((head(), states), standard()).unwrap(),
        ];
        let known = [None, sources];
        for ((body, sources), version) in bodies.into_iter().zip(known).zip(1u32..) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(version.to_le_bytes());
            bytes.extend(checksum(&body, &mut &b"t"[..]).unwrap().as_bytes());
            bytes.extend(body);
            assert_eq!(decode(&bytes).unwrap(), State { sources, kept: vec![], ..state() }, "{version}");
        }
    }

    #[test]
    fn another_version_and_another_file_are_named() {
        let mut bytes = state().encode(&mut &b"t"[..]).unwrap();
        assert!(decode(b"not this").unwrap_err().contains("not the state"));
        bytes[8] = 9;
        assert!(decode(&bytes).unwrap_err().contains("format 9"));
    }

    #[test]
    fn tensors_that_cannot_be_read_are_an_error_of_the_system() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the disk is broken"))
            }
        }
        let bytes = state().encode(&mut &b"t"[..]).unwrap();
        assert!(State::decode(&bytes, &mut Broken).is_err());
    }
}
