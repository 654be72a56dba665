//! Pictures of many forms against what Pillow reads in them; resizing byte for byte.

use std::path::{Path, PathBuf};

use media::Error;
use media::picture::{Filter, Framing, Limits, Picture, decode};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap()
}

fn picture(name: &str) -> Picture {
    decode(&read(name), &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Checks against what Pillow made of the same file: the largest and the mean difference.
fn check(name: &str, largest: u8, mean: f64) {
    let ours = picture(name).rgb;
    let theirs = read(&format!("{name}.rgb"));
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let differences: Vec<u8> = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).collect();
    let most = *differences.iter().max().unwrap();
    let average = differences.iter().map(|d| f64::from(*d)).sum::<f64>() / differences.len() as f64;
    eprintln!("{name}: at most {most}, {average:.3} on average");
    assert!(most <= largest && average <= mean, "{name}: at most {most}, {average:.3} on average");
}

#[test]
fn what_loses_nothing_is_as_pillow_reads_it() {
    for name in [
        "photo.png",
        "photo.bmp",
        "photo.gif",
        "lossless.webp",
        "alpha.webp",
        "moving.webp",
        "alpha.png",
        "palette.png",
        "grey_alpha.png",
        "grey.png",
        "bits.png",
        "rgb16.png",
        "turned5.png",
    ] {
        check(name, 0, 0.0);
    }
}

#[test]
fn what_loses_something_is_nearly_as_pillow_reads_it() {
    // Decoders may round their transforms and interpolate colours differently.
    check("grey.jpg", 2, 0.3);
    check("sharp.jpg", 4, 0.8);
    check("photo.jpg", 8, 1.0);
    check("progressive.jpg", 8, 1.0);
    check("cmyk.jpg", 8, 1.5);
    check("lossy.webp", 4, 0.5);
    for orientation in [1, 2, 3, 4, 6, 7, 8] {
        check(&format!("turned{orientation}.jpg"), 8, 1.0);
    }
}

#[test]
fn of_16_bits_the_upper_ones_stay() {
    let grey: Vec<u8> = read("rgb16.png.rgb").chunks_exact(3).flat_map(|pixel| [pixel[0]; 3]).collect();
    assert_eq!(picture("grey16.png").rgb, grey);
}

#[test]
fn turned_pictures_stand_upright() {
    assert_eq!((picture("turned1.jpg").width, picture("turned1.jpg").height), (44, 30));
    for name in ["turned5.png", "turned6.jpg", "turned7.jpg", "turned8.jpg"] {
        assert_eq!((picture(name).width, picture(name).height), (30, 44), "{name}");
    }
}

/// What a PNG says of its orientation, and where its chunk begins.
fn exif_of(png: &[u8]) -> (usize, &[u8]) {
    let start = png.windows(4).position(|name| name == b"eXIf").unwrap() - 4;
    let len = u32::from_be_bytes(png[start..start + 4].try_into().unwrap()) as usize;
    (start, &png[start + 8..start + 8 + len])
}

/// A chunk of a PNG.
fn png_chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let named = [name, body].concat();
    [&(body.len() as u32).to_be_bytes(), &named[..], &crc(&named).to_be_bytes()].concat()
}

