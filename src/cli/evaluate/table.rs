//! Scores for people: a line a subject, and the totals.

use prefgraph_ops::words::count;

use super::{
    measure::Against,
    report::{Report, Total, minimum, total},
};

/// As published tables call a metric: `clip_i` is CLIP-I.
fn heading(name: &str) -> String {
    name.to_uppercase().replace('_', "-")
}

/// Digits behind the point: four of a cosine.
fn number(value: f64, scale: f64) -> String {
    match scale >= 100.0 {
        true => format!("{value:.2}"),
        false => format!("{value:.4}"),
    }
}

fn interval(total: &Total, scale: f64) -> String {
    match total.interval {
        Some(i) => format!("[{}, {}]", number(i.low, scale), number(i.high, scale)),
        None => "one subject".into(),
    }
}

/// Rows of cells, in columns.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |text| text.chars().count());
    let widths: Vec<usize> =
        (0..columns).map(|c| rows.iter().map(|row| cell(row, c)).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (text, width))| match column {
            0 => format!("{text:<width$}"),
            _ => format!("  {text:>width$}"),
        });
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

pub(super) fn table(report: &Report<'_>) -> String {
    let (survey, measurement) = (&report.ours.survey, &report.ours.measurement);
    let (metrics, scale) = (&measurement.metrics, survey.preset.scale);
    let mut text = format!("{} ({})\n", survey.preset.name, survey.preset.script);
    if report.is_incomplete() {
        text += &format!(
            "INCOMPLETE: {} of {}; not comparable with any table\n",
            measurement.ids.len(),
            count(survey.cases.len(), "picture")
        );
    }
    for departure in &report.encoders.departures {
        text += &format!("NOT COMPARABLE: {departure}\n");
    }
    let resamples = report.resamples();
    let columns =
        |cells: &dyn Fn(&super::measure::Metric) -> String| metrics.iter().map(cells).collect::<Vec<_>>();
    let row =
        |name: &str, pictures: String, cells: Vec<String>| [vec![name.to_owned(), pictures], cells].concat();
    let mut rows = vec![row("", "pictures".into(), columns(&|m| heading(&m.name)))];
    for (place, group) in metrics.first().map_or(&[][..], |m| &m.score.groups[..]).iter().enumerate() {
        let cells = columns(&|m| number(m.score.groups[place].mean, scale));
        rows.push(row(report.name_of(group.group), group.pictures.to_string(), cells));
    }
    let of =
        |found: Option<Total>, show: &dyn Fn(&Total) -> String| found.map_or(String::new(), |t| show(&t));
    let mean = |t: &Total| number(t.value, scale);
    rows.push(row("mean", measurement.ids.len().to_string(), columns(&|m| of(total(m, &resamples), &mean))));
    let ends = |t: &Total| interval(t, scale);
    rows.push(row(
        "  95 % of resampled subjects",
        String::new(),
        columns(&|m| of(total(m, &resamples), &ends)),
    ));
    if report.is_paired() {
        let least = |m: &super::measure::Metric, show: &dyn Fn(&Total) -> String| match m.against {
            Against::Photographs => of(minimum(m, &resamples), show),
            Against::Prompt => String::new(),
        };
        rows.push(row("minimum over subjects", String::new(), columns(&|m| least(m, &mean))));
        rows.push(row("  95 % of resampled pairs", String::new(), columns(&|m| least(m, &ends))));
    }
    let lowest =
        |m: &super::measure::Metric| m.score.lowest().map_or(String::new(), |g| number(g.mean, scale));
    rows.push(row("lowest subject", String::new(), columns(&lowest)));
    let name = |m: &super::measure::Metric| {
        m.score.lowest().map_or(String::new(), |g| report.name_of(g.group).to_owned())
    };
    rows.push(row("  which is", String::new(), columns(&name)));
    if report.settings.real {
        let share = |m: &super::measure::Metric| {
            m.nearest.map_or(String::new(), |hits| {
                format!("{:.1} %", 100.0 * hits as f64 / m.pictures.len() as f64)
            })
        };
        rows.push(row("nearest of the same subject", String::new(), columns(&share)));
    }
    text += &aligned(&rows);
    text += &differences(report, scale);
    text
}

fn differences(report: &Report<'_>, scale: f64) -> String {
    let Some((folder, _)) = report.theirs else { return String::new() };
    let differences = report.differences();
    let pictures = differences.first().map_or(0, |d| d.pictures.len());
    let mut text = format!("\nless `{}`, over {} of both\n", folder.display(), count(pictures, "picture"));
    let signed = |value: f64| format!("{}{}", if value < 0.0 { "" } else { "+" }, number(value, scale));
    let mut rows = vec![["", "difference", "95 %", "subjects higher"].map(String::from).to_vec()];
    for d in &differences {
        let higher = d.groups.iter().filter(|(_, difference)| *difference > 0.0).count();
        let higher = format!("{higher} of {}", d.groups.len());
        rows.push(vec![heading(d.metric), signed(d.total.value), interval(&d.total, scale), higher]);
        if report.is_paired() && d.against == Against::Photographs {
            let name = format!("  {} minimum over subjects", heading(d.metric));
            rows.push(vec![name, signed(d.minimum.value), interval(&d.minimum, scale)]);
        }
    }
    text += &aligned(&rows);
    text
}
