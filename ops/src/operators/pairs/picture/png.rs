//! The header of a PNG, before decoding.

/// Facts of a whole PNG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub width: u32,
    pub height: u32,
}

/// Bytes before the first chunk.
const SIGNATURE: usize = 8;

/// Walk the chunks to the last one.
///
/// # Errors
/// If the file ends before them, does not begin with its size, or holds an animation.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    let cut = || "is cut short: the PNG ends before its last chunk".to_owned();
    let word = |at: usize| -> Result<u32, String> {
        let word = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).ok_or_else(cut)?;
        Ok(u32::from_be_bytes(*word))
    };
    if bytes.get(SIGNATURE + 4..SIGNATURE + 8).ok_or_else(cut)? != b"IHDR" {
        return Err("is a damaged PNG: it does not begin with its size".into());
    }
    let header = Header { width: word(SIGNATURE + 8)?, height: word(SIGNATURE + 12)? };
    let mut at = SIGNATURE;
    loop {
        let (length, kind) = (word(at)? as usize, bytes.get(at + 4..at + 8).ok_or_else(cut)?);
        let payload = at + 8;
        let next = payload.checked_add(length).and_then(|end| end.checked_add(4)).ok_or_else(cut)?;
        if next > bytes.len() {
            return Err(cut());
        }
        match kind {
            b"IEND" => return Ok(header),
            b"acTL" if length >= 4 && word(payload)? > 1 => {
                return Err("is an animation: save the one frame that is meant".into());
            }
            _ => at = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_be_bytes().to_vec();
        out.extend(kind);
        out.extend(payload);
        out.extend([0; 4]);
        out
    }

    fn png(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
        chunks.iter().for_each(|(kind, payload)| out.extend(chunk(kind, payload)));
        out
    }

    const SIZE: &[u8] = &[0, 0, 0, 7, 0, 0, 1, 0, 8, 0, 0, 0, 0];

    #[test]
    fn the_size_is_known_and_every_cut_is_found() {
        let bytes = png(&[(b"IHDR", SIZE), (b"IDAT", &[1, 2, 3]), (b"IEND", &[])]);
        assert_eq!(header(&bytes), Ok(Header { width: 7, height: 256 }));
        for length in 0..bytes.len() {
            assert!(header(&bytes[..length]).unwrap_err().contains("cut short"), "{length}");
        }
    }

    #[test]
    fn an_animation_of_several_frames_is_refused_and_one_of_a_single_frame_is_a_picture() {
        let frames = |n: u8| png(&[(b"IHDR", SIZE), (b"acTL", &[0, 0, 0, n, 0, 0, 0, 0]), (b"IEND", &[])]);
        assert!(header(&frames(2)).unwrap_err().contains("animation"));
        assert!(header(&frames(1)).is_ok());
    }

    #[test]
    fn a_length_beyond_all_memory_is_a_cut() {
        let mut bytes = png(&[(b"IHDR", SIZE), (b"IDAT", &[])]);
        let at = bytes.len() - 12;
        bytes[at..at + 4].fill(0xff);
        assert!(header(&bytes).unwrap_err().contains("cut short"));
        assert!(header(&png(&[(b"IDAT", &[]), (b"IEND", &[])])).unwrap_err().contains("does not begin"));
    }
}
