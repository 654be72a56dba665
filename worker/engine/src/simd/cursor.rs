//! Weights of a packed block, a column of 16 outputs at a time.

use super::LANES;
use super::lanes::Lanes;
use super::panel::{BLOCK, LAYOUTS, Layout};

/// Reads columns of a packed block as numbers.
#[derive(Clone, Copy)]
pub(super) struct Cursor<V: Lanes, const LAYOUT: usize> {
    block: *const u8,
    words: V::U,
    d: V::F,
    /// What is added; in [`Layout::SplitBytes`] the second half's scale.
    m: V::F,
}

impl<V: Lanes, const LAYOUT: usize> Cursor<V, LAYOUT> {
    /// # Safety
    /// `block` points to a whole block of the layout.
    #[inline(always)]
    pub(super) unsafe fn open(block: *const u8) -> Self {
        // SAFETY: every block is larger than its scales and 16 words.
        unsafe {
            let words = V::load_u32(block.cast());
            let (d, m) = match LAYOUTS[LAYOUT] {
                Layout::Nibbles => (V::load_f16(block.cast()), V::load_f16(block.add(2 * LANES).cast())),
                Layout::CentredNibbles => {
                    let d = V::load_f16(block.cast());
                    (d, V::mul(d, V::splat(-8.0)))
                }
                Layout::Bytes => (V::load_f16(block.cast()), V::splat(0.0)),
                Layout::WideNibbles | Layout::WideBytes | Layout::SplitBytes => {
                    (V::load(block.cast()), V::load(block.add(4 * LANES).cast()))
                }
                Layout::Halves | Layout::Brains | Layout::Singles => (V::splat(1.0), V::splat(0.0)),
            };
            Cursor { block: block.add(LAYOUTS[LAYOUT].scale_bytes()), words, d, m }
        }
    }

    /// Turns to columns `8 * group ..`; never back to a half that was left.
    #[inline(always)]
    pub(super) unsafe fn group(&mut self, group: usize) {
        match LAYOUTS[LAYOUT] {
            Layout::Nibbles | Layout::CentredNibbles | Layout::WideNibbles => {
                // SAFETY: a block has four groups.
                self.words = unsafe { V::load_u32(self.block.cast::<u32>().add(group * LANES)) };
            }
            Layout::SplitBytes if group >= BLOCK / 16 => self.d = self.m,
            _ => {}
        }
    }

    /// The weights of a column of the group.
    #[inline(always)]
    pub(super) unsafe fn column(&self, column: usize) -> V::F {
        // SAFETY: `column` is inside the block.
        unsafe {
            let at = column * LANES;
            match LAYOUTS[LAYOUT] {
                Layout::Nibbles | Layout::CentredNibbles | Layout::WideNibbles => {
                    V::fma(V::nibble(self.words, column % 8), self.d, self.m)
                }
                Layout::Bytes | Layout::SplitBytes => V::mul(self.byte(column), self.d),
                Layout::WideBytes => V::fma(self.byte(column), self.d, self.m),
                Layout::Halves => V::load_f16(self.block.cast::<u16>().add(at)),
                Layout::Brains => V::load_bf16(self.block.cast::<u16>().add(at)),
                Layout::Singles => V::load(self.block.cast::<f32>().add(at)),
            }
        }
    }

    /// The integers of a column of the group, without scales and minima.
    #[inline(always)]
    pub(super) unsafe fn integers(&self, column: usize) -> V::F {
        // SAFETY: `column` is inside the block.
        unsafe {
            match LAYOUTS[LAYOUT] {
                Layout::Nibbles | Layout::WideNibbles => V::nibble(self.words, column % 8),
                Layout::CentredNibbles => V::sub(V::nibble(self.words, column % 8), V::splat(8.0)),
                Layout::Bytes | Layout::WideBytes | Layout::SplitBytes => self.byte(column),
                Layout::Halves | Layout::Brains | Layout::Singles => unreachable!("not integers"),
            }
        }
    }

    /// What one of the group stands for.
    #[inline(always)]
    pub(super) fn scales(&self) -> V::F {
        self.d
    }

    #[inline(always)]
    unsafe fn byte(&self, column: usize) -> V::F {
        // SAFETY: `column` is inside the block.
        unsafe { V::byte(V::load_u32(self.block.cast::<u32>().add(column / 4 * LANES)), column % 4) }
    }
}
