//! The tokens of a step's outputs, chosen on the device.

use std::sync::Arc;

use super::kernels::Kernels;
use super::scratch::grown;
use super::{Buf, int, pointer, words};
use crate::Error;
use crate::backend::StepLimits;
use crate::cuda::{Address, Extent, Gpu, Memory};
use crate::plan::{Output, Plan, TokenId};
use crate::sampler::Sampling;

/// Threads of a block: a block a row.
const THREADS: u32 = 1024;
/// Dynamic shared memory of the sampler: its histogram, or a bit a token of the vocabulary.
const HISTOGRAM: usize = 16384;
/// An output without a mask.
const NO_MASK: u32 = u32::MAX;

/// How a step's outputs are chosen from, and what was chosen.
pub(super) struct Choice {
    chosen: Memory,
    /// Parameters, tokens before and masks of one step.
    asked: Option<Memory>,
    /// Emptied and filled again, for its memory.
    packed: Vec<u32>,
    bytes: Vec<u8>,
}

/// Where the parts of what is asked begin, in words.
struct Parts {
    history: usize,
    masks: usize,
}

impl Choice {
    pub(super) fn new(gpu: &Arc<dyn Gpu>, limits: StepLimits) -> Result<Choice, Error> {
        let chosen = Memory::new(gpu, limits.outputs.max(1) * size_of::<TokenId>())?;
        Ok(Choice { chosen, asked: None, packed: Vec::new(), bytes: Vec::new() })
    }

    /// Queues the choice of a token for each of the plan's outputs.
    pub(super) fn choose(
        &mut self,
        gpu: &Arc<dyn Gpu>,
        kernels: &Kernels,
        (logits, plan): (&Buf, &Plan),
    ) -> Result<(), Error> {
        let rows = plan.outputs.len();
        if rows == 0 {
            return Ok(());
        }
        let (grid, vocabulary) = ((rows as u32, 1, 1), logits.width());
        if plan.outputs.iter().all(is_greedy) {
            let arguments = [pointer(logits.address()), int(rows), int(vocabulary), pointer(self.chosen.address())];
            return gpu.launch(kernels.argmax, Extent { grid, threads: THREADS, shared: 0 }, &arguments);
        }
        let (parts, asked) = self.ask(gpu, plan, vocabulary)?;
        let word = |at: usize| pointer(asked.plus(at * size_of::<u32>()));
        let arguments = [
            pointer(logits.address()),
            int(rows),
            int(vocabulary),
            word(0),
            word(parts.history),
            word(parts.masks),
            pointer(self.chosen.address()),
        ];
        let shared = HISTOGRAM.max(vocabulary.div_ceil(32) * size_of::<u32>()) as u32;
        gpu.launch(kernels.sample, Extent { grid, threads: THREADS, shared }, &arguments)
    }

    /// Sends what the outputs ask for. Returns where its parts begin, and where it lies.
    fn ask(&mut self, gpu: &Arc<dyn Gpu>, plan: &Plan, vocabulary: usize) -> Result<(Parts, Address), Error> {
        let mask_words = vocabulary.div_ceil(32);
        let packed = &mut self.packed;
        packed.clear();
        let mut masks = 0;
        for output in &plan.outputs {
            let mask = output.mask.as_ref().map_or(NO_MASK, |_| {
                masks += mask_words;
                (masks - mask_words) as u32
            });
            packed.extend(parameters(output, mask));
        }
        let history = packed.len();
        packed.extend_from_slice(&plan.history);
        let parts = Parts { history, masks: packed.len() };
        for mask in plan.outputs.iter().filter_map(|output| output.mask.as_deref()) {
            let given = mask.len().min(mask_words);
            packed.extend_from_slice(&mask[..given]);
            packed.extend(std::iter::repeat_n(0, mask_words - given));
        }
        let bytes = words(packed);
        // Nothing recorded names it: what is outgrown may go, once what is queued is done.
        let mut outgrown = Vec::new();
        let place = grown(gpu, &mut self.asked, bytes.len(), &mut outgrown)?;
        if !outgrown.is_empty() {
            gpu.wait()?;
        }
        gpu.upload(&bytes, place)?;
        Ok((parts, place))
    }

    /// Waits for the tokens that were chosen for so many outputs.
    pub(super) fn tokens(
        &mut self,
        gpu: &Arc<dyn Gpu>,
        outputs: usize,
    ) -> Result<impl Iterator<Item = TokenId> + '_, Error> {
        self.bytes.resize(outputs * size_of::<TokenId>(), 0);
        if outputs == 0 {
            gpu.wait()?;
        } else {
            gpu.download(self.chosen.address(), &mut self.bytes)?;
        }
        Ok(self.bytes.as_chunks::<4>().0.iter().map(|token| TokenId::from_le_bytes(*token)))
    }
}

fn is_greedy(output: &Output) -> bool {
    output.sampling.temperature <= 0.0 && !output.sampling.looks_back() && output.mask.is_none()
}

/// As `sample` reads them.
fn parameters(output: &Output, mask: u32) -> [u32; 12] {
    let Sampling { temperature, top_p, top_k, min_p, repetition_penalty, seed } = output.sampling;
    [
        temperature.to_bits(),
        top_p.to_bits(),
        top_k.map_or(0, u32::from),
        min_p.to_bits(),
        repetition_penalty.to_bits(),
        seed as u32,
        (seed >> 32) as u32,
        output.position,
        output.history.start as u32,
        output.history.len() as u32,
        mask,
        0,
    ]
}
