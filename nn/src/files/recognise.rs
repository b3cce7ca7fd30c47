//! Recognises files that should be safetensors and are not, such as failed downloads.

/// The kind of a file by its first bytes, as the end of the sentence "FILE is ...", with what to do; nothing if it is
/// none that is known.
pub(super) fn recognise(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return Some("empty: what was to write it failed, or a download never began".into());
    }
    text_kind(bytes).or_else(|| {
        let named =
            |(magic, kind): &(&[u8], &str)| bytes.starts_with(magic).then(|| format!("{kind}; {CONVERT}"));
        SIGNATURES.iter().find_map(named).or_else(|| archive(bytes))
    })
}

const CONVERT: &str = "expected safetensors";
const PICKLE: &str = "it can run any program when it is read, so it is not read here: load it where you trust it, and save its \
                      tensors as safetensors";

/// What files of other kinds begin with.
const SIGNATURES: [(&[u8], &str); 10] = [
    (b"GGUF", "a GGUF file, whose weights are quantised for llama.cpp and its kin"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard: unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF-", "a PDF document"),
];

fn text_kind(bytes: &[u8]) -> Option<String> {
    const SEARCHED: usize = 4096;
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(SEARCHED)]);
    let text = start.trim_start_matches('\u{feff}').trim_start();
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
        let size = size.map_or(String::new(), |size| format!(" to a file of {size} bytes"));
        return Some(format!(
            "a pointer of Git LFS{size}, not the file itself: fetch it with `git lfs pull`"
        ));
    }
    let lower = text.chars().take(64).collect::<String>().to_lowercase();
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.starts_with("<head") {
        let begin = start.find("<title>").map(|at| at + "<title>".len());
        let title = begin.and_then(|begin| Some(start[begin..].split_once("</title>")?.0.trim().to_owned()));
        let title = title.filter(|t| !t.is_empty()).map_or(String::new(), |t| format!(" ({t:?})"));
        return Some(format!(
            "a web page{title}, not the file itself: the download needs a login, or the link leads to the page about it"
        ));
    }
    if lower.starts_with("<?xml") {
        return Some("an XML document, as servers send it for an error: download the file again".into());
    }
    // A header of safetensors has a length of eight bytes before its brace.
    if text.starts_with('{') {
        return Some(
            "JSON: if it lists the shards of a checkpoint, its name must end with `.safetensors.index.json`"
                .into(),
        );
    }
    None
}

/// Zip archives, of which those that PyTorch saves are one, and what it saved before.
fn archive(bytes: &[u8]) -> Option<String> {
    const SEARCHED: usize = 1 << 16;
    let start = &bytes[..bytes.len().min(SEARCHED)];
    if start.starts_with(b"PK\x03\x04") {
        let pickled = start.windows(8).any(|window| window == b"data.pkl");
        return Some(match pickled {
            true => format!("a pickle of PyTorch (`.pt`, `.pth`, `.ckpt` or `.bin`): {PICKLE}"),
            false => format!("a zip archive: unpack it first; {CONVERT}"),
        });
    }
    let pickled = start.len() > 2 && start[0] == 0x80 && (2..=5).contains(&start[1]);
    if pickled {
        return Some(format!("a pickle of Python (`.pt`, `.ckpt` or `.bin`): {PICKLE}"));
    }
    let tar = start.get(257..262) == Some(b"ustar");
    tar.then(|| format!("a tar archive: unpack it first; {CONVERT}"))
}

#[cfg(test)]
mod tests {
    use crate::files::TensorFiles;

    /// What is said of a file with these bytes.
    fn said(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        TensorFiles::open(&path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_of_another_kind_is_called_what_it_is() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 344386744\n";
        let mut zip = b"PK\x03\x04\x00\x00\x08\x08".to_vec();
        zip.resize(26, 0);
        let pickle = [&zip[..], b"\x0f\x00\x13\x00archive/data.pkl"].concat();
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], &str); 14] = [
            (
                pointer,
                "a pointer of Git LFS to a file of 344386744 bytes, not the file itself: fetch it with `git lfs pull`",
            ),
            (b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>", "a web page (\"Sign in\")"),
            (b"\xef\xbb\xbf\n<HTML lang=en>", "a web page, not"),
            (b"<?xml version=\"1.0\"?><Error/>", "an XML document"),
            (&pickle, "a pickle of PyTorch"),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle of Python"),
            (&zip, "a zip archive"),
            (b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", "a GGUF file"),
            (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "compressed by gzip"),
            (&tar, "a tar archive"),
            (b"{\"weight_map\": {}}", "is JSON"),
            (b"\x89PNG\r\n\x1a\n\x00\x00", "a PNG picture"),
            (b"", "is empty"),
            (b"GG", "cut off inside its header (2 bytes)"),
        ];
        for (bytes, expected) in cases {
            let error = said(bytes);
            assert!(
                error.contains("model.safetensors: is ") && error.contains(expected),
                "{expected}: {error}"
            );
        }
    }

    #[test]
    fn an_index_of_shards_that_is_another_file_is_called_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors.index.json");
        std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\nsize 12\n").unwrap();
        assert!(TensorFiles::open(&path).unwrap_err().to_string().contains("a pointer of Git LFS"));
        for other in ["[]", "{}"] {
            std::fs::write(&path, other).unwrap();
            assert!(TensorFiles::open(&path).unwrap_err().to_string().contains("is not an index of shards"));
        }
    }

    #[test]
    fn a_torn_header_is_not_taken_for_another_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        crate::files::write_safetensors(&path, &[crate::files::NamedTensor::f32("w", vec![1], &[1.0])], &[])
            .unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] = b'!';
        assert!(said(&bytes).contains("is not a safetensors file: "));
        assert!(said(&bytes[..20]).contains("cut off"));
    }
}
