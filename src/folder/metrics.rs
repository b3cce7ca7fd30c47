//! `metrics.jsonl`: one object a step.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use prefgraph_nn::files::write_atomically;
use prefgraph_ops::ports::{Metric, Metrics};
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
    /// Open the file in `folder` for a run whose next step is `step`: what an earlier run wrote of that step and of
    /// later ones is cut off, since it will be written again. Returns the number of lines cut.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<(Self, usize), FolderError> {
        let path = folder.join("metrics.jsonl");
        let cut = if path.exists() { cut_back(&path, step)? } else { 0 };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|e| FolderError::io("open", &path, e))?;
        Ok((Self { path, file }, cut))
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

/// Keep the lines of steps before `step`.
fn cut_back(path: &Path, step: u64) -> Result<usize, FolderError> {
    let fault = |e| FolderError::io("read", path, e);
    let mut kept = Vec::new();
    let mut cut = 0;
    let mut lines = BufReader::new(File::open(path).map_err(fault)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).map_err(fault)? > 0 {
        // A line without its end was torn; so was one that is no object.
        let whole = line.ends_with(b"\n");
        let number = serde_json::from_slice::<Value>(&line).ok().and_then(|v| v.get("step")?.as_u64());
        match number {
            Some(number) if whole && number < step => kept.extend_from_slice(&line),
            _ => cut += 1,
        }
        line.clear();
    }
    if cut > 0 {
        write_atomically(path, &kept).map_err(|e| FolderError::io("cut back", path, e))?;
    } else {
        // Nothing to do, but a file that cannot be written is better found now than after a step.
        fs::OpenOptions::new().append(true).open(path).map_err(fault)?;
    }
    Ok(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Line {
        let mut line = Line::default();
        line.push("step", step);
        line
    }

    #[test]
    fn a_resumed_run_cuts_back_to_its_step_and_drops_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = MetricsFile::open(dir.path(), 0).unwrap();
        for step in 0..5 {
            file.append(&line(step)).unwrap();
        }
        let path = dir.path().join("metrics.jsonl");
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\": 1").unwrap();
        let (mut file, cut) = MetricsFile::open(dir.path(), 3).unwrap();
        assert_eq!(cut, 3);
        file.append(&line(3)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\": 0}\n{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3}\n");
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
