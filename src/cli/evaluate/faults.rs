//! Pictures that should be there and are not, or are there and should not be.

use std::collections::BTreeSet;

use prefgraph_ops::operators::benchmark::{PHOTOGRAPHS, Survey};
use serde_json::{Value, json};

use crate::cli::say::say;

/// Pictures of a kind that are named.
const NAMED: usize = 10;

/// Name them, on standard error.
pub(super) fn tell(survey: &Survey) {
    some(survey.missing.iter().map(|number| &survey.cases[*number]), "missing", |case| {
        match case.path.as_os_str().is_empty() {
            true => say!("missing: {:?} is not in the mapping", case.id),
            false => say!("missing: {}", case.path.display()),
        }
    });
    some(survey.surplus.iter(), "surplus", |path| say!("surplus: {}", path.display()));
    for (path, (height, width)) in &survey.wrong_size {
        let wanted = survey.size.map(|(h, w)| format!(", not {w} x {h}")).unwrap_or_default();
        say!("of another size: {}: {width} x {height} pixels (width x height){wanted}", path.display());
    }
    for (_, reason) in &survey.unreadable {
        say!("unreadable: {reason}");
    }
    if survey.turned > 0 {
        say!(
            "note: {} photographs would be turned by EXIF; they are compared as they are stored, as the scripts do",
            survey.turned
        );
    }
    let subjects: BTreeSet<usize> = survey.photographs.iter().map(|p| p.subject).collect();
    let (count, all) = (survey.photographs.len(), subjects.len() == survey.preset.subjects().len());
    if all && count > subjects.len() && count != PHOTOGRAPHS {
        say!("note: {count} photographs; the published data set has {PHOTOGRAPHS}");
    }
}

/// Name the first of some pictures, and say how many there are. A report has all of them.
fn some<T>(all: impl ExactSizeIterator<Item = T>, what: &str, name: impl FnMut(T)) {
    let count = all.len();
    all.take(NAMED).for_each(name);
    if count > NAMED {
        say!("{what}: {count} in all, of which these are the first {NAMED}");
    }
}

/// The same for the report.
pub(super) fn value(survey: &Survey) -> Value {
    let missing = survey.missing.iter().map(|number| &survey.cases[*number]);
    let wrong = survey
        .wrong_size
        .iter()
        .map(|(path, (height, width))| json!({"file": path, "height": height, "width": width}));
    json!({
        "missing": missing.map(|case| json!({"id": case.id, "file": case.path})).collect::<Vec<_>>(),
        "surplus": survey.surplus,
        "of_another_size": wrong.collect::<Vec<_>>(),
        "unreadable": survey.unreadable.iter().map(|(path, why)| json!({"file": path, "why": why})).collect::<Vec<_>>(),
    })
}
