//! Memory that operations use up, grown to what the largest of them takes.

use std::sync::Arc;

use crate::Error;
use crate::cuda::{Address, Gpu, Memory};

/// Rooms that operations share: they follow one another on one stream.
#[derive(Default)]
pub(super) struct Scratch {
    inputs: Option<Memory>,
    parts: Option<Memory>,
    counters: Option<Memory>,
    /// Outgrown, but named by graphs.
    outgrown: Vec<Memory>,
}

impl Scratch {
    /// Room for inputs of products that were single precision.
    pub(super) fn inputs(&mut self, gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Address, Error> {
        grown(gpu, &mut self.inputs, bytes, &mut self.outgrown)
    }

    /// Room for what blocks find of one result before it is put together.
    pub(super) fn parts(&mut self, gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Address, Error> {
        grown(gpu, &mut self.parts, bytes, &mut self.outgrown)
    }

    /// Room for parts, and counters of those that are done: zero between launches, since the last part of each resets
    /// its own.
    pub(super) fn counted_parts(
        &mut self,
        gpu: &Arc<dyn Gpu>,
        bytes: usize,
        counters: usize,
    ) -> Result<(Address, Address), Error> {
        let parts = self.parts(gpu, bytes)?;
        let before = self.counters.as_ref().map(Memory::address);
        let counted = grown(gpu, &mut self.counters, counters * size_of::<u32>(), &mut self.outgrown)?;
        if let Some(memory) = self.counters.as_ref().filter(|_| before != Some(counted)) {
            gpu.clear(counted, memory.bytes())?;
        }
        Ok((parts, counted))
    }
}

/// Room of at least `bytes` in `slot`; what it held is lost when it grows.
pub(super) fn grown(
    gpu: &Arc<dyn Gpu>,
    slot: &mut Option<Memory>,
    bytes: usize,
    outgrown: &mut Vec<Memory>,
) -> Result<Address, Error> {
    match slot {
        Some(memory) if memory.bytes() >= bytes => Ok(memory.address()),
        _ => {
            let larger = Memory::new(gpu, bytes.next_power_of_two())?;
            let address = larger.address();
            outgrown.extend(slot.replace(larger));
            Ok(address)
        }
    }
}
