//! Whether a JPEG is whole: its decoder fills what is missing with grey, which is not what the sender meant.

use crate::Error;

/// Finds the end marker behind the first scan.
///
/// # Errors
/// When there is none, or no scan.
pub(super) fn check_complete(bytes: &[u8]) -> Result<(), Error> {
    let scan = first_scan(bytes).ok_or_else(|| Error::Malformed("the JPEG holds no picture".into()))?;
    // In a scan 0xFF is followed by 0 or a restart, so the end marker is not mistaken for anything else.
    if bytes[scan..].windows(2).any(|pair| pair == [0xff, 0xd9]) {
        return Ok(());
    }
    Err(Error::Malformed(format!("the JPEG ends too early, after {} bytes", bytes.len())))
}

/// Where the first scan's data begins. Segments before it may hold another JPEG, a thumbnail, and are skipped.
fn first_scan(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        let marker = *bytes.get(at + 1)?;
        match (*bytes.get(at)?, marker) {
            (0xff, 0xff) => at += 1,
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, _) => {
                let length = usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]));
                at += 2 + length;
                if marker == 0xda {
                    return (at <= bytes.len()).then_some(at);
                }
            }
            // Decoders skip stray bytes between segments.
            _ => at += 1,
        }
    }
}
