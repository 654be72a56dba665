//! What the tables of a Vorbis stream take, before they are made: a header of some bytes can ask for gigabytes.

use crate::Error;

/// What a codebook begins with.
const SYNC: u32 = 0x56_43_42;
/// Of the sync word.
const SYNC_BITS: u32 = 24;
/// Bits of a codebook's dimensions, which follow its sync word, and of its entries, which follow them.
const DIMENSIONS_BITS: u32 = 16;
/// See [`DIMENSIONS_BITS`].
const ENTRIES_BITS: u32 = 24;
/// The decoder refuses codebooks beyond these by itself; what only looks like a sync word mostly lies beyond them too.
const DIMENSIONS_MAX: u64 = 32;
/// See [`DIMENSIONS_MAX`].
const ENTRIES_MAX: u64 = 128 * 1024;
/// A number of a vector.
const NUMBER_BYTES: u64 = 4;
/// What an entry takes beside its vector: its code, and its place in the tree of codes.
const ENTRY_BYTES: u64 = 32;
/// Of all codebooks; those of libvorbis take less than an eighth of it.
const TABLES_MIB_MAX: u64 = 64;

/// Refuses headers whose codebooks take more than a stream's do.
pub(super) fn check(header: &[u8]) -> Result<(), Error> {
    if tables_bytes(header) > TABLES_MIB_MAX << 20 {
        let what = "the tables of the Vorbis stream are too large".into();
        return Err(Error::TooLarge { what, limit: format!("{TABLES_MIB_MAX} MiB") });
    }
    Ok(())
}

/// Codebooks have no length, so that each is found by its sync word, at whatever bit it begins.
fn tables_bytes(header: &[u8]) -> u64 {
    let bits = header.len() * 8;
    let whole = (SYNC_BITS + DIMENSIONS_BITS + ENTRIES_BITS) as usize;
    let starts = 0..(bits + 1).saturating_sub(whole);
    starts.filter_map(|start| codebook_bytes(window(header, start))).sum()
}

/// The 64 bits from `start` on, the lowest first, as Vorbis packs them.
fn window(header: &[u8], start: usize) -> u64 {
    let mut bytes = [0; 16];
    let rest = &header[start / 8..];
    let count = rest.len().min(bytes.len());
    bytes[..count].copy_from_slice(&rest[..count]);
    (u128::from_le_bytes(bytes) >> (start % 8)) as u64
}

fn codebook_bytes(bits: u64) -> Option<u64> {
    let field = |from: u32, count: u32| bits >> from & ((1 << count) - 1);
    let dimensions = field(SYNC_BITS, DIMENSIONS_BITS);
    let entries = field(SYNC_BITS + DIMENSIONS_BITS, ENTRIES_BITS);
    let is_one = field(0, SYNC_BITS) == u64::from(SYNC) && dimensions <= DIMENSIONS_MAX && entries <= ENTRIES_MAX;
    is_one.then_some(entries * (dimensions * NUMBER_BYTES + ENTRY_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codebooks one after another, each with `gap` bits behind it.
    fn header(books: usize, (dimensions, entries): (u64, u64), gap: usize) -> Vec<u8> {
        let book = u64::from(SYNC) | dimensions << SYNC_BITS | entries << (SYNC_BITS + DIMENSIONS_BITS);
        let size = 64 + gap;
        let mut header = vec![0_u8; (books * size).div_ceil(8)];
        for bit in (0..books).flat_map(|number| (0..64).map(move |bit| (number * size + bit, bit))) {
            header[bit.0 / 8] |= ((book >> bit.1 & 1) as u8) << (bit.0 % 8);
        }
        header
    }

    #[test]
    fn codebooks_count_at_whatever_bit_they_begin() {
        for gap in 0..9 {
            assert_eq!(tables_bytes(&header(10, (8, 6561), gap)), 10 * 6561 * 64);
            assert!(check(&header(10, (8, 6561), gap)).is_ok());
            let error = check(&header(4, (32, ENTRIES_MAX), gap)).unwrap_err();
            assert!(matches!(&error, Error::TooLarge { limit, .. } if limit == "64 MiB"), "{error}");
        }
    }

    #[test]
    fn the_tables_of_a_real_stream_are_found_and_small() {
        let file = include_bytes!("../../tests/golden/stereo_44100_vorbis.ogg");
        assert!((100_000..TABLES_MIB_MAX << 17).contains(&tables_bytes(file)), "{}", tables_bytes(file));
    }

    #[test]
    fn what_is_no_codebook_counts_nothing() {
        assert_eq!(tables_bytes(&[]), 0);
        assert_eq!(tables_bytes(b"BCV"), 0);
        assert_eq!(tables_bytes(&header(300, (33, ENTRIES_MAX), 3)), 0);
        assert_eq!(tables_bytes(&header(300, (32, ENTRIES_MAX + 1), 3)), 0);
    }
}
