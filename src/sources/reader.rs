//! Reading the contents of samples in the background, since only checkpoints need them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, unbounded};

use super::{Digest, Source, Sources, Survey, survey::Contents};

/// A reading thread, and its results so far.
#[derive(Debug)]
pub struct Reader {
    sources: Sources,
    news: Receiver<(String, usize, Digest)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Start to read what a survey does not know.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(survey: Survey) -> std::io::Result<Self> {
        let Survey { found: sources, files } = survey;
        let unknown = |key: &str, sample: usize| match sources.0.get(key) {
            Some(Source::Samples(all)) => all.get(sample).is_some_and(|s| s.contents.is_none()),
            _ => false,
        };
        let mut work = Vec::new();
        for (key, samples) in files {
            let samples = samples.into_iter().enumerate().filter(|(number, _)| unknown(&key, *number));
            work.extend(samples.map(|(number, files)| (key.clone(), number, files)));
        }
        let (sender, news) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let read = move || {
            let mut contents = Contents::default();
            for (key, number, files) in work {
                if stopped.load(Ordering::Relaxed) || sender.send((key, number, contents.of(&files))).is_err()
                {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("sources".into()).spawn(read)?;
        Ok(Self { sources, news, stop, thread: Some(thread) })
    }

    /// What is known, after waiting for the rest for at most `patience`.
    pub fn sources(&mut self, patience: Duration) -> &Sources {
        let deadline = Instant::now() + patience;
        while let Ok((key, number, contents)) = self.news.recv_deadline(deadline) {
            if let Some(Source::Samples(all)) = self.sources.0.get_mut(&key)
                && let Some(sample) = all.get_mut(number)
            {
                sample.contents = Some(contents);
            }
        }
        &self.sources
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, nothing depends on its results any more.
            let _ = thread.join();
        }
    }
}
