//! Where a JPEG ends. The decoder fills what is missing with grey, and phones put a video behind a picture: so the
//! segments and scans are walked, from the start of the picture to the end marker that belongs to it.

/// Number of colour components of a CMYK picture.
const CMYK: u8 = 4;

/// Bytes of the picture, its end marker included; what follows is not part of it.
///
/// # Errors
/// If the picture ends before its end marker, has none of its scans, or is in CMYK.
pub(super) fn end(bytes: &[u8]) -> Result<usize, String> {
    let cut = || "is cut short: the JPEG ends before its end marker".to_owned();
    let (mut at, mut scans) = (2, 0);
    loop {
        at += bytes.get(at..).and_then(marker).ok_or_else(cut)?;
        let code = bytes[at + 1];
        at += 2;
        match code {
            // TEM, restarts and another start have no payload.
            0x01 | 0xd0..=0xd8 => continue,
            0xd9 if scans > 0 => return Ok(at),
            0xd9 => return Err("holds no picture: the JPEG ends before its first scan".into()),
            _ => {}
        }
        let length = bytes.get(at..at + 2).and_then(|b| b.first_chunk::<2>()).ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let payload = bytes.get(at + 2..at + length).ok_or_else(cut)?;
        if is_frame(code) && payload.get(5) == Some(&CMYK) {
            return Err("is a CMYK JPEG, whose colours depend on a printer's profile: save it as RGB".into());
        }
        at += length;
        scans += usize::from(code == 0xda);
    }
}

/// Where the next marker is. What is passed over is the data of a scan, in which 0xff is followed by 0x00, and between
/// segments fill bytes and stray ones, which decoders pass over, too.
fn marker(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0x00 | 0xff))
}

/// Start-of-frame markers, but for tables of Huffman codes, extensions and arithmetic conditioning.
fn is_frame(marker: u8) -> bool {
    (0xc0..=0xcf).contains(&marker) && ![0xc4, 0xc8, 0xcc].contains(&marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start, a frame of so many components, one scan of `data`; no end marker.
    fn jpeg(components: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xc0, 0, 8, 8, 0, 16, 0, 16, components];
        bytes.extend([0xff, 0xda, 0, 3, 7]);
        bytes.extend(data);
        bytes
    }

    const END: [u8; 2] = [0xff, 0xd9];

    #[test]
    fn the_first_end_marker_after_a_scan_ends_the_picture() {
        let mut bytes = jpeg(3, &[1, 2, 0xff, 0x00, 0xd9, 0xff, 0xd3, 4, 0xff]);
        bytes.extend(END);
        let length = bytes.len();
        assert_eq!(end(&bytes), Ok(length));
        // A video behind it that holds a start of a scan, and no end.
        bytes.extend([0, 0, 0, 24, b'f', b't', b'y', b'p', 0xff, 0xda, 9, 9]);
        assert_eq!(end(&bytes), Ok(length));
    }

    #[test]
    fn a_thumbnail_inside_a_segment_does_not_end_the_picture() {
        let mut thumbnail = jpeg(3, &[5]);
        thumbnail.extend(END);
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1, 0, thumbnail.len() as u8 + 2];
        bytes.extend(thumbnail);
        bytes.extend(&jpeg(3, &[1, 2, 3])[2..]);
        assert!(end(&bytes).unwrap_err().contains("cut short"));
        bytes.extend(END);
        assert_eq!(end(&bytes), Ok(bytes.len()));
    }

    #[test]
    fn tables_and_further_scans_may_follow_a_scan() {
        let mut bytes = jpeg(1, &[1]);
        bytes.extend([0xff, 0xc4, 0, 4, 0xff, 0xd9, 0xff, 0xff, 0xda, 0, 3, 7, 8, 9]);
        let without = bytes.len();
        bytes.extend(END);
        assert_eq!(end(&bytes), Ok(without + 2));
        for length in 0..without + 2 {
            assert!(end(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_picture_without_a_scan_and_one_in_cmyk_are_refused() {
        assert!(end(&[0xff, 0xd8, 0xff, 0xd9]).unwrap_err().contains("before its first scan"));
        assert!(end(&jpeg(4, &[1])).unwrap_err().contains("CMYK"));
        // A segment cannot be shorter than its own length.
        assert!(end(&[0xff, 0xd8, 0xff, 0xe0, 0, 1, 0xff, 0xd9]).is_err());
    }
}
