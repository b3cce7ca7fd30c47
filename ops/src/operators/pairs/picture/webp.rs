//! Where a WebP ends, and whether it is a still picture.

/// Bytes before the first chunk: `RIFF`, the length of the rest, `WEBP`.
const SIGNATURE: usize = 12;

/// Bytes of the picture; what follows is not part of it.
///
/// # Errors
/// If the file is shorter than it says, or holds an animation.
pub(super) fn end(bytes: &[u8]) -> Result<usize, String> {
    let cut = || "is cut short: the WebP is shorter than it says".to_owned();
    let word = |at: usize| -> Result<usize, String> {
        let word = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).ok_or_else(cut)?;
        Ok(u32::from_le_bytes(*word) as usize)
    };
    let end = word(4)?.saturating_add(8);
    let mut at = SIGNATURE;
    if end > bytes.len() || end < SIGNATURE + 8 {
        return Err(cut());
    }
    while at + 8 <= end {
        let (kind, length) = (&bytes[at..at + 4], word(at + 4)?);
        if length > end - at - 8 {
            return Err(cut());
        }
        if kind == b"ANIM" || kind == b"ANMF" {
            return Err("is an animation: save the one frame that is meant".into());
        }
        // A chunk of an odd length is followed by a byte of padding.
        at += 8 + length.next_multiple_of(2);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webp(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut body = b"WEBP".to_vec();
        for (kind, payload) in chunks {
            body.extend(*kind);
            body.extend((payload.len() as u32).to_le_bytes());
            body.extend(*payload);
            body.extend(vec![0; payload.len() % 2]);
        }
        [b"RIFF".to_vec(), (body.len() as u32).to_le_bytes().to_vec(), body].concat()
    }

    #[test]
    fn the_end_is_where_the_file_says_and_every_cut_is_found() {
        let mut bytes = webp(&[(b"VP8X", &[0; 10]), (b"VP8 ", &[1, 2, 3])]);
        let length = bytes.len();
        for cut in 0..length {
            assert!(end(&bytes[..cut]).unwrap_err().contains("cut short"), "{cut}");
        }
        bytes.extend(b"something else");
        assert_eq!(end(&bytes), Ok(length));
    }

    #[test]
    fn an_animation_and_a_chunk_longer_than_its_file_are_refused() {
        assert!(end(&webp(&[(b"VP8X", &[0; 10]), (b"ANIM", &[0; 6])])).unwrap_err().contains("animation"));
        let mut bytes = webp(&[(b"VP8X", &[0; 10]), (b"EXIF", &[0; 4])]);
        let at = bytes.len() - 8;
        bytes[at..at + 4].fill(0xff);
        assert!(end(&bytes).unwrap_err().contains("cut short"));
        assert!(end(&webp(&[])).is_err());
    }
}
