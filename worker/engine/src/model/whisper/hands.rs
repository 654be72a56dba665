//! Threads that do what the host has to: where a device computes, the host's own part would keep it waiting. Beside a
//! processor that computes itself there is only the caller.

use std::thread::available_parallelism;

use crate::backend::dense::Dense;
use crate::mel::Mel;
use crate::pool::Pool;

/// Threads at most: as many as a batch has windows.
const THREADS_MAX: usize = 16;

/// The threads, each with room for frames.
pub(super) struct Hands {
    pool: Pool,
    mels: Vec<Mel>,
}

impl Hands {
    /// As many as the device leaves free, for frames of so many bands.
    pub(super) fn beside<D: Dense>(device: &D, bands: usize) -> Hands {
        let leaves_free = device.appetite() > 1;
        let threads = if leaves_free { available_parallelism().map_or(1, usize::from).min(THREADS_MAX) } else { 1 };
        Hands::of(threads, bands)
    }

    /// So many.
    pub(super) fn of(threads: usize, bands: usize) -> Hands {
        let pool = Pool::new(threads);
        let mels = vec![Mel::new(bands); pool.threads()];
        Hands { pool, mels }
    }

    /// Does `work` with every item, in any order.
    pub(super) fn each<T: Send>(&mut self, items: &mut [T], work: impl Fn(&mut Mel, &mut T) + Sync) {
        self.pool.items((items, 1), 1, &mut self.mels, |mel, _, item| item.iter_mut().for_each(|item| work(mel, item)));
    }
}
