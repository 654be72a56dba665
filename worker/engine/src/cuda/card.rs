//! A GPU that models can be loaded onto.

use std::sync::{Arc, Mutex, PoisonError};

use super::driver::Driver;
use super::{Gpu, Settings};
use crate::Error;

/// A GPU, found and fit to compute.
pub struct Card {
    settings: Settings,
    name: String,
    free: u64,
    /// What it was found with, for the first model.
    first: Mutex<Option<Arc<dyn Gpu>>>,
}

impl Card {
    /// Brings a GPU up.
    ///
    /// # Errors
    /// When there is no driver, no such GPU, or none that our kernels run on: in a sentence.
    pub fn find(settings: Settings) -> Result<Card, Error> {
        let gpu: Arc<dyn Gpu> = Arc::new(Driver::open(&settings)?);
        let properties = gpu.properties()?;
        Ok(Card { settings, name: properties.name, free: properties.free as u64, first: Mutex::new(Some(gpu)) })
    }

    /// As its maker calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of memory that nobody had when it was found.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free
    }

    /// The GPU with a stream of its own.
    pub(crate) fn open(&self) -> Result<Arc<dyn Gpu>, Error> {
        if let Some(first) = self.first.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Ok(first);
        }
        Ok(Arc::new(Driver::open(&self.settings)?))
    }
}
