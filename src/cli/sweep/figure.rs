//! The figure of a sweep, as SVG: a panel for every measure, with lines over one setting, a map over two, and a mark for each
//! variant over more.

use std::fmt::Write as _;

use super::report::{Report, shortened};
use crate::cli::{health::Better, tables::value};

/// Panels at most.
const PANELS: usize = 4;
/// Size of a panel and of its margins, in pixels.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const TITLE: f64 = 44.0;
const INK: &str = "#222222";
const GREY: &str = "#bbbbbb";
const LINE: &str = "#1f5fa8";

/// What is drawn of a variant in a panel.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark {
    value: f64,
    error: f64,
}

/// A panel: a measure of every variant; `None` where there is none, or the variant has diverged.
struct Panel<'a> {
    name: &'a str,
    better: Better,
    marks: Vec<Option<Mark>>,
    best: Option<usize>,
}

/// The texts of an axis: what it varies, and its values.
struct Labels {
    title: String,
    values: Vec<String>,
}

/// The file's text.
pub(super) fn svg(report: &Report<'_>, axes: &[(Vec<String>, Vec<String>)], title: &str) -> String {
    let panels: Vec<Panel<'_>> =
        report.shown().into_iter().take(PANELS).map(|name| panel(report, name)).collect();
    let labels: Vec<Labels> = axes
        .iter()
        .map(|(names, values)| Labels {
            title: names.join(", "),
            values: values.iter().map(|v| shortened(v)).collect(),
        })
        .collect();
    let columns = panels.len().clamp(1, 2);
    let rows = panels.len().div_ceil(columns).max(1);
    let (width, height) = (WIDTH * columns as f64, TITLE + HEIGHT * rows as f64);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">"
    );
    let _ = writeln!(out, "<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>");
    text(&mut out, width / 2.0, 26.0, "middle", "font-size=\"15\"", title);
    for (at, panel) in panels.iter().enumerate() {
        let (x, y) = ((at % columns) as f64 * WIDTH, TITLE + (at / columns) as f64 * HEIGHT);
        let _ = writeln!(out, "<g transform=\"translate({x},{y})\">");
        let better = if panel.better == Better::Higher { "higher is better" } else { "lower is better" };
        text(&mut out, LEFT + plot_width() / 2.0, 24.0, "middle", "", &format!("{} ({better})", panel.name));
        match &labels[..] {
            [rows, columns] => map(&mut out, panel, rows, columns),
            [one] => lines(&mut out, panel, one, true),
            _ => {
                let numbers = (1..=panel.marks.len()).map(|n| n.to_string()).collect();
                lines(&mut out, panel, &Labels { title: "variant".into(), values: numbers }, false);
            }
        }
        out += "</g>\n";
    }
    out + "</svg>\n"
}

fn panel<'a>(report: &Report<'a>, name: &'a str) -> Panel<'a> {
    let mark = |point: crate::cli::health::Point| Mark { value: point.mean.value, error: point.mean.error };
    let marks = report.rows.iter().map(|row| row.last(name).map(mark).filter(|m| m.value.is_finite()));
    Panel { name, better: report.better(name), marks: marks.collect(), best: report.best(name) }
}

fn plot_width() -> f64 {
    WIDTH - LEFT - RIGHT
}

fn plot_height() -> f64 {
    HEIGHT - TOP - BOTTOM
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, more: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{content}</text>");
}

/// The least and the largest of some values; something around a single one.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        width if width > 0.0 && width.is_finite() => (low, high),
        _ if low.is_finite() => (low - low.abs().max(1e-12) * 0.1, low + low.abs().max(1e-12) * 0.1),
        _ => (0.0, 1.0),
    }
}

/// Marks over one row of values, with their standard errors.
fn lines(out: &mut String, panel: &Panel<'_>, labels: &Labels, joined: bool) {
    let ends = |m: &Mark| {
        let error = if m.error.is_finite() { m.error } else { 0.0 };
        [m.value - error, m.value + error]
    };
    let (low, high) = range(panel.marks.iter().flatten().flat_map(ends));
    let (low, high) = (low - 0.06 * (high - low), high + 0.06 * (high - low));
    let y = |v: f64| TOP + plot_height() * (high - v) / (high - low);
    let count = panel.marks.len().max(1);
    let x = |at: usize| LEFT + plot_width() * (at as f64 + 0.5) / count as f64;
    for tick in 0..5 {
        let v = low + (high - low) * f64::from(tick) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#e6e6e6\"/>",
            y(v),
            LEFT + plot_width(),
            y(v)
        );
        text(out, LEFT - 6.0, y(v) + 4.0, "end", "font-size=\"10\"", &value(panel.name, v));
    }
    if low < 0.0 && high > 0.0 {
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" stroke=\"{GREY}\"/>",
            y(0.0),
            LEFT + plot_width()
        );
    }
    let points: Vec<String> = panel
        .marks
        .iter()
        .enumerate()
        .filter_map(|(at, mark)| Some(format!("{:.1},{:.1}", x(at), y(mark.as_ref()?.value))))
        .collect();
    if joined && points.len() > 1 {
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{LINE}\" stroke-width=\"1.5\"/>",
            points.join(" ")
        );
    }
    for (at, mark) in panel.marks.iter().enumerate() {
        let Some(mark) = mark else {
            text(out, x(at), TOP + 12.0, "middle", "font-size=\"10\"", "diverged");
            continue;
        };
        let [from, to] = ends(mark).map(y);
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" y1=\"{from:.1}\" x2=\"{0:.1}\" y2=\"{to:.1}\" stroke=\"{LINE}\"/>",
            x(at)
        );
        let fill = if panel.best == Some(at) { LINE } else { "white" };
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"{LINE}\" stroke-width=\"1.5\"/>",
            x(at),
            y(mark.value)
        );
    }
    // Labels of many variants would cover each other.
    let every = count.div_ceil(12).max(1);
    for (at, label) in labels.values.iter().enumerate().filter(|(at, _)| at % every == 0) {
        text(out, x(at), TOP + plot_height() + 16.0, "middle", "font-size=\"10\"", label);
    }
    text(out, LEFT + plot_width() / 2.0, HEIGHT - 22.0, "middle", "", &labels.title);
}

