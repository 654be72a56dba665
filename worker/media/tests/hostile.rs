//! Any bytes at all, and real files with bytes changed or cut off: decoding ends in an answer or an error, and soon.

use std::path::Path;
use std::time::{Duration, Instant};

use media::{picture, sound};
use proptest::prelude::*;
use proptest::sample::Index;

/// Of one file, on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(10);

const FILES: [&str; 20] = [
    "photo.png",
    "photo.jpg",
    "progressive.jpg",
    "cmyk.jpg",
    "turned6.jpg",
    "lossless.webp",
    "lossy.webp",
    "moving.webp",
    "photo.bmp",
    "photo.gif",
    "palette.png",
    "stereo_22050_s16.wav",
    "mono_8000_ulaw.wav",
    "stereo_48000.flac",
    "mono_44100.mp3",
    "stereo_44100_vorbis.ogg",
    "mono_48000_opus.ogg",
    "stereo_48000_opus.ogg",
    "mono_32000.m4a",
    "mono_16000_alac.m4a",
];

/// Decodes as both, with limits that files this small never need.
fn decode(bytes: &[u8]) {
    let started = Instant::now();
    let limits = picture::Limits { side: 2_000, pixels: 1_000_000, ..picture::Limits::default() };
    if let Ok(picture) = picture::decode(bytes, &limits) {
        assert_eq!(picture.rgb.len(), picture.width as usize * picture.height as usize * 3);
        assert!(picture.rgb.len() <= 3_000_000);
    }
    if let Ok(sound) = sound::decode(bytes, &sound::Limits { seconds: 60 }) {
        assert!(!sound.samples.is_empty() && sound.samples.len() <= 60 * 16_000 + 1);
        assert!(sound.samples.iter().all(|sample| sample.is_finite()));
    }
    assert!(started.elapsed() < TIME_MAX, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        decode(&bytes);
    }

    #[test]
    fn mutated_files(
        file in 0..FILES.len(),
        edits in prop::collection::vec((any::<Index>(), any::<u8>()), 0..12),
        head in prop::collection::vec((0usize..200, any::<u8>()), 0..4),
        cut in any::<Index>(),
        whole in any::<bool>(),
    ) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(FILES[file]);
        let mut bytes = std::fs::read(path).unwrap();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, value) in head {
            bytes[at] = value;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        decode(&bytes);
    }
}

/// An atom of an MP4.
fn atom(name: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u32 + 8).to_be_bytes()[..], name, &body].concat()
}

/// Fields of four bytes each.
fn fields(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// A sample entry of version 2: mono PCM of 16 bits at 16 kHz that says so many frames are in a packet.
fn lpcm(frames_a_packet: u32) -> Vec<u8> {
    let head = fields(&[0, 1, 2 << 16, 0, 3 << 16 | 16, 0xfffe_0000, 1 << 16, 72]);
    let rate = 16_000_f64.to_be_bytes();
    let form = fields(&[1, 0x7f00_0000, 16, 4, 2, frames_a_packet]);
    atom(b"lpcm", &[&head, &rate, &form])
}

/// An MP4 of one track: so many frames of silence, two bytes each.
fn mp4(entry: &[u8], frames: u32) -> Vec<u8> {
    let start = atom(b"ftyp", &[b"isom\0\0\0\0isom"]);
    let data = atom(b"mdat", &[&vec![0; frames as usize * 2]]);
    let table = atom(
        b"stbl",
        &[
            &atom(b"stsd", &[&fields(&[0, 1]), entry]),
            &atom(b"stts", &[&fields(&[0, 1, frames, 1])]),
            &atom(b"stsc", &[&fields(&[0, 1, 1, frames, 1])]),
            &atom(b"stsz", &[&fields(&[0, 2, frames])]),
            &atom(b"stco", &[&fields(&[0, 1, start.len() as u32 + 8])]),
        ],
    );
    let information = atom(b"minf", &[&atom(b"smhd", &[&fields(&[0, 0])]), &table]);
    let handler = atom(b"hdlr", &[&fields(&[0, 0]), b"soun", &[0; 13]]);
    let media = atom(b"mdia", &[&atom(b"mdhd", &[&fields(&[0, 0, 0, 16_000, frames, 0])]), &handler, &information]);
    let track = atom(b"trak", &[&atom(b"tkhd", &[&fields(&[7, 0, 0, 1, 0, frames]), &[0; 60]]), &media]);
    let head = atom(b"mvhd", &[&fields(&[0, 0, 0, 16_000, frames]), &[0; 80]]);
    [start, data, atom(b"moov", &[&head, &track])].concat()
}

#[test]
fn what_an_mp4_promises_of_its_packets_is_not_allocated() {
    for promised in [1, u32::MAX] {
        let sound = sound::decode(&mp4(&lpcm(promised), 1_600), &sound::Limits { seconds: 60 }).unwrap();
        assert_eq!(sound.samples.len(), 1_600, "of {promised}");
    }
}
