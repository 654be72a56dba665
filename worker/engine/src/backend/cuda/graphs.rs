//! Steps of one token a sequence, recorded and replayed.
//!
//! Such a step's kernels and their arguments are the same each time but for the numbers in memory, once its rows are
//! filled up to a bucket. A bucket's first step runs as it is (libraries make their memory), the second is recorded.

use std::collections::HashMap;
use std::sync::Arc;

use crate::Error;
use crate::cuda::{Gpu, Graph};

/// What becomes of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// They are queued.
    #[default]
    Queue,
    /// They are recorded.
    Record,
    /// They were recorded.
    Replay,
}

/// What is known of a bucket.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// It ran once.
    Ran,
    Recorded(Graph),
}

/// Recordings, by rows.
#[derive(Default)]
pub(super) struct Graphs {
    known: HashMap<usize, Known>,
    mode: Mode,
    bucket: Option<usize>,
}

impl Graphs {
    /// What becomes of this step's operations.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Begins a step that fills a bucket, or fits none.
    pub(super) fn begin(&mut self, gpu: &Arc<dyn Gpu>, bucket: Option<usize>) -> Result<(), Error> {
        self.bucket = bucket;
        self.mode = match bucket.and_then(|bucket| self.known.get(&bucket)) {
            None => Mode::Queue,
            // At once: the device computes while operations that are in it already are asked for.
            Some(Known::Recorded(graph)) => {
                gpu.replay(*graph)?;
                Mode::Replay
            }
            Some(Known::Ran) => {
                gpu.record()?;
                Mode::Record
            }
        };
        Ok(())
    }

    /// Ends it; `verdict` is what its operations came to.
    pub(super) fn end(&mut self, gpu: &Arc<dyn Gpu>, verdict: Result<(), Error>) -> Result<(), Error> {
        let mode = std::mem::take(&mut self.mode);
        let recorded = if mode == Mode::Record { Some(gpu.recorded()) } else { None };
        verdict?;
        let Some(bucket) = self.bucket.take() else { return Ok(()) };
        match recorded {
            Some(graph) => {
                let graph = graph?;
                self.known.insert(bucket, Known::Recorded(graph));
                gpu.replay(graph)
            }
            None => {
                self.known.entry(bucket).or_insert(Known::Ran);
                Ok(())
            }
        }
    }
}
