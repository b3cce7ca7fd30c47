//! `metrics.jsonl`: one object per step.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use prefgraph_nn::files::{open_regular, write_atomically};
use prefgraph_ops::{
    ports::{Metric, Metrics},
    words::count,
};
use serde_json::Value;

use super::FolderError;

/// The fields of an object, in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line(pub Vec<(String, Value)>);

impl Line {
    /// Add a field.
    pub fn push(&mut self, name: &str, value: impl Into<Value>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// Add a step's metrics. What is not finite is `null`: JSON has no word for it.
    pub fn metrics(&mut self, metrics: &Metrics) {
        for (name, metric) in &metrics.0 {
            match metric {
                Metric::Number(x) => self.push(name, *x),
                Metric::PerSample(xs) => self.push(name, xs.clone()),
                Metric::Texts(texts) => self.push(name, texts.clone()),
            }
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{}: {value}", Value::from(name.as_str()))?;
        }
        f.write_str("}")
    }
}

/// The file, open at its end.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Open the file in `folder` for a run whose next step is `step`. Lines of that step and later ones are cut off, since
    /// those steps run again; so are lines that are not metrics.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<Self, FolderError> {
        let path = folder.join(NAME);
        let fault = |e| FolderError::io("open", &path, e);
        let mut kept = Vec::new();
        let survey = read(&path, step, &mut |line, _| kept.extend_from_slice(line))?;
        if survey.later > 0 || survey.torn || !survey.strange.is_empty() || survey.unended {
            write_atomically(&path, &kept).map_err(|e| FolderError::io("cut back", &path, e))?;
        }
        // Better to find an unwritable file now than after a step.
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(fault)?;
        Ok(Self { path, file })
    }

    /// Add the line of a step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, line: &Line) -> Result<(), FolderError> {
        let text = format!("{line}\n");
        // One write a line: a line is whole unless the disk is full.
        self.file.write_all(text.as_bytes()).map_err(|e| FolderError::io("write", &self.path, e))
    }

    /// Flush to the disk.
    ///
    /// # Errors
    /// If that fails.
    pub fn sync(&self) -> Result<(), FolderError> {
        self.file.sync_all().map_err(|e| FolderError::io("flush", &self.path, e))
    }
}

const NAME: &str = "metrics.jsonl";

/// What the file holds for a run whose next step is known; nothing is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Lines of the next step and of later ones.
    pub later: usize,
    /// Is the last line incomplete?
    pub torn: bool,
    /// Other lines that are not metrics: their numbers, from 1, and how they start.
    pub strange: Vec<(usize, String)>,
    /// Earlier steps that have no line.
    pub missing: Vec<RangeInclusive<u64>>,
    /// Lines of steps that already had one.
    pub repeated: usize,
    /// Does the last line lack only its line break?
    unended: bool,
}

impl Survey {
    /// Read the file in `folder`; `line` is called for every line of an earlier step, in order.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
    pub fn of(folder: &Path, step: u64, line: &mut dyn FnMut(&Value)) -> Result<Self, FolderError> {
        read(&folder.join(NAME), step, &mut |_, value| line(value))
    }

    /// Damage that cannot be repaired, in sentences.
    pub fn damage(&self) -> Vec<String> {
        const SHOWN: usize = 5;
        let mut all = Vec::new();
        for (number, text) in self.strange.iter().take(SHOWN) {
            all.push(format!("line {number} of {NAME} is not a line of metrics: `{text}`"));
        }
        if self.strange.len() > SHOWN {
            all.push(format!("{} more lines of {NAME} are not metrics", self.strange.len() - SHOWN));
        }
        if !self.missing.is_empty() {
            let steps: u64 = self.missing.iter().map(|r| r.end() - r.start() + 1).sum();
            let range = |r: &RangeInclusive<u64>| match r.start() == r.end() {
                true => r.start().to_string(),
                false => format!("{} to {}", r.start(), r.end()),
            };
            let mut ranges = self.missing.iter().take(SHOWN).map(range).collect::<Vec<_>>().join(", ");
            if self.missing.len() > SHOWN {
                ranges += ", ...";
            }
            let lines = if steps == 1 { "the line of step" } else { "the lines of steps" };
            let lost = if steps == 1 { "it is lost" } else { "they are lost" };
            all.push(format!("{NAME} lacks {lines} {ranges}: {lost}; the checkpoint is not affected"));
        }
        if self.repeated > 0 {
            all.push(format!("{NAME} has {} of steps that already had one", count(self.repeated, "line")));
        }
        all
    }
}