/// Some writers put before it what a JPEG has before it.
#[test]
fn what_stands_before_exif_does_not_hide_it() {
    let png = read("turned5.png");
    let (start, exif) = exif_of(&png);
    let prefixed = [b"Exif\0\0", exif].concat();
    let rest = &png[start + 12 + exif.len()..];
    let written = [&png[..start], &png_chunk(b"eXIf", &prefixed), rest].concat();
    assert_eq!(decode(&written, &Limits::default()).unwrap(), picture("turned5.png"));
    let flat = read("lossless.webp");
    let sides = picture("lossless.webp");
    let side = |pixels: u32| (pixels - 1).to_le_bytes();
    let (width, height) = (side(sides.width), side(sides.height));
    let canvas = [b"VP8X\x0a\0\0\0\x08\0\0\0", &width[..3], &height[..3]].concat();
    let len = (prefixed.len() as u32).to_le_bytes();
    let body = [b"WEBP", &canvas[..], &flat[12..], b"EXIF", &len, &prefixed].concat();
    let turned = [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat();
    let turned = decode(&turned, &Limits::default()).unwrap();
    assert_eq!((turned.width, turned.height), (sides.height, sides.width));
}

#[test]
fn resizing_is_pillows_byte_for_byte() {
    let photo = picture("photo.png");
    for (name, width, height) in [("less", 17, 11), ("more", 71, 50), ("flat", 60, 5), ("same", 44, 13)] {
        for (kind, filter) in [("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic)] {
            let resized = photo.resize(width, height, filter);
            assert_eq!((resized.width, resized.height), (width, height));
            assert!(resized.rgb == read(&format!("{name}.{kind}.rgb")), "{name}, {kind}");
        }
    }
}

#[test]
fn the_middle_is_torchvisions_byte_for_byte() {
    let photo = picture("photo.png");
    let turned = turned(&photo);
    for (name, picture) in [("wide", &photo), ("tall", &turned)] {
        for (shorter, crop) in [(25, 20), (64, 33)] {
            let middle = picture.resize_and_crop(shorter, crop, Filter::Bicubic);
            assert!(middle.rgb == read(&format!("{name}.{shorter}.{crop}.rgb")), "{name}, {shorter}, {crop}");
        }
    }
}

/// A quarter turn to the left.
fn turned(picture: &Picture) -> Picture {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let pixel = |index: usize| {
        let (row, column) = (index / height, index % height);
        let at = (column * width + width - 1 - row) * 3;
        [picture.rgb[at], picture.rgb[at + 1], picture.rgb[at + 2]]
    };
    Picture { width: picture.height, height: picture.width, rgb: (0..width * height).flat_map(pixel).collect() }
}

#[test]
fn numbers_are_normalised_by_channel() {
    let picture = Picture { width: 2, height: 1, rgb: vec![0, 51, 255, 255, 102, 0] };
    let framing =
        Framing { shorter: 1, crop: 1, filter: Filter::Bilinear, mean: [0.5, 0.2, 0.0], deviation: [0.5, 0.1, 2.0] };
    let numbers = picture.normalise(framing.mean, framing.deviation);
    for (number, right) in numbers.iter().zip([-1.0, 0.0, 0.5, 1.0, 2.0, 0.0]) {
        assert!((number - right).abs() < 1e-6, "{numbers:?}");
    }
    assert_eq!(picture.framed(&framing).len(), 3);
}

/// A PNG header that promises this many pixels, with next to nothing behind it.
fn promise(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = read("photo.png");
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

#[test]
fn a_limit_is_named() {
    let large = decode(&promise(50_000, 50_000), &Limits::default()).unwrap_err();
    assert!(matches!(&large, Error::TooLarge { limit, .. } if limit == "16384 a side"), "{large}");
    let large = decode(&promise(16_000, 16_000), &Limits::default()).unwrap_err();
    assert!(matches!(&large, Error::TooLarge { limit, .. } if limit == "40000000 in all"), "{large}");
    let limits = Limits { side: 40, pixels: 4_000, ..Limits::default() };
    for name in ["photo.png", "photo.jpg", "photo.gif", "photo.bmp", "lossy.webp", "lossless.webp", "moving.webp"] {
        let error = decode(&read(name), &limits).unwrap_err();
        assert!(matches!(&error, Error::TooLarge { limit, .. } if limit == "40 a side"), "{name}: {error}");
    }
}

#[test]
fn what_a_png_holds_beside_its_pixels_has_a_limit() {
    let png = read("photo.png");
    let header = 8 + 25;
    let text = [&b"Comment\0"[..], &[b'a'; 50_000]].concat();
    let written = [&png[..header], &png_chunk(b"tEXt", &text), &png[header..]].concat();
    assert_eq!(decode(&written, &Limits::default()).unwrap(), picture("photo.png"));
    let limits = Limits { beside: 10_000, ..Limits::default() };
    assert!(decode(&png, &limits).is_ok());
    let error = decode(&written, &limits).unwrap_err();
    assert!(matches!(&error, Error::TooLarge { limit, .. } if limit.contains("10000 bytes")), "{error}");
}

/// The frame may be larger than the canvas that its header tells.
#[test]
fn the_frame_of_a_gif_has_a_limit() {
    let gif = |side: u8| {
        let head = b"GIF89a\x01\0\x01\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0";
        [&head[..], &[side, 0, side, 0], b"\0\x02\x02D\x01\0;"].concat()
    };
    let limits = Limits { pixels: 10_000, ..Limits::default() };
    let fits = decode(&gif(100), &limits);
    assert!(!matches!(&fits, Err(Error::TooLarge { .. })), "{fits:?}");
    let error = decode(&gif(101), &limits).unwrap_err();
    assert!(matches!(&error, Error::TooLarge { limit, .. } if limit.contains("40000 bytes")), "{error}");
}

#[test]
fn memory_is_for_pixels_and_for_what_is_beside_them() {
    for bytes in [0, 1, 1_000, 1 << 20, 100 << 20, 1 << 30, u64::MAX] {
        let limits = Limits::for_memory(bytes);
        assert!(limits.bytes() <= bytes && limits.pixels <= Limits::default().pixels, "{limits:?}");
    }
    assert_eq!(Limits::for_memory(1 << 30), Limits::default());
}

#[test]
fn what_lies_or_ends_early_is_refused() {
    let lie = decode(&promise(4_000, 4_000), &Limits::default()).unwrap_err();
    assert!(matches!(lie, Error::Malformed(_)), "{lie}");
    for name in ["photo.png", "photo.jpg", "progressive.jpg", "photo.gif", "photo.bmp", "lossy.webp", "lossless.webp"] {
        let bytes = read(name);
        // The GIF holds two pictures.
        let error = decode(&bytes[..bytes.len() / 3], &Limits::default()).expect_err(name);
        assert!(matches!(error, Error::Malformed(_)), "{name}: {error}");
    }
    for bytes in [&b""[..], b"not a picture", b"\xff\xd8\xff\xe0", b"II*\0\x08\0\0\0"] {
        assert!(decode(bytes, &Limits::default()).is_err());
    }
}

/// A GIF whose first picture counts, whatever follows.
#[test]
fn of_ten_thousand_frames_one_is_read() {
    let gif = read("photo.gif");
    let end = gif.len() - 1;
    let frame = frame_of(&gif);
    let mut many = gif[..end].to_vec();
    for _ in 0..10_000 {
        many.extend(frame);
    }
    many.push(0x3b);
    let started = std::time::Instant::now();
    assert_eq!(decode(&many, &Limits::default()).unwrap(), picture("photo.gif"));
    assert!(started.elapsed().as_millis() < 1_000, "{:?}", started.elapsed());
}

/// The last frame of a GIF, with what precedes it.
fn frame_of(gif: &[u8]) -> &[u8] {
    let control = gif.windows(3).rposition(|bytes| bytes == [0x21, 0xf9, 0x04]).unwrap();
    &gif[control..gif.len() - 1]
}
