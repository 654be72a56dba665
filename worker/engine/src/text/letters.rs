//! The alphabet of byte-level vocabularies: a printable character for each byte, so that a token is always a text.

/// The character that stands for `byte`: itself where it is printable, else the next one from U+0100 on.
pub(crate) fn letter(byte: u8) -> char {
    match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0x00..=0x20 => shifted(u32::from(byte)),
        0x7f..=0xa0 => shifted(u32::from(byte) - 0x7f + 0x21),
        0xad => shifted(0x43),
    }
}

fn shifted(place: u32) -> char {
    char::from_u32(0x100 + place).expect("U+0100 to U+0143 are characters")
}

/// The byte that `letter` stands for, if it is of the alphabet.
pub(super) fn byte(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_bytes_are_one_to_one() {
        let letters: std::collections::HashSet<char> = (0..=255).map(letter).collect();
        assert_eq!(letters.len(), 256);
        for b in 0..=255 {
            assert_eq!(byte(letter(b)), Some(b));
        }
        assert_eq!(letter(b' '), 'Ġ');
        assert_eq!(letter(b'\n'), 'Ċ');
        assert_eq!(byte('€'), None);
    }
}
