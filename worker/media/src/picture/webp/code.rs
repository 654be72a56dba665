//! A prefix code of a lossless WebP.

use super::bits::Bits;
use crate::Error;

/// In this order the lengths of the code stand that the lengths are written in.
const LENGTHS_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// The longest code.
const LENGTH_MAX: usize = 15;
/// Before any length was read, a repeated one is this.
const LENGTH_FIRST: u8 = 8;
/// The decoder has a table of so many bits; for what is longer there is a tree.
const TABLE_BITS: usize = 10;
/// An entry of the table.
const ENTRY_BYTES: u64 = 4;
/// Two nodes of the tree, for each code that is too long for the table.
const NODES_BYTES: u64 = 32;
/// What two allocations take beside what was asked for.
const ALLOCATIONS_BYTES: u64 = 32;

/// A code as it is written.
pub(super) enum Form {
    /// One symbol, which takes no bits.
    One(u16),
    /// Two, of a bit each.
    Two([u16; 2]),
    /// Bits of each symbol's code; 0 where it has none.
    Lengths(Vec<u8>),
}

impl Form {
    pub(super) fn read(bits: &mut Bits<'_>, symbols: usize) -> Result<Self, Error> {
        if bits.read(1)? == 0 {
            return Ok(Self::Lengths(lengths(bits, symbols)?));
        }
        let is_two = bits.read(1)? == 1;
        let width = if bits.read(1)? == 1 { 8 } else { 1 };
        let first = symbol(bits.read(width)?, symbols)?;
        Ok(if is_two { Self::Two([first, symbol(bits.read(8)?, symbols)?]) } else { Self::One(first) })
    }

    /// What the decoder's tables of it take.
    pub(super) fn table_bytes(&self) -> u64 {
        match self {
            Self::One(_) => 0,
            Self::Two(_) => 2 * ENTRY_BYTES + 2 * NODES_BYTES + ALLOCATIONS_BYTES,
            Self::Lengths(lengths) => {
                let longest = usize::from(lengths.iter().copied().max().unwrap_or_default());
                let beyond = lengths.iter().filter(|length| usize::from(**length) > TABLE_BITS).count();
                (ENTRY_BYTES << longest.min(TABLE_BITS)) + beyond as u64 * NODES_BYTES + ALLOCATIONS_BYTES
            }
        }
    }
}

fn symbol(number: u32, symbols: usize) -> Result<u16, Error> {
    if (number as usize) < symbols { Ok(number as u16) } else { Err(super::broken()) }
}

fn lengths(bits: &mut Bits<'_>, symbols: usize) -> Result<Vec<u8>, Error> {
    let mut written = vec![0; LENGTHS_ORDER.len()];
    let count = 4 + bits.read(4)? as usize;
    for place in &LENGTHS_ORDER[..count] {
        written[*place] = bits.read(3)? as u8;
    }
    let code = Code::of(&Form::Lengths(written))?;
    let mut left = match bits.read(1)? {
        0 => symbols,
        _ => {
            let width = 2 + 2 * bits.read(3)?;
            2 + bits.read(width)? as usize
        }
    };
    if left > symbols {
        return Err(super::broken());
    }
    let mut lengths = Vec::with_capacity(symbols);
    let mut previous = LENGTH_FIRST;
    while left > 0 && lengths.len() < symbols {
        left -= 1;
        let (length, times) = match code.read(bits)? {
            16 => (previous, 3 + bits.read(2)?),
            17 => (0, 3 + bits.read(3)?),
            18 => (0, 11 + bits.read(7)?),
            length => (length as u8, 1),
        };
        previous = if length == 0 { previous } else { length };
        lengths.resize(lengths.len() + times as usize, length);
    }
    if lengths.len() > symbols {
        return Err(super::broken());
    }
    Ok(lengths)
}

/// A code to read with: for all that the next bits can be, how many of them belong to which symbol.
pub(super) struct Code {
    width: u32,
    table: Vec<(u8, u16)>,
}

impl Code {
    pub(super) fn of(form: &Form) -> Result<Self, Error> {
        match form {
            Form::One(symbol) => Ok(Self { width: 0, table: vec![(0, *symbol)] }),
            Form::Two(symbols) => Ok(Self { width: 1, table: symbols.map(|symbol| (1, symbol)).to_vec() }),
            Form::Lengths(lengths) => Self::of_lengths(lengths),
        }
    }

    fn of_lengths(lengths: &[u8]) -> Result<Self, Error> {
        let used = || lengths.iter().enumerate().filter(|(_, length)| **length > 0);
        if used().count() == 1 {
            let only = used().map(|(symbol, _)| symbol as u16).next();
            return Self::of(&Form::One(only.unwrap_or_default()));
        }
        let width = usize::from(lengths.iter().copied().max().unwrap_or_default());
        let mut table = vec![(0, 0); 1 << width];
        let mut next = 0;
        for length in 1..=width {
            for (symbol, _) in used().filter(|(_, of)| usize::from(**of) == length) {
                // Codes are read from their highest bit on, which is the lowest of what is peeked.
                let first = reversed(next >> (width - length), length);
                for place in (first..1 << width).step_by(1 << length) {
                    table[place] = (length as u8, symbol as u16);
                }
                next += 1 << (width - length);
                if next > 1 << width {
                    return Err(super::broken());
                }
            }
        }
        if next == 1 << width { Ok(Self { width: width as u32, table }) } else { Err(super::broken()) }
    }

    pub(super) fn read(&self, bits: &mut Bits<'_>) -> Result<u16, Error> {
        let (length, symbol) = self.table[bits.peek(self.width) as usize];
        bits.skip(u32::from(length))?;
        Ok(symbol)
    }
}

/// The lowest `count` bits in the other order.
fn reversed(bits: usize, count: usize) -> usize {
    debug_assert!(count <= LENGTH_MAX);
    bits.reverse_bits() >> (usize::BITS as usize - count)
}
