//! WebP files that ask for more than their header says: made here, since they are small.

use media::Error;
use media::picture::{Limits, decode};

/// A chunk, padded.
fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let padding = &[0][..body.len() % 2];
    [&name[..], &(body.len() as u32).to_le_bytes(), body, padding].concat()
}

fn riff(chunks: &[&[u8]]) -> Vec<u8> {
    let body = chunks.concat();
    [b"RIFF", &(body.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &body].concat()
}

/// A canvas; bit 1 of the flags is an animation, bit 3 EXIF, bit 4 alpha.
fn canvas(flags: u8, side: u32) -> Vec<u8> {
    let side = &(side - 1).to_le_bytes()[..3];
    chunk(b"VP8X", &[&[flags, 0, 0, 0], side, side].concat())
}

/// The beginning of a lossy frame.
fn lossy(side: u16) -> Vec<u8> {
    let side = side.to_le_bytes();
    [&[0x10, 0, 0, 0x9d, 0x01, 0x2a], &side[..], &side, &[0; 64]].concat()
}

/// A frame of an animation at the corner.
fn frame(side: u32, chunks: &[&[u8]]) -> Vec<u8> {
    let side = &(side - 1).to_le_bytes()[..3];
    chunk(b"ANMF", &[&[0; 6], side, side, &[0; 4], &chunks.concat()].concat())
}

#[test]
fn a_frame_counts_and_not_only_its_canvas() {
    let huge = lossy(16_383);
    let moving = [canvas(0b10, 16), chunk(b"ANIM", &[0; 6])].concat();
    let alpha = chunk(b"ALPH", &[0; 257]);
    for (what, file) in [
        ("a picture", riff(&[&chunk(b"VP8 ", &huge)])),
        ("a canvas", riff(&[&canvas(0, 16), &chunk(b"VP8 ", &huge)])),
        ("an animation", riff(&[&moving, &frame(16, &[&chunk(b"VP8 ", &huge)])])),
        ("one with alpha", riff(&[&moving, &frame(16, &[&alpha, &chunk(b"VP8 ", &huge)])])),
        // Behind alpha the decoder does not look at the name.
        ("another name", riff(&[&moving, &frame(16, &[&alpha, &chunk(b"NAME", &huge)])])),
        // The decoder looks up to ten bytes behind the end.
        ("behind the end", [&riff(&[&canvas(0, 16)])[..], &chunk(b"VP8 ", &huge)].concat()),
        ("lossless", riff(&[&canvas(0, 16), &chunk(b"VP8L", &[0x2f, 0xfe, 0xbf, 0xff, 0x0f, 0])])),
    ] {
        let error = decode(&file, &Limits::default()).expect_err(what);
        assert!(matches!(&error, Error::TooLarge { limit, .. } if limit == "40000000 in all"), "{what}: {error}");
    }
}

#[test]
fn a_part_that_reaches_past_the_file_is_refused_before_it_is_allocated() {
    let exif = [&b"EXIF"[..], &0xffff_fff0_u32.to_le_bytes(), b"II*\0"].concat();
    let picture = chunk(b"VP8 ", &lossy(16));
    for file in [
        riff(&[&canvas(0b1000, 16), &picture, &exif]),
        riff(&[&canvas(0, 16), &picture[..40]]),
        riff(&[&picture[..40]]),
        riff(&[&canvas(0b10, 16), &chunk(b"ANIM", &[0; 6]), &frame(16, &[&picture[..40]])]),
    ] {
        let error = decode(&file, &Limits::default()).unwrap_err();
        assert!(matches!(&error, Error::Malformed(why) if why.contains("ends too early")), "{error}");
    }
}

/// Bits, the lowest of each byte first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn push(&mut self, bits: u32, count: usize) -> &mut Self {
        for bit in 0..count {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((bits >> bit & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
        self
    }

    /// A code of one symbol.
    fn one(&mut self, symbol: u32) -> &mut Self {
        self.push(0b101, 3).push(symbol, 8)
    }

    /// A code whose longest symbol has ten bits, so that its table is as large as a table may be.
    fn deep(&mut self) -> &mut Self {
        // Lengths 1 to 6 have three bits, 7 to 10 four, in the order 17, 18, 0, 1, 2, 3, 4, 5, 16, 6 to 10.
        self.push(0, 1).push(10, 4);
        for width in [0, 0, 0, 3, 3, 3, 3, 3, 0, 3, 4, 4, 4, 4] {
            self.push(width, 3);
        }
        // Eleven lengths are written: 1, 2, and so on to 10, and once more 10.
        self.push(1, 1).push(1, 3).push(9, 4);
        for length in (1..=10_u32).chain([10]) {
            let (code, width) = if length <= 6 { (length - 1, 3) } else { (12 + length - 7, 4) };
            self.push(code.reverse_bits() >> (32 - width), width as usize);
        }
        self
    }
}

/// A lossless picture of 8 by 8 pixels whose blocks name the last of so many groups of deep codes.
fn grouped(groups: u32) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.push(0x2f, 8).push(7, 14).push(7, 14).push(0, 4);
    // No transform, no cache, groups by blocks of four pixels.
    bits.push(0, 1).push(0, 1).push(1, 1).push(0, 3);
    let last = groups - 1;
    bits.push(0, 1).one(last & 0xff).one(last >> 8).one(0).one(0).one(0);
    for _ in 0..groups * 5 {
        bits.deep();
    }
    bits.push(0, 32);
    bits.bytes.extend([0; 100]);
    riff(&[&chunk(b"VP8L", &bits.bytes)])
}

#[test]
fn the_tables_of_a_lossless_picture_have_a_limit() {
    let file = grouped(65_536);
    assert!((3_000_000..5_000_000).contains(&file.len()), "{} bytes", file.len());
    let error = decode(&file, &Limits::default()).unwrap_err();
    assert!(matches!(&error, Error::TooLarge { limit, .. } if limit.contains("bytes")), "{error}");
    let small = Limits { pixels: 64, beside: 1 << 20, ..Limits::default() };
    assert_eq!(decode(&grouped(45), &small).unwrap().rgb.len(), 8 * 8 * 3);
    assert!(matches!(decode(&grouped(60), &small).unwrap_err(), Error::TooLarge { .. }));
    assert_eq!(decode(&grouped(10_000), &Limits::default()).unwrap().width, 8);
}