/// Read every line; `keep` is called with the bytes and the value of each line of a step before `step`.
fn read(path: &Path, step: u64, keep: &mut dyn FnMut(&[u8], &Value)) -> Result<Survey, FolderError> {
    let fault = |e| FolderError::io("read", path, e);
    let mut survey = Survey::default();
    let mut seen = Vec::new();
    if fs::symlink_metadata(path).is_ok() {
        let mut lines = BufReader::new(open_regular(path).map_err(fault)?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if lines.read_until(b'\n', &mut line).map_err(fault)? == 0 {
                break;
            }
            let ended = line.ends_with(b"\n");
            let value = serde_json::from_slice::<Value>(&line).ok();
            match value.as_ref().and_then(|v| Some((v, v.get("step")?.as_u64()?))) {
                Some((value, at)) if at < step => {
                    if !ended {
                        survey.unended = true;
                        line.push(b'\n');
                    }
                    seen.push(at);
                    keep(&line, value);
                }
                Some(_) => survey.later += 1,
                None if !ended => survey.torn = true,
                None => survey.strange.push((number, beginning(&line))),
            }
        }
    }
    seen.sort_unstable();
    let mut next = 0;
    for at in seen {
        match at {
            _ if at < next => survey.repeated += 1,
            _ if at > next => survey.missing.push(next..=at - 1),
            _ => {}
        }
        next = at + 1;
    }
    if next < step {
        survey.missing.push(next..=step - 1);
    }
    Ok(survey)
}

fn beginning(line: &[u8]) -> String {
    const SHOWN: usize = 40;
    let text = String::from_utf8_lossy(line);
    let shown: String = text.trim_end().chars().take(SHOWN).collect();
    if shown.len() < text.trim_end().len() { shown + "..." } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Line {
        let mut line = Line::default();
        line.push("step", step);
        line
    }

    fn survey(text: &str, step: u64) -> Survey {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), text).unwrap();
        Survey::of(dir.path(), step, &mut |_| {}).unwrap()
    }

    #[test]
    fn a_resumed_run_cuts_back_to_its_step_and_drops_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(dir.path(), 0).unwrap();
        for step in 0..5 {
            file.append(&line(step)).unwrap();
        }
        let path = dir.path().join(NAME);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\": 1").unwrap();
        let before = fs::read(&path).unwrap();
        let survey = Survey::of(dir.path(), 3, &mut |_| {}).unwrap();
        assert_eq!((survey.later, survey.torn, survey.damage()), (2, true, vec![]));
        assert_eq!(fs::read(&path).unwrap(), before, "to look changes nothing");
        let mut file = MetricsFile::open(dir.path(), 3).unwrap();
        file.append(&line(3)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\": 0}\n{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n");
    }

    #[test]
    fn what_is_lost_and_what_is_no_line_is_said_as_it_is() {
        let text = "{\"step\": 0}\nrubbish in the middle\n{\"step\": 1}\n{\"step\": 5}\n{\"step\": 5}\n{\"step\": 9}\n";
        let found = survey(text, 8);
        assert_eq!((found.later, found.torn, found.repeated), (1, false, 1));
        let damage = found.damage().join("\n");
        assert!(
            damage.contains("line 2 of metrics.jsonl is not a line of metrics: `rubbish in the middle`"),
            "{damage}"
        );
        assert!(damage.contains("lacks the lines of steps 2 to 4, 6 to 7: they are lost"), "{damage}");
        assert_eq!(
            survey("", 1).damage(),
            ["metrics.jsonl lacks the line of step 0: it is lost; the checkpoint is not affected"]
        );
        assert_eq!(survey("{\"step\": 0}\n{\"step\": 1}", 2), Survey { unended: true, ..Survey::default() });
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_in_its_place_is_an_error_and_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(std::process::Command::new("mkfifo").arg(dir.path().join(NAME)).status().unwrap().success());
        let error = MetricsFile::open(dir.path(), 0).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn numbers_that_json_has_not_are_null() {
        let mut metrics = Metrics::default();
        metrics.number("loss", f64::NAN);
        metrics.per_sample("logit", vec![0.5, f64::INFINITY]);
        let mut line = line(1);
        line.metrics(&metrics);
        assert_eq!(line.to_string(), r#"{"step": 1, "loss": null, "logit": [0.5,null]}"#);
        serde_json::from_str::<Value>(&line.to_string()).unwrap();
    }
}
