//! Who hears what an engine tells.

use std::sync::mpsc::Sender;

/// Hears an engine's events on the engine's thread: what takes long here delays every job.
pub trait Listener<E>: Send {
    /// Something happened.
    fn hear(&mut self, event: E);

    /// Nothing more happens for a while: the engine computes now, or sleeps. Who gathers events passes them on here.
    fn pause(&mut self) {}
}

/// To whoever receives; nobody else misses what is sent once he is gone.
impl<E: Send> Listener<E> for Sender<E> {
    fn hear(&mut self, event: E) {
        let _ = self.send(event);
    }
}

/// Passes on only when the engine pauses, so that whoever receives misses what no pause followed.
#[cfg(test)]
pub(crate) struct Gathering<E> {
    told: Vec<E>,
    out: Sender<E>,
}

#[cfg(test)]
impl<E> Gathering<E> {
    pub(crate) fn new(out: Sender<E>) -> Self {
        Self { told: Vec::new(), out }
    }
}

#[cfg(test)]
impl<E: Send> Listener<E> for Gathering<E> {
    fn hear(&mut self, event: E) {
        self.told.push(event);
    }

    fn pause(&mut self) {
        self.told.drain(..).for_each(|event| self.out.hear(event));
    }
}
