//! The text of an endpoint, taken apart.

use super::wire::Tap;

/// `node`, `node.port`, and either of them after `grad:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path<'a> {
    pub tap: Tap,
    pub id: &'a str,
    /// Where the id starts, in bytes.
    pub id_at: usize,
    pub port: Option<&'a str>,
}

impl<'a> Path<'a> {
    pub fn parse(text: &'a str) -> Self {
        let (tap, path) = match text.strip_prefix("grad:") {
            Some(path) => (Tap::Cotangent, path),
            None => (Tap::Value, text),
        };
        let (id, port) = path.split_once('.').map_or((path, None), |(id, port)| (id, Some(port)));
        Self { tap, id, id_at: text.len() - path.len(), port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_an_id_perhaps_a_port_and_perhaps_a_cotangent() {
        let path = |tap, id, id_at, port| Path { tap, id, id_at, port };
        assert_eq!(Path::parse("winner"), path(Tap::Value, "winner", 0, None));
        assert_eq!(Path::parse("noise.x_t"), path(Tap::Value, "noise", 0, Some("x_t")));
        assert_eq!(Path::parse("grad:lora.a.b"), path(Tap::Cotangent, "lora", 5, Some("a.b")));
    }
}
