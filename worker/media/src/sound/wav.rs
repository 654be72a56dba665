//! A WAV whose sizes were left open: who writes to a pipe puts zero or the greatest number there. As at the door, what is
//! there counts.

use std::borrow::Cow;

/// Where the first chunk begins.
const FIRST: usize = 12;
/// A chunk's name and size.
const HEAD_BYTES: usize = 8;
/// What the reader takes for an open size.
const OPEN: [u8; 4] = u32::MAX.to_le_bytes();

/// The same sound with sizes that are open for the reader too; a copy only where some are not as it wants them.
pub(super) fn closed(bytes: &[u8]) -> Cow<'_, [u8]> {
    let Some((data, said)) = data(bytes) else { return Cow::Borrowed(bytes) };
    let there = bytes.len() - data - HEAD_BYTES;
    let is_open = said == 0 || said > there;
    let whole = size(bytes, 0).unwrap_or_default() + HEAD_BYTES;
    if !is_open && data + HEAD_BYTES + said <= whole {
        return Cow::Borrowed(bytes);
    }
    let mut bytes = bytes.to_vec();
    bytes[4..HEAD_BYTES].copy_from_slice(&OPEN);
    if is_open {
        bytes[data + 4..data + HEAD_BYTES].copy_from_slice(&OPEN);
    }
    Cow::Owned(bytes)
}

/// Where the chunk with the samples begins, and its size.
fn data(bytes: &[u8]) -> Option<(usize, usize)> {
    if !bytes.starts_with(b"RIFF") || bytes.get(8..FIRST)? != b"WAVE" {
        return None;
    }
    let mut at = FIRST;
    loop {
        let size = size(bytes, at)?;
        if bytes[at..].starts_with(b"data") {
            return Some((at, size));
        }
        // Chunks are padded to an even length.
        at += HEAD_BYTES + size + size % 2;
    }
}

/// The size of the chunk at `at`.
fn size(bytes: &[u8], at: usize) -> Option<usize> {
    let size = bytes.get(at + 4..at + HEAD_BYTES)?.try_into().ok()?;
    Some(u32::from_le_bytes(size) as usize)
}
