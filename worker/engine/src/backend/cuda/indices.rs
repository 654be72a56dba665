//! Lists of rows and spans that kernels look at, sent once while they stay the same: layers ask for the same ones.

use std::sync::Arc;

use super::words;
use crate::Error;
use crate::cuda::{Address, Gpu, Memory};

/// Lists that are kept.
const KEPT: usize = 16;
/// Bytes of the smallest room: most lists fit, and a room that has to grow waits for the device.
const LEAST: usize = 256 << 10;

/// The lists that were sent last.
#[derive(Default)]
pub(super) struct Indices {
    lists: Vec<List>,
    /// Which goes next.
    oldest: usize,
}

struct List {
    words: Vec<u32>,
    memory: Memory,
}

impl Indices {
    /// Where the device has `list`.
    pub(super) fn place(&mut self, gpu: &Arc<dyn Gpu>, list: &[u32]) -> Result<Address, Error> {
        if let Some(known) = self.lists.iter().find(|known| known.words == list) {
            return Ok(known.memory.address());
        }
        let bytes = size_of_val(list).max(LEAST);
        if self.lists.len() < KEPT {
            let memory = Memory::new(gpu, bytes.next_power_of_two())?;
            self.lists.push(List { words: Vec::new(), memory });
            self.oldest = self.lists.len() - 1;
        } else {
            self.oldest = (self.oldest + 1) % KEPT;
        }
        let slot = &mut self.lists[self.oldest];
        if slot.memory.bytes() < bytes {
            // What is queued may still read the smaller one.
            gpu.wait()?;
            slot.memory = Memory::new(gpu, bytes.next_power_of_two())?;
        }
        slot.words.clear();
        slot.words.extend_from_slice(list);
        gpu.upload(&words(list), slot.memory.address())?;
        Ok(slot.memory.address())
    }
}
