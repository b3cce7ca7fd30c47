//! The kernels of a source, found in what the preprocessor makes of it: without comments, with macros expanded.

/// What `__global__` and `__launch_bounds__` are while the source is only preprocessed.
pub const GLOBAL: &str = "emu_mark_kernel";
pub const BOUNDS: &str = "emu_mark_bounds";

/// Threads of a block where a kernel says nothing.
const MOST_THREADS: &str = "1024";

/// Name and launch bound (an expression) of each kernel.
pub fn kernels(preprocessed: &str) -> Vec<(String, String)> {
    let pieces = preprocessed.split(GLOBAL).skip(1);
    pieces.filter_map(kernel).collect()
}

/// What follows the mark: `void`, a bound and a name, in the order that the author likes. A declaration is no kernel.
fn kernel(text: &str) -> Option<(String, String)> {
    let mut rest = text.trim_start();
    let mut bound = MOST_THREADS.to_owned();
    loop {
        if let Some(after) = rest.strip_prefix("void") {
            rest = after.trim_start();
        } else if let Some(after) = rest.strip_prefix(BOUNDS) {
            let (inside, after) = parenthesised(after.trim_start())?;
            bound = first_argument(inside).trim().to_owned();
            rest = after.trim_start();
        } else {
            break;
        }
    }
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
    let (name, after) = rest.split_at(end);
    let (_, body) = parenthesised(after.trim_start())?;
    (!name.is_empty() && body.trim_start().starts_with('{')).then(|| (name.to_owned(), bound))
}

/// What is between a first parenthesis and its partner, and what follows.
fn parenthesised(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('(')?;
    let mut depth = 1;
    for (at, letter) in inside.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inside[..at], &inside[at + 1..]));
        }
    }
    None
}

fn first_argument(list: &str) -> &str {
    let mut depth = 0;
    for (at, letter) in list.char_indices() {
        match letter {
            '(' | '<' => depth += 1,
            ')' | '>' => depth -= 1,
            ',' if depth == 0 => return &list[..at],
            _ => {}
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_with_their_bounds() {
        let text = format!(
            "extern \"C\" {GLOBAL} void {BOUNDS}((4 * 32), 2) one(float* x) {{ f(); }}\n\
             extern \"C\" {GLOBAL} {BOUNDS}(N) void two(int (*f)(int), int n)\n{{}}\n\
             extern \"C\" {GLOBAL} void declared(int);\nextern \"C\" {GLOBAL} void three() {{}}"
        );
        let found = kernels(&text);
        let found: Vec<(&str, &str)> = found.iter().map(|(name, bound)| (&name[..], &bound[..])).collect();
        assert_eq!(found, [("one", "(4 * 32)"), ("two", "N"), ("three", "1024")]);
    }
}
