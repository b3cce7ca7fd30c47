//! The format of a file by its first bytes, whatever its name.

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
}

/// First bytes of formats that are not read.
const OTHERS: [(&[u8], &str); 16] = [
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a TIFF"),
    (b"MM\0+", "a TIFF"),
    (b"BM", "a BMP"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"8BPS", "a Photoshop file"),
    (b"\x76\x2f\x31\x01", "an OpenEXR"),
    (b"qoif", "a QOI"),
    (b"#?RADIANCE", "a Radiance HDR"),
    (b"%PDF", "a PDF"),
    (b"\0\0\x01\0", "an icon (ICO)"),
];

/// The format of a file.
///
/// # Errors
/// If it is none that is read: what it is, where that is known, and what to do.
pub(super) fn format(bytes: &[u8]) -> Result<Format, String> {
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        return Ok(Format::Jpeg);
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(Format::WebP);
    }
    Err(match other(bytes) {
        Some(name) => {
            format!("is {name}; PNG, JPEG and WebP are read: convert it, to PNG to keep every pixel")
        }
        None => text(bytes).unwrap_or_else(|| "is neither a PNG nor a JPEG nor a WebP file".into()),
    })
}

fn other(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return Some(media(bytes));
    }
    OTHERS.into_iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, name)| name)
}

/// A file of the ISO family, by its brands.
fn media(bytes: &[u8]) -> &'static str {
    let length = bytes.first_chunk::<4>().map_or(0, |b| u32::from_be_bytes(*b) as usize);
    let brands = bytes.get(8..length.min(bytes.len())).unwrap_or_default();
    let has = |brand: &[u8; 4]| brands.as_chunks::<4>().0.contains(brand);
    // An AVIF file may name HEIC's general brands, too.
    if has(b"avif") || has(b"avis") {
        "an AVIF"
    } else if [b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"].into_iter().any(has) {
        "a HEIC"
    } else {
        "a video, or a raw file of a camera"
    }
}

/// What is no picture at all, but often lies in the place of one.
fn text(bytes: &[u8]) -> Option<String> {
    let start: Vec<u8> = bytes.trim_ascii_start().iter().take(64).map(u8::to_ascii_lowercase).collect();
    if start.starts_with(b"version https://git-lfs") {
        return Some("is a Git LFS pointer, not the picture itself: `git lfs pull` fetches it".into());
    }
    if start.starts_with(b"<!doctype html") || start.starts_with(b"<html") {
        return Some("is a web page: the download gave this in place of the picture".into());
    }
    let vector = start.starts_with(b"<svg") || start.starts_with(b"<?xml");
    vector.then(|| "is an SVG or other XML: draw it as a PNG".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_told_by_its_first_bytes() {
        assert_eq!(format(b"\x89PNG\r\n\x1a\n...."), Ok(Format::Png));
        assert_eq!(format(b"\xff\xd8\xff\xe0"), Ok(Format::Jpeg));
        assert_eq!(format(b"RIFF\x10\0\0\0WEBPVP8 "), Ok(Format::WebP));
    }

    #[test]
    fn what_is_not_read_is_named_with_what_to_do() {
        let cases: [(&[u8], &str); 10] = [
            (b"GIF89a......", "is a GIF; PNG, JPEG and WebP are read"),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "is an AVIF"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "is an AVIF"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC"),
            (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "is a video"),
            (b"MM\0*\0\0\0\x08", "is a TIFF"),
            (b"BM6\0\0\0", "is a BMP"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"\n<!DOCTYPE HTML><html>", "is a web page"),
            (b"RIFF\x10\0\0\0WAVEfmt ", "is neither a PNG nor a JPEG nor a WebP"),
        ];
        for (bytes, expected) in cases {
            let error = format(bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        // Shorter than any of them.
        for length in 0..12 {
            assert!(format(&b"RIFF\x10\0\0\0WEBP"[..length]).is_err());
        }
    }
}
