//! Lists of preference pairs: their lines, and which samples are in one to measure on.

use std::io::{self, Write};

use serde_json::{Value, json};

/// Write the line of a pair. By hand at the top level, so that a line reads in the order of the format's description.
pub fn write_line(
    list: &mut impl Write,
    (id, prompt): (&str, &str),
    references: &[Value],
    [win, lose]: [String; 2],
    priors: &[String],
) -> io::Result<()> {
    writeln!(
        list,
        r#"{{"id": {}, "prompt": {}, "refs": {}, "win": {}, "lose": {}}}"#,
        json!(id),
        json!(prompt),
        json!(references),
        json!({"image": win, "prior": priors}),
        json!({"image": lose, "prior": priors}),
    )
}

/// Of samples and what each of their subjects is, as many with one and with two subjects as `wanted` says: the first ones of which no
/// subject is `seen` before, until `all` are. Returns how many are missing, too.
pub fn unseen<T, K: PartialEq>(
    samples: impl IntoIterator<Item = (T, Vec<K>)>,
    mut seen: Vec<K>,
    all: usize,
    wanted: [usize; 2],
) -> (Vec<T>, [usize; 2]) {
    let (mut chosen, mut left) = (Vec::new(), wanted);
    for (sample, subjects) in samples {
        if left == [0, 0] || seen.len() >= all {
            break;
        }
        let left = &mut left[subjects.len() - 1];
        if *left > 0 && subjects.iter().all(|subject| !seen.contains(subject)) {
            *left -= 1;
            seen.extend(subjects);
            chosen.push(sample);
        }
    }
    (chosen, left)
}
