//! A step's rows as the kernels look at them: one upload, every part of it at a place that its bucket fixes.

use std::sync::Arc;

use super::words;
use crate::Error;
use crate::backend::StepLimits;
use crate::backend::step as host;
use crate::cuda::{Address, Gpu, Memory};
use crate::model::Ticket;
use crate::plan::{Plan, Sampled, TokenId};

/// Queries of a tile: of most kernels, and of those for heads of 65 to 128 numbers.
const TILES: [usize; 2] = [64, 128];
/// Words that tell a tile: first row, rows, position of the first, where its table begins.
const TILE_WORDS: usize = 4;
/// The position of a row that only fills a bucket.
const PADDING: u32 = u32::MAX;
/// Rows that graphs are recorded for: what lies between is filled up.
const BUCKETS: [usize; 16] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512];

/// The step under way.
pub(super) struct Step {
    host: host::Step,
    memory: Memory,
    /// Emptied and filled again, for its memory.
    packed: Vec<u32>,
    /// By size.
    tiles: [Vec<u32>; 2],
    singles: Vec<u32>,
    layout: Layout,
    bucket: Option<usize>,
}

/// Where the parts begin, in words.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    /// Rows that are computed.
    rows: usize,
    /// Rows to sample from that are computed.
    outputs: usize,
    positions: usize,
    table_starts: usize,
    output_rows: usize,
    singles: usize,
    tiles: [usize; 2],
    tables: usize,
}

impl Step {
    pub(super) fn new(gpu: &Arc<dyn Gpu>, limits: StepLimits) -> Result<Step, Error> {
        // Tokens, positions, tables' beginnings and single rows; tiles end with spans, of two rows at least.
        let words = 4 * limits.rows + limits.outputs + 2 * TILE_WORDS * (limits.rows + 8) + limits.blocks;
        Ok(Step {
            host: host::Step::new(limits),
            memory: Memory::new(gpu, words * size_of::<u32>())?,
            packed: Vec::with_capacity(words),
            tiles: <[Vec<u32>; 2]>::default(),
            singles: Vec::new(),
            layout: Layout::default(),
            bucket: None,
        })
    }

    /// Takes a plan in, and sends it.
    pub(super) fn begin(&mut self, gpu: &Arc<dyn Gpu>, plan: &Plan) -> Result<(), Error> {
        self.host.begin(plan)?;
        self.bucket = self.fitting_bucket(plan);
        self.cut(plan);
        self.pack();
        gpu.upload(&words(&self.packed), self.memory.address())
    }

    /// The bucket of a step that has one row a span and samples from each.
    fn fitting_bucket(&self, plan: &Plan) -> Option<usize> {
        let (rows, limits) = (plan.rows(), self.host.limits());
        let single = plan.spans.len() == rows && self.host.outputs().iter().copied().eq(0..rows);
        let bucket = BUCKETS.into_iter().find(|bucket| *bucket >= rows).filter(|_| single && rows > 0)?;
        (bucket <= limits.rows && bucket <= limits.outputs).then_some(bucket)
    }

    /// Tells prompts, in tiles, and single rows apart.
    fn cut(&mut self, plan: &Plan) {
        self.tiles.iter_mut().for_each(Vec::clear);
        self.singles.clear();
        for span in &plan.spans {
            if span.rows.len() == 1 {
                self.singles.push(span.rows.start as u32);
                continue;
            }
            for (tiles, most) in self.tiles.iter_mut().zip(TILES) {
                for first in span.rows.clone().step_by(most) {
                    let rows = most.min(span.rows.end - first);
                    let position = span.computed + first - span.rows.start;
                    tiles.extend([first, rows, position, span.blocks.start].map(|word| word as u32));
                }
            }
        }
    }

