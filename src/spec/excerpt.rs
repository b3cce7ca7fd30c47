//! What an error shows of a text: whole lines around a place, or the part of a line that is too long to be read.

use std::{ops::Range, sync::Arc};

use miette::{LabeledSpan, MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

/// The longest line that is shown whole, in bytes. miette pads lines to a width, and Rust formats no width above 65 535.
const LONGEST: usize = 1000;
/// Bytes shown on each side of the place in a longer line.
const AROUND: usize = 60;
/// Bytes of a line, and lines, of a marked place; the rest of a larger one is not marked.
const MARKED: usize = 200;
const MARKED_LINES: usize = 20;
/// Lines between places that are shown in one picture.
const LINES: usize = 60;

/// A text and its name, of which errors show a part.
#[derive(Clone, Debug)]
pub(super) struct Excerpt {
    pub name: Arc<str>,
    pub text: Arc<str>,
}

/// The nearest place not behind `at` at which a character begins.
fn boundary(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn is_readable(text: &str) -> bool {
    text.lines().all(|line| line.len() <= LONGEST)
}

/// A message without the middle of what it quotes, if that is as long as a file.
pub(super) fn shortened(message: String) -> String {
    const HALF: usize = 800;
    if message.len() <= 4 * HALF {
        return message;
    }
    let end = boundary(&message, message.len() - HALF);
    format!("{} ... {}", &message[..boundary(&message, HALF)], &message[end..])
}

impl Excerpt {
    /// A mark at `range`, or at as much of its beginning as can be shown.
    pub fn mark(&self, range: Range<usize>, label: String) -> LabeledSpan {
        let start = boundary(&self.text, range.start);
        let marked = &self.text[start..boundary(&self.text, range.end).max(start)];
        let mut len = 0;
        for line in marked.split_inclusive('\n').take(MARKED_LINES) {
            if line.len() > MARKED {
                len += boundary(line, MARKED);
                break;
            }
            len += line.len();
        }
        LabeledSpan::new_with_span(Some(label), (start, len))
    }

    /// Characters of a line before `at`.
    fn column(&self, at: usize) -> usize {
        self.text[..at].chars().rev().take_while(|c| *c != '\n').count()
    }

    /// The lines that `span` touches, each as far as it is near.
    fn window(&self, span: Range<usize>, from_span: bool) -> MietteSpanContents<'_> {
        let text = &*self.text;
        let line = text[..span.start].rfind('\n').map_or(0, |i| i + 1);
        let end_of = |at: usize| text[at..].find('\n').map_or(text.len(), |i| at + i);
        let start = match end_of(span.start) - line > LONGEST {
            _ if from_span => span.start,
            true => boundary(text, span.start.saturating_sub(AROUND)).max(line),
            false => line,
        };
        let last = text[..span.end].rfind('\n').map_or(0, |i| i + 1);
        let end = match end_of(span.end) - last > LONGEST {
            true => boundary(text, span.end + AROUND).min(end_of(span.end)),
            false => end_of(span.end),
        };
        let column = self.column(start);
        let lines = 1 + text[start..end].matches('\n').count();
        let number = text[..line].matches('\n').count();
        let shown = (start, end - start).into();
        MietteSpanContents::new_named(
            self.name.to_string(),
            &text.as_bytes()[start..end],
            shown,
            number,
            column,
            lines,
        )
    }
}

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let range = span.offset()..span.offset() + span.len();
        let marked = self.text.get(range.clone()).ok_or(MietteError::OutOfBounds)?;
        // Two places that are far from one another: miette asks for both at once first.
        if !is_readable(marked) || marked.lines().count() > LINES {
            return Err(MietteError::OutOfBounds);
        }
        let contents = self.text.read_span(span, before, after)?;
        let (line, column, lines) = (contents.line(), contents.column(), contents.line_count());
        let data = std::str::from_utf8(contents.data()).map_err(|_| MietteError::OutOfBounds)?;
        Ok(Box::new(match is_readable(data) {
            true => {
                let (name, data) = (self.name.to_string(), data.as_bytes());
                let start = contents.span().offset();
                // In characters, as people count; miette counts bytes.
                let column = column.min(self.column(start));
                let data = &self.text.as_bytes()[start..start + data.len()];
                MietteSpanContents::new_named(name, data, *contents.span(), line, column, lines)
            }
            false => self.window(range, before == 0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(text: &str) -> Excerpt {
        Excerpt { name: "file".into(), text: text.into() }
    }

    fn shown(text: &str, span: (usize, usize), context: usize) -> Option<(String, usize, usize)> {
        let excerpt = excerpt(text);
        let contents = excerpt.read_span(&span.into(), context, context).ok()?;
        let data = String::from_utf8(contents.data().to_vec()).unwrap();
        Some((data, contents.line(), contents.column()))
    }

    #[test]
    fn short_lines_are_shown_whole_with_the_lines_around() {
        let (data, line, column) = shown("a\nbcd\ne\nf\n", (3, 1), 1).unwrap();
        assert_eq!((data.trim_end(), line, column), ("a\nbcd\ne", 0, 0));
    }

    #[test]
    fn of_a_long_line_the_part_around_the_place_is_shown() {
        let text =
            format!("first\n{}é{}here{}\nlast\n", "x".repeat(70_000), "y".repeat(59), "z".repeat(70_000));
        let at = text.find("here").unwrap();
        let (data, line, column) = shown(&text, (at, 4), 1).unwrap();
        // A character that would be cut in two is shown.
        assert_eq!(data, format!("é{}here{}", "y".repeat(59), "z".repeat(60)));
        assert_eq!((line, column), (1, 70_000));
        assert_eq!(shown(&text, (at, 4), 0).unwrap().2, 70_060);
        // A long line beside the place hides neither.
        assert_eq!(shown(&text, (0, 5), 1).unwrap().0, "first");
    }

    #[test]
    fn places_that_are_far_apart_are_not_shown_in_one_picture() {
        assert_eq!(shown(&"x".repeat(2000), (0, 2000), 1), None);
        assert_eq!(shown(&"x\n".repeat(200), (0, 400), 1), None);
    }

    #[test]
    fn a_message_that_quotes_a_file_keeps_its_beginning_and_its_end() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened(format!("`{}` is no name", "é".repeat(5000)));
        assert!(long.starts_with("`éé") && long.ends_with("éé` is no name") && long.len() < 1700, "{long}");
    }

    #[test]
    fn a_mark_is_no_longer_than_what_is_shown() {
        let mark = |text: &str| excerpt(text).mark(0..text.len(), "here".into()).len();
        assert_eq!(mark("abc\ndef"), 7);
        assert_eq!(mark(&"x".repeat(500)), MARKED);
        assert_eq!(mark(&format!("ab\n{}", "é".repeat(500))), 3 + MARKED);
        assert_eq!(mark(&"x\n".repeat(500)), 2 * MARKED_LINES);
    }
}