/// A map over two settings: the first downwards, the second to the right.
fn map(out: &mut String, panel: &Panel<'_>, rows: &Labels, columns: &Labels) {
    let (across, down) = (columns.values.len().max(1), rows.values.len().max(1));
    let (width, height) = (plot_width() / across as f64, plot_height() / down as f64);
    let (low, high) = range(panel.marks.iter().flatten().map(|m| m.value));
    for (at, mark) in panel.marks.iter().enumerate() {
        let (x, y) = (LEFT + (at % across) as f64 * width, TOP + (at / across) as f64 * height);
        let share = mark.map(|m| match panel.better {
            Better::Higher => (m.value - low) / (high - low),
            Better::Lower => (high - m.value) / (high - low),
        });
        let fill = share.map_or(GREY.to_owned(), shade);
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" stroke=\"white\"/>"
        );
        let ink = if share.is_some_and(|s| s > 0.55) { "fill=\"white\"" } else { "" };
        let bold = if panel.best == Some(at) { " font-weight=\"bold\"" } else { "" };
        let size = if width < 60.0 { 8 } else { 11 };
        let said = mark.map_or("diverged".to_owned(), |m| value(panel.name, m.value));
        let more = format!("font-size=\"{size}\" {ink}{bold}");
        text(out, x + width / 2.0, y + height / 2.0 + 4.0, "middle", &more, &said);
    }
    for (at, label) in columns.values.iter().enumerate() {
        let x = LEFT + (at as f64 + 0.5) * width;
        text(out, x, TOP + plot_height() + 16.0, "middle", "font-size=\"10\"", label);
    }
    for (at, label) in rows.values.iter().enumerate() {
        let y = TOP + (at as f64 + 0.5) * height + 4.0;
        text(out, LEFT - 6.0, y, "end", "font-size=\"10\"", label);
    }
    text(out, LEFT + plot_width() / 2.0, HEIGHT - 22.0, "middle", "", &columns.title);
    let middle = TOP + plot_height() / 2.0;
    text(out, 16.0, middle, "middle", &format!("transform=\"rotate(-90 16 {middle:.1})\""), &rows.title);
}

/// From nearly white to blue.
fn shade(share: f64) -> String {
    let mix = |from: f64, to: f64| (from + (to - from) * share.clamp(0.0, 1.0)).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(237.0, 31.0), mix(243.0, 95.0), mix(250.0, 168.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(marks: Vec<Option<Mark>>) -> Panel<'static> {
        Panel { name: "held_out.margin", better: Better::Higher, marks, best: Some(0) }
    }

    fn labels(title: &str, values: &[&str]) -> Labels {
        Labels { title: title.into(), values: values.iter().map(|v| (*v).to_owned()).collect() }
    }

    #[test]
    fn a_map_has_a_field_for_every_variant_and_says_which_have_diverged() {
        let mark = |value| Some(Mark { value, error: 0.1 });
        let mut out = String::new();
        let panel = panel(vec![mark(1.0), mark(0.5), None, mark(0.0)]);
        map(&mut out, &panel, &labels("a.x", &["<1>", "2"]), &labels("b.y", &["3", "4"]));
        assert_eq!(out.matches("<rect").count(), 4);
        assert_eq!(out.matches("diverged").count(), 1);
        assert!(out.contains(&shade(1.0)) && out.contains(&shade(0.0)), "{out}");
        assert!(out.contains("&lt;1&gt;") && out.contains("a.x") && !out.contains("NaN"), "{out}");
    }

    #[test]
    fn lines_have_a_mark_for_every_variant_even_if_all_are_alike() {
        let mut out = String::new();
        let same = Some(Mark { value: 0.0, error: f64::INFINITY });
        lines(&mut out, &panel(vec![same, same, None]), &labels("a.x", &["1", "2", "3"]), true);
        assert_eq!(out.matches("<circle").count(), 2);
        assert_eq!(out.matches("<polyline").count(), 1);
        assert!(!out.contains("NaN") && !out.contains("inf"), "{out}");
    }
}