    fn pack(&mut self) {
        let rows = self.host.rows().len();
        let padded = self.bucket.unwrap_or(rows);
        self.layout.rows = padded;
        self.layout.outputs = self.bucket.unwrap_or(self.host.outputs().len());
        let fill = padded - rows;
        let packed = &mut self.packed;
        packed.clear();
        packed.extend(self.host.rows().iter().map(|row| row.token));
        packed.extend(std::iter::repeat_n(0, fill));
        self.layout.positions = packed.len();
        packed.extend(self.host.rows().iter().map(|row| row.position));
        packed.extend(std::iter::repeat_n(PADDING, fill));
        self.layout.table_starts = packed.len();
        packed.extend(self.host.rows().iter().map(|row| self.host.table_start(row) as u32));
        packed.extend(std::iter::repeat_n(0, fill));
        self.layout.output_rows = packed.len();
        packed.extend(self.host.outputs().iter().map(|row| *row as u32));
        packed.extend((self.host.outputs().len()..self.layout.outputs).map(|row| row as u32));
        self.layout.singles = packed.len();
        packed.extend_from_slice(&self.singles);
        packed.extend((self.singles.len()..self.bucket.unwrap_or(0)).map(|row| row as u32));
        // Tiles are read 16 bytes at a time.
        packed.resize(packed.len().next_multiple_of(TILE_WORDS), 0);
        for (place, tiles) in self.layout.tiles.iter_mut().zip(&self.tiles) {
            *place = packed.len();
            packed.extend_from_slice(tiles);
        }
        self.layout.tables = packed.len();
        packed.extend(self.host.blocks().iter().map(|block| block.0));
    }

    /// The bucket that it fills, for a graph.
    pub(super) fn bucket(&self) -> Option<usize> {
        self.bucket
    }

    /// Rows, and rows that are computed.
    pub(super) fn rows(&self) -> (usize, usize) {
        (self.host.rows().len(), self.layout.rows)
    }

    /// Outputs, and outputs that are computed.
    pub(super) fn outputs(&self) -> (usize, usize) {
        (self.host.outputs().len(), self.layout.outputs)
    }

    /// Single rows that are computed.
    pub(super) fn single_rows(&self) -> usize {
        self.bucket.unwrap_or(self.singles.len())
    }

    /// Whether there are prompts.
    pub(super) fn has_prompts(&self) -> bool {
        !self.tiles[0].is_empty()
    }

    /// Tiles of prompts for heads of a width: where they are, and how many.
    pub(super) fn tiles(&self, width: usize) -> (Address, usize) {
        let size = usize::from(tile_rows(width) == TILES[1]);
        (self.word(self.layout.tiles[size]), self.tiles[size].len() / TILE_WORDS)
    }

    /// Tokens of the longest sequence that single rows look at; a graph serves any length.
    pub(super) fn longest(&self) -> Option<usize> {
        let rows = self.host.rows();
        let longest = self.singles.iter().map(|row| rows[*row as usize].position as usize + 1).max().unwrap_or(0);
        self.bucket.is_none().then_some(longest)
    }

    pub(super) fn tokens(&self) -> Address {
        self.memory.address()
    }

    pub(super) fn positions(&self) -> Address {
        self.word(self.layout.positions)
    }

    pub(super) fn table_starts(&self) -> Address {
        self.word(self.layout.table_starts)
    }

    pub(super) fn output_rows(&self) -> Address {
        self.word(self.layout.output_rows)
    }

    pub(super) fn singles(&self) -> Address {
        self.word(self.layout.singles)
    }

    pub(super) fn tables(&self) -> Address {
        self.word(self.layout.tables)
    }

    fn word(&self, word: usize) -> Address {
        self.memory.address().plus(word * size_of::<u32>())
    }

    /// Ends the step; its tokens wait to be collected.
    pub(super) fn end(&mut self, plan: &Plan) -> Ticket {
        self.host.end(plan)
    }

    /// Appends the tokens of a step's outputs.
    pub(super) fn collect(
        &mut self,
        ticket: Ticket,
        tokens: impl IntoIterator<Item = TokenId>,
        sampled: &mut Vec<Sampled>,
    ) -> Result<(), Error> {
        tokens.into_iter().enumerate().for_each(|(output, token)| self.host.choose(output, token));
        self.host.collect(ticket, sampled)
    }
}

/// Queries of a tile for heads of a width: see `attend.cu`.
pub(super) fn tile_rows(width: usize) -> usize {
    TILES[usize::from((65..=128).contains(&width))]
}
