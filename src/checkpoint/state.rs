//! `state.bin`: the part of a checkpoint that is no tensor. The only place that knows its bytes.
//!
//! ```text
//!  8 bytes  "prefgrph"
//!  4 bytes  format version, little-endian
//! 32 bytes  blake3 of all that follows and of cells.safetensors
//!    rest   `State` in bincode 2, standard configuration
//! ```

use bincode::{Decode, Encode, config::standard};

const MAGIC: &[u8; 8] = b"prefgrph";
const VERSION: u32 = 1;
const HEAD: usize = MAGIC.len() + size_of::<u32>() + blake3::OUT_LEN;

/// What stands in the file.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct State {
    pub step: u64,
    pub seed: u64,
    /// blake3 of `graph`.
    pub graph_hash: [u8; 32],
    pub graph: String,
    pub cells: Vec<CellState>,
}

/// What is known of a cell besides its tensors.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct CellState {
    pub name: String,
    /// Names of its tensors, in their order.
    pub tensors: Vec<String>,
    pub counters: Vec<(String, u64)>,
}

fn checksum(body: &[u8], tensors: &[u8]) -> blake3::Hash {
    let mut hash = blake3::Hasher::new();
    hash.update(&(body.len() as u64).to_le_bytes());
    hash.update(body);
    hash.update(tensors);
    hash.finalize()
}

impl State {
    /// The bytes of the file, beside a `cells.safetensors` of these bytes.
    pub fn encode(&self, tensors: &[u8]) -> Result<Vec<u8>, String> {
        let body = bincode::encode_to_vec(self, standard()).map_err(|e| e.to_string())?;
        let mut bytes = Vec::with_capacity(HEAD + body.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(checksum(&body, tensors).as_bytes());
        bytes.extend(body);
        Ok(bytes)
    }

    /// What [`encode`](Self::encode) wrote; nothing is believed before the checksum is.
    pub fn decode(bytes: &[u8], tensors: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("state.bin is not the state of a checkpoint, or torn")?;
        let Some((version, rest)) = rest.split_first_chunk::<4>() else { return Err(torn()) };
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(format!("state.bin has format {version}, this build reads format {VERSION}"));
        }
        let Some((sum, body)) = rest.split_first_chunk::<{ blake3::OUT_LEN }>() else { return Err(torn()) };
        if checksum(body, tensors) != blake3::Hash::from_bytes(*sum) {
            return Err("the checksum does not fit: a file is torn or was altered".into());
        }
        let (state, used) = bincode::decode_from_slice::<Self, _>(body, standard().with_limit::<LIMIT>())
            .map_err(|e| format!("state.bin: {e}"))?;
        if used != body.len() || *blake3::hash(state.graph.as_bytes()).as_bytes() != state.graph_hash {
            return Err("state.bin contradicts itself".into());
        }
        Ok(state)
    }
}

/// No state is this large; a forged length must not ask for all memory.
const LIMIT: usize = 1 << 30;

fn torn() -> String {
    "state.bin is torn: it ends too early".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_and_another_file_are_named() {
        let state = State { step: 1, seed: 2, graph_hash: [0; 32], graph: String::new(), cells: vec![] };
        let mut bytes = state.encode(b"t").unwrap();
        assert!(State::decode(b"not this", b"t").unwrap_err().contains("not the state"));
        assert!(State::decode(&bytes, b"t").unwrap_err().contains("contradicts itself"));
        bytes[8] = 9;
        assert!(State::decode(&bytes, b"t").unwrap_err().contains("format 9"));
    }
}
