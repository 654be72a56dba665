use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::fixture::{media, request};

fn image(mime: &str, data: &[u8]) -> Result<Class, Refusal> {
    classify(&request(vec![media(Modality::Image, mime, data)]), Language::Skip)
}

fn audio(mime: &str, data: &[u8]) -> Result<Class, Refusal> {
    classify(&request(vec![media(Modality::Audio, mime, data)]), Language::Skip)
}

fn png(width: u32, height: u32, length: usize) -> Vec<u8> {
    let mut data = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    data.extend(width.to_be_bytes());
    data.extend(height.to_be_bytes());
    data.extend([8, 2, 0, 0, 0]);
    data.resize(length.max(data.len()), 0);
    data
}

fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut data = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xc0\0\x11\x08".to_vec();
    data.extend(height.to_be_bytes());
    data.extend(width.to_be_bytes());
    data.extend([3, 0, 0, 0]);
    data
}

fn gif(width: u16, height: u16) -> Vec<u8> {
    let mut data = b"GIF89a".to_vec();
    data.extend(width.to_le_bytes());
    data.extend(height.to_le_bytes());
    data.extend([0; 8]);
    data
}

fn bmp(width: i32, height: i32) -> Vec<u8> {
    let mut data = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    data.extend(width.to_le_bytes());
    data.extend(height.to_le_bytes());
    data.extend([0; 28]);
    data
}

fn webp_lossy(width: u16, height: u16) -> Vec<u8> {
    let mut data = b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0\0\0\0\x9d\x01\x2a".to_vec();
    data.extend(width.to_le_bytes());
    data.extend(height.to_le_bytes());
    data.extend([0; 16]);
    data
}

fn wav(rate: u32, claimed: u32, there: usize) -> Vec<u8> {
    let mut data = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    data.extend((rate / 2).to_le_bytes());
    data.extend(rate.to_le_bytes());
    data.extend([2, 0, 16, 0]);
    data.extend(b"data");
    data.extend(claimed.to_le_bytes());
    data.resize(data.len() + there, 0);
    data
}

fn flac(rate: u32, samples: u64) -> Vec<u8> {
    let mut data = b"fLaC\x80\0\0\x22\x10\0\x10\0\0\0\0\0\0\0".to_vec();
    // 20 bits of rate, 3 of channels, 5 of depth, 36 of samples.
    let packed = (u64::from(rate) << 44) | (1 << 41) | (15 << 36) | samples;
    data.extend(packed.to_be_bytes());
    data.extend([0; 16]);
    data
}

fn samples() -> Vec<(Modality, &'static str, Vec<u8>)> {
    let mut mp3 = b"\xff\xfb\x90\x64".to_vec();
    mp3.resize(417, 0);
    let mp3 = mp3.repeat(20);
    let mut ogg = b"OggS\0\x02\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01\x13OpusHead\x01\x02\x38\x01".to_vec();
    ogg.extend([0; 200]);
    let m4a = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0\0\0\0\x6cmoov\0\0\0\x64mvhd\0\0\0\0".to_vec();
    vec![
        (Modality::Image, "image/png", png(64, 64, 200)),
        (Modality::Image, "image/jpeg", jpeg(64, 64)),
        (Modality::Image, "image/gif", gif(64, 64)),
        (Modality::Image, "image/bmp", bmp(64, 64)),
        (Modality::Image, "image/webp", webp_lossy(64, 64)),
        (Modality::Audio, "audio/wav", wav(32_000, 320, 320)),
        (Modality::Audio, "audio/flac", flac(44_100, 44_100)),
        (Modality::Audio, "audio/mpeg", mp3),
        (Modality::Audio, "audio/ogg", ogg),
        (Modality::Audio, "audio/m4a", [m4a, vec![0; 200]].concat()),
    ]
}

#[test]
fn dimensions_are_read_from_headers() {
    for (mime, data) in [
        ("image/png", png(640, 480, 4000)),
        ("image/jpeg", jpeg(640, 480)),
        ("image/gif", gif(640, 480)),
        ("image/bmp", bmp(640, -480)),
        ("image/webp", webp_lossy(640, 480)),
    ] {
        let class = image(mime, &data).unwrap_or_else(|refusal| panic!("{mime}: {refusal}"));
        assert_eq!(class.image, Some(Dimensions { width: 640, height: 480 }), "{mime}");
        assert_eq!((class.modality, class.task, class.mime.as_str()), (Modality::Image, Task::Classify, mime));
        assert_eq!(class.bytes, data.len());
    }
}

