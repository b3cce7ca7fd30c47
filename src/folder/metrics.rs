//! `metrics.jsonl`: one object a step.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use prefgraph_nn::files::write_atomically;
use prefgraph_ops::ports::{Metric, Metrics};
use serde_json::{Map, Value};

use super::FolderError;

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
    pub fn append(&mut self, line: &Map<String, Value>) -> Result<(), FolderError> {
        let mut text = Value::Object(line.clone()).to_string();
        text.push('\n');
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

/// A step's metrics as the fields of an object. What is not finite is `null`: JSON has no word for it.
pub fn fields(metrics: &Metrics) -> Map<String, Value> {
    let value = |metric: &Metric| match metric {
        Metric::Number(x) => Value::from(*x),
        Metric::PerSample(xs) => xs.iter().copied().collect(),
        Metric::Texts(texts) => texts.iter().cloned().collect(),
    };
    metrics.0.iter().map(|(name, metric)| (name.clone(), value(metric))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
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
        assert_eq!(text, "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
    }

    #[test]
    fn numbers_that_json_has_not_are_null() {
        let mut metrics = Metrics::default();
        metrics.number("loss", f64::NAN);
        metrics.per_sample("logit", vec![0.5, f64::INFINITY]);
        let text = Value::Object(fields(&metrics)).to_string();
        assert_eq!(text, r#"{"logit":[0.5,null],"loss":null}"#);
    }
}
