//! Who holds which block of the paged key-value cache, and what is in those that nobody writes to any more: numbers
//! only, never a tensor.
//!
//! A sequence's table is a plain list of the blocks it holds, oldest position first. A full block may be in several
//! tables, since nobody writes to it again. A block in no table is free, or lingers until the steps in flight that name
//! it have landed ([`crate::scheduler`] keeps those). A free block keeps its content for the next sequence that begins
//! the same way, until it is needed: blocks without content go first, then the one that has been free for longest.
//! Handing back a block that is free is our own bug and panics.

use crate::plan::{BLOCK_TOKENS, BlockId};
use crate::prefix::{Chain, Content};
use std::collections::{BTreeMap, HashMap};

/// All blocks.
#[derive(Debug)]
pub struct Blocks {
    /// Free and without content. Last returned, first taken: its memory is the likeliest to be resident.
    blank: Vec<BlockId>,
    /// Free with content, by when they became free.
    kept: BTreeMap<u64, BlockId>,
    /// (blocks)
    all: Vec<Block>,
    /// Where a content is.
    contents: HashMap<Chain, BlockId>,
    /// Of the next block that becomes free.
    moment: u64,
}

/// One block.
#[derive(Clone, Debug, Default)]
struct Block {
    /// Tables and steps in flight that hold it.
    holders: u32,
    content: Option<Content>,
    /// When it became free; its place in `kept`.
    freed: u64,
}

/// A table could not grow: nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short;

