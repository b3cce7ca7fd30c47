//! What was measured, in tables: which measures, in which order, with which digits.

use super::recent::Mean;

/// What training minimises.
pub(super) const LOSS: &str = "loss";

/// The measures that a table shows, of all that there are: held-out pairs in the place of those of training, and the loss last.
pub(super) fn shown<'n>(names: &[&'n str]) -> Vec<&'n str> {
    const LAST: [&str; 4] = ["margin", "w_diff", "accuracy", "plain_w_diff"];
    let place = |name: &str| LAST.iter().position(|last| name.rsplit('.').next() == Some(last));
    let mut shown: Vec<&str> = names.iter().copied().filter(|name| place(name).is_some()).collect();
    shown.sort_by_key(|name| {
        (!name.contains('.'), name.split('.').next().filter(|_| name.contains('.')), place(name))
    });
    let held_out = shown.iter().any(|name| name.contains('.'));
    // What is measured on the training pairs says less where others were measured.
    shown.retain(|name| name.contains('.') || !held_out);
    shown.extend(names.iter().copied().filter(|name| *name == LOSS));
    shown
}

/// A value of a measure: accuracies and losses as they are, changes with their sign.
pub(super) fn value(name: &str, x: f64) -> String {
    match name.rsplit('.').next() {
        Some(LOSS) => format!("{x:.4}"),
        Some(last) if last.ends_with("accuracy") => format!("{x:.2}"),
        _ => format!("{x:+.2e}"),
    }
}

/// The same with its standard error, where it has one.
pub(super) fn number(name: &str, mean: Mean) -> String {
    let error = match name.rsplit('.').next() {
        _ if !mean.error.is_finite() => String::new(),
        Some(LOSS) => format!(" ± {:.4}", mean.error),
        _ => format!(" ± {:.1e}", mean.error),
    };
    value(name, mean.value) + &error
}

/// Columns one below the other.
pub(super) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> =
            cells.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}", width = width(at))).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_form_of_their_measure() {
        let mean = |value, error| Mean { value, error };
        assert_eq!(number("held_out.margin", mean(2.8e-4, 1.6e-4)), "+2.80e-4 ± 1.6e-4");
        assert_eq!(number("accuracy", mean(0.625, f64::INFINITY)), "0.62");
        assert_eq!(number("loss", mean(0.75123, 0.001)), "0.7512 ± 0.0010");
    }

    #[test]
    fn held_out_pairs_stand_in_the_place_of_those_of_training() {
        let names = ["margin", "loss", "held_out.w_diff", "held_out.margin", "w_diff", "grad_norm"];
        assert_eq!(shown(&names), ["held_out.margin", "held_out.w_diff", "loss"]);
        assert_eq!(shown(&["w_diff", "loss", "margin"]), ["margin", "w_diff", "loss"]);
    }
}