#[test]
fn headers_that_lie_are_refused_by_name() {
    let code = |result: Result<Class, Refusal>| result.unwrap_err().code.as_str();
    assert_eq!(code(image("image/png", &png(0, 10, 100))), "invalid_request");
    assert_eq!(code(image("image/png", &png(6000, 6000, 100))), "invalid_request");
    assert_eq!(code(image("image/png", &png(20_000, 1, 100))), "too_large");
    assert_eq!(code(image("image/png", &png(u32::MAX, u32::MAX, 100))), "too_large");
    assert_eq!(code(image("image/png", &png(10_000, 10_000, 1_000_000))), "too_large");
    assert_eq!(code(image("image/png", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIDAT")), "invalid_request");
    assert_eq!(code(image("image/bmp", &bmp(i32::MIN, i32::MIN))), "too_large");
    assert_eq!(code(image("image/jpeg", b"\xff\xd8\xff\xe0\0\0\0\0")), "invalid_request");
    assert_eq!(code(audio("audio/wav", &wav(0, 10, 10))), "invalid_request");
    assert_eq!(code(audio("audio/wav", b"RIFF\0\0\0\0WAVEfmt ")), "invalid_request");
    assert_eq!(code(audio("audio/wav", &wav(1, u32::MAX, 20_000))), "too_large");
    assert_eq!(code(audio("audio/ogg", b"OggS\0\x02theora")), "unsupported_media");
}

#[test]
fn durations_are_read_from_headers() {
    let seconds = |class: Result<Class, Refusal>| class.unwrap().duration.map(|duration| duration.as_secs_f64());
    assert_eq!(seconds(audio("audio/wav", &wav(32_000, 16_000, 16_000))), Some(0.5));
    assert_eq!(seconds(audio("audio/wav", &wav(32_000, u32::MAX, 16_000))), Some(0.5), "a writer to a pipe");
    assert_eq!(seconds(audio("audio/wav", &wav(32_000, 0, 16_000))), Some(0.5), "a writer to a pipe");
    assert_eq!(seconds(audio("audio/flac", &flac(44_100, 441_000))), Some(10.0));
    assert_eq!(seconds(audio("audio/flac", &flac(44_100, 0))), None, "a writer that did not know");
}

#[test]
fn mixed_parts_take_the_lane_that_needs_most() {
    let parts = vec![Part::user("what is this?"), media(Modality::Image, "image/gif", &gif(2, 3)), Part::user("well?")];
    let class = classify(&request(parts.clone()), Language::Skip).unwrap();
    assert_eq!((class.modality, class.mime.as_str(), class.bytes), (Modality::Image, "image/gif", 18 + 18));
    assert_eq!(last_text(&parts), Some("well?"));
    let text = classify(&request(vec![Part::user("hi")]), Language::Detect).unwrap();
    assert_eq!((text.modality, text.task, text.mime.as_str()), (Modality::Text, Task::Chat, "text/plain"));
    let asked = vec![media(Modality::Image, "image/png", &png(1, 1, 64)), Part::user("What is it?")];
    assert_eq!(classify(&request(asked.clone()), Language::Skip).unwrap().task, Task::Chat, "a question is answered");
    let session = Some(protocol::token::SessionId::parse("s").unwrap());
    let told = Request { session, ..request(asked[..1].to_vec()) };
    assert_eq!(classify(&told, Language::Skip).unwrap().task, Task::Chat, "a conversation goes on");
}

/// The worst that a body of the greatest size can ask of the readers.
#[test]
fn hostile_headers_take_bounded_time() {
    const BODY: usize = protocol::request::BODY_BYTES_MAX;
    let fill = |start: &[u8], unit: &[u8]| {
        let mut data = start.to_vec();
        data.extend(unit.iter().copied().cycle().take(BODY - start.len()));
        data
    };
    let cases = [
        (Modality::Image, "image/jpeg", fill(b"\xff\xd8", b"\xff\xe0\0\x02")),
        (Modality::Audio, "audio/wav", fill(b"RIFF\0\0\0\0WAVE", b"junk\0\0\0\0")),
        (Modality::Audio, "audio/m4a", fill(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42", b"\0\0\0\x08free")),
        (Modality::Audio, "audio/m4a", fill(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42", b"\0\0\0\x10moov\0\0\0\x08trak")),
        (Modality::Audio, "audio/flac", fill(b"fLaC", b"\x01\0\0\0")),
        (Modality::Audio, "audio/mpeg", fill(b"\xff\xfb\x90\x64", b"\xff\xfb\x90\x64")),
        (Modality::Audio, "audio/mpeg", fill(b"ID3\x04\0\0\0\0\0\0", b"\xff\xe0\0\0")),
        (
            Modality::Audio,
            "audio/ogg",
            fill(b"OggS\0\x02\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01\x08OpusHead", b"OggS"),
        ),
        (
            Modality::Audio,
            "audio/ogg",
            fill(b"", b"OggS\0\x02\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01\x08OpusHead"),
        ),
    ];
    for (modality, mime, data) in cases {
        let begun = Instant::now();
        let _ = classify(&request(vec![media(modality, mime, &data)]), Language::Skip);
        let took = begun.elapsed();
        assert!(took.as_secs_f64() < 2.0, "{mime} {:02x?}: {took:?}", &data[..16]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(which in 0usize..10, tail in prop::collection::vec(any::<u8>(), 0..600)) {
        let (modality, mime, start) = samples().swap_remove(which);
        let data = [&start[..start.len().min(12)], &tail].concat();
        let _ = classify(&request(vec![media(modality, mime, &data)]), Language::Skip);
    }

    #[test]
    fn mutated_files_never_panic(
        which in 0usize..10,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let (modality, mime, mut data) = samples().swap_remove(which);
        for (at, byte) in changes {
            let at = at.index(data.len());
            data[at] = byte;
        }
        let _ = classify(&request(vec![media(modality, mime, &data)]), Language::Skip);
        data.truncate(cut.index(data.len() + 1));
        let _ = classify(&request(vec![media(modality, mime, &data)]), Language::Skip);
    }

    #[test]
    fn any_text_has_a_language_or_none(text in ".{0,600}") {
        let class = classify(&request(vec![Part::user(text.clone())]), Language::Detect).unwrap();
        prop_assert_eq!(class.bytes, text.len());
    }
}