impl Blocks {
    /// A pool of `count` free blocks.
    ///
    /// # Panics
    /// When the count does not fit a block's number.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let last = u32::try_from(count).expect("a pool has fewer than 2^32 blocks");
        Self {
            blank: (0..last).rev().map(BlockId).collect(),
            kept: BTreeMap::new(),
            all: vec![Block::default(); count],
            contents: HashMap::new(),
            moment: 0,
        }
    }

    /// Blocks that hold `tokens` tokens.
    #[must_use]
    pub const fn count_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }

    /// Blocks that `table` lacks to hold `tokens` tokens.
    #[must_use]
    pub fn missing(table: &[BlockId], tokens: usize) -> usize {
        Self::count_for(tokens).saturating_sub(table.len())
    }

    /// Makes `table` hold `tokens` tokens, or takes nothing.
    ///
    /// # Errors
    /// When too few blocks are free.
    pub fn grow(&mut self, table: &mut Vec<BlockId>, tokens: usize) -> Result<(), Short> {
        let missing = Self::missing(table, tokens);
        if missing > self.free() {
            return Err(Short);
        }
        for _ in 0..missing {
            let block = self.blank.pop().or_else(|| self.forget_oldest()).expect("counted above");
            let holders = &mut self.all[block.0 as usize].holders;
            assert_eq!(*holders, 0, "{block:?} was free while held");
            *holders = 1;
            table.push(block);
        }
        Ok(())
    }

    /// The block that has been free for longest, without its content.
    fn forget_oldest(&mut self) -> Option<BlockId> {
        let (_, block) = self.kept.pop_first()?;
        let content = self.all[block.0 as usize].content.take().expect("what is kept has content");
        self.contents.remove(&content.chain);
        Some(block)
    }

    /// Takes back blocks of a table, in its order.
    ///
    /// # Panics
    /// When nobody holds one of them.
    pub fn release(&mut self, table: impl DoubleEndedIterator<Item = BlockId>) {
        // From the end: what others are likeliest to begin with is forgotten last.
        for block in table.rev() {
            let at = &mut self.all[block.0 as usize];
            at.holders = at.holders.checked_sub(1).unwrap_or_else(|| panic!("{block:?} was handed back twice"));
            match at.content {
                _ if at.holders > 0 => {}
                None => self.blank.push(block),
                Some(_) => {
                    at.freed = self.moment;
                    self.kept.insert(self.moment, block);
                    self.moment += 1;
                }
            }
        }
    }

    /// The block with this content.
    #[must_use]
    pub fn find(&self, content: &Content) -> Option<BlockId> {
        let block = *self.contents.get(&content.chain)?;
        (self.all[block.0 as usize].content.as_ref() == Some(content)).then_some(block)
    }

    /// Puts a block with content into one more table.
    ///
    /// # Panics
    /// When it has none: somebody may write to it.
    pub fn share(&mut self, block: BlockId) {
        let at = &mut self.all[block.0 as usize];
        assert!(at.content.is_some(), "{block:?} is shared before it is full");
        if at.holders == 0 {
            self.kept.remove(&at.freed);
        }
        at.holders += 1;
    }

    /// Takes note of what a block holds that is full and computed. The first block with a content is the one that is
    /// found.
    ///
    /// # Panics
    /// When nobody holds it, or it has another content.
    pub fn note(&mut self, block: BlockId, content: Content) {
        let at = &mut self.all[block.0 as usize];
        assert!(at.holders > 0, "{block:?} is free, and nobody computed it");
        if let Some(before) = &at.content {
            assert_eq!(*before, content, "a full block is not written to");
        } else if let std::collections::hash_map::Entry::Vacant(entry) = self.contents.entry(content.chain) {
            entry.insert(block);
            at.content = Some(content);
        }
    }

    /// Whether nobody holds it.
    #[must_use]
    pub fn is_free(&self, block: BlockId) -> bool {
        self.all[block.0 as usize].holders == 0
    }

    /// Blocks nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.blank.len() + self.kept.len()
    }

    /// All blocks.
    #[must_use]
    pub fn total(&self) -> usize {
        self.all.len()
    }

    /// How many tables and steps hold it.
    #[cfg(test)]
    pub(crate) fn holders(&self, block: BlockId) -> usize {
        self.all[block.0 as usize].holders as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::Scope;

    fn content(token: u32) -> Content {
        let tokens = [token; BLOCK_TOKENS];
        Content { chain: Chain::begin(Scope::default()).then(&tokens), tokens }
    }

    #[test]
    fn a_table_grows_by_what_it_lacks_and_not_more() {
        let mut blocks = Blocks::new(4);
        let mut table = Vec::new();
        blocks.grow(&mut table, 1).unwrap();
        assert_eq!((table.len(), blocks.free()), (1, 3));
        blocks.grow(&mut table, BLOCK_TOKENS).unwrap();
        assert_eq!((table.len(), blocks.free()), (1, 3));
        blocks.grow(&mut table, BLOCK_TOKENS + 1).unwrap();
        assert_eq!((table.len(), blocks.free()), (2, 2));
        blocks.grow(&mut table, 1).unwrap();
        assert_eq!(table, [BlockId(0), BlockId(1)], "a table never shrinks by growing");
    }

    #[test]
    fn a_pool_too_small_gives_nothing() {
        let mut blocks = Blocks::new(2);
        let mut table = Vec::new();
        assert_eq!(blocks.grow(&mut table, 2 * BLOCK_TOKENS + 1), Err(Short));
        assert_eq!((table.len(), blocks.free()), (0, 2));
        blocks.grow(&mut table, 2 * BLOCK_TOKENS).unwrap();
        assert_eq!(blocks.free(), 0);
        blocks.release(table.drain(..));
        assert_eq!((blocks.free(), blocks.total()), (2, 2));
    }

    #[test]
    #[should_panic(expected = "handed back twice")]
    fn a_block_returns_once() {
        let mut blocks = Blocks::new(2);
        let mut table = Vec::new();
        blocks.grow(&mut table, 1).unwrap();
        blocks.release([table[0], table[0]].into_iter());
    }

    #[test]
    fn a_content_is_found_until_its_block_is_needed() {
        let mut blocks = Blocks::new(3);
        let (mut table, mut other) = (Vec::new(), Vec::new());
        blocks.grow(&mut table, 2 * BLOCK_TOKENS).unwrap();
        blocks.note(table[0], content(1));
        blocks.note(table[1], content(2));
        blocks.release(table.iter().copied());
        assert_eq!(blocks.free(), 3);
        assert_eq!(blocks.find(&content(1)), Some(table[0]));
        blocks.grow(&mut other, 2 * BLOCK_TOKENS).unwrap();
        assert_eq!(blocks.find(&content(2)), None, "the blank block went first, then the end of the table");
        assert_eq!(blocks.find(&content(1)), Some(table[0]));
        blocks.share(table[0]);
        assert_eq!(blocks.free(), 0);
        blocks.share(table[0]);
        blocks.release([table[0]].into_iter());
        assert!(!blocks.is_free(table[0]));
        blocks.release([table[0]].into_iter());
        assert_eq!(blocks.free(), 1);
    }

    #[test]
    fn the_first_of_two_blocks_with_one_content_is_found() {
        let mut blocks = Blocks::new(2);
        let mut table = Vec::new();
        blocks.grow(&mut table, 2 * BLOCK_TOKENS).unwrap();
        blocks.note(table[0], content(1));
        blocks.note(table[1], content(1));
        assert_eq!(blocks.find(&content(1)), Some(table[0]));
        blocks.release(table.iter().copied());
        assert_eq!(blocks.free(), 2);
        assert_eq!(blocks.find(&Content { tokens: [9; BLOCK_TOKENS], ..content(1) }), None, "a hash alone is no hit");
    }
}
