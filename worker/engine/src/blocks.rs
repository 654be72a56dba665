//! Who holds which block of the paged key-value cache: numbers only, never a tensor.
//!
//! A sequence's table is a plain list of the blocks it holds, oldest position first. Every block is at any time either
//! free, in one table, or lingering until the steps in flight that name it have landed ([`crate::scheduler`] keeps
//! those). Handing back a block that is free is our own bug and panics.

use crate::plan::{BLOCK_TOKENS, BlockId};

/// The free list.
#[derive(Debug)]
pub struct Blocks {
    /// Last returned, first taken: its memory is the likeliest to be resident.
    free: Vec<BlockId>,
    /// (blocks) whether each one is out.
    out: Vec<bool>,
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
        let count = u32::try_from(count).expect("a pool has fewer than 2^32 blocks");
        Self { free: (0..count).rev().map(BlockId).collect(), out: vec![false; count as usize] }
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
        let rest = self.free.len().checked_sub(missing).ok_or(Short)?;
        for block in self.free.drain(rest..).rev() {
            let out = &mut self.out[block.0 as usize];
            assert!(!*out, "{block:?} was on the free list while out");
            *out = true;
            table.push(block);
        }
        Ok(())
    }

    /// Takes blocks back.
    ///
    /// # Panics
    /// When one of them is not out.
    pub fn release(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        for block in blocks {
            let out = &mut self.out[block.0 as usize];
            assert!(*out, "{block:?} was handed back twice");
            *out = false;
            self.free.push(block);
        }
    }

    /// Blocks nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All blocks.
    #[must_use]
    pub fn total(&self) -> usize {
        self.out.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        blocks.release([table[0], table[0]]);
    }
}
