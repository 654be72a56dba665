//! Duration from the header of a sound.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use lofty::config::{GlobalOptions, ParseOptions, ParsingMode, apply_global_options};
use lofty::file::{AudioFile, FileType};
use lofty::probe::Probe;
use protocol::{ErrorCode, Refusal};

/// Most bytes that the reader may ask for at once, whatever a header claims.
const ALLOCATION_MAX: usize = 1024 * 1024;
/// Where a codec names itself in the first page of an OGG file.
const OGG_CODEC_WITHIN: usize = 64;

/// How long a sound is, where its header tells. `mime` is what sniffing said.
pub(super) fn duration(mime: &str, data: &[u8]) -> Result<Option<Duration>, Refusal> {
    if mime == "audio/wav" {
        return wav(data).map(Some).ok_or_else(|| unreadable(mime));
    }
    let kind = match mime {
        "audio/flac" => FileType::Flac,
        "audio/mpeg" => FileType::Mpeg,
        "audio/m4a" => FileType::Mp4,
        "audio/ogg" => match ogg_codec(data) {
            Some(kind) => kind,
            None => {
                return Err(Refusal::new(
                    ErrorCode::UnsupportedMedia,
                    "audio/ogg holds neither Opus, Vorbis nor Speex",
                ));
            }
        },
        _ => return Ok(None),
    };
    // The reader is not ours and the bytes are a stranger's: a panic in it must cost no more than this request.
    let read = catch_unwind(AssertUnwindSafe(|| read(kind, data)));
    match read.ok().flatten() {
        Some(duration) => Ok(Some(duration).filter(|duration| !duration.is_zero())),
        None => Err(unreadable(mime)),
    }
}

fn unreadable(mime: &str) -> Refusal {
    Refusal::invalid(format!("the header of the {mime} cannot be read"))
}

fn read(kind: FileType, data: &[u8]) -> Option<Duration> {
    // Per thread, and a few stores: cheaper than to remember whether this thread has it.
    apply_global_options(GlobalOptions::new().allocation_limit(ALLOCATION_MAX).use_custom_resolvers(false));
    let options = ParseOptions::new().read_tags(false).read_cover_art(false).parsing_mode(ParsingMode::BestAttempt);
    let file = Probe::with_file_type(Cursor::new(data), kind).options(options).read().ok()?;
    Some(file.properties().duration())
}

fn ogg_codec(data: &[u8]) -> Option<FileType> {
    let start = &data[..data.len().min(OGG_CODEC_WITHIN)];
    let holds = |name: &[u8]| start.windows(name.len()).any(|window| window == name);
    match () {
        () if holds(b"OpusHead") => Some(FileType::Opus),
        () if holds(b"\x01vorbis") => Some(FileType::Vorbis),
        () if holds(b"Speex   ") => Some(FileType::Speex),
        () => None,
    }
}

/// Bytes of sound over bytes a second. Writers to a pipe leave the length of the data open (zero or the greatest number),
/// so what is there counts, and never more.
fn wav(data: &[u8]) -> Option<Duration> {
    let mut at = 12;
    let mut bytes_a_second = None;
    while let Some(header) = data.get(at..at + 8) {
        let length = u32::from_le_bytes(header[4..8].try_into().ok()?) as usize;
        let rest = &data[at + 8..];
        match &header[..4] {
            b"fmt " => bytes_a_second = Some(u32::from_le_bytes(rest.get(8..12)?.try_into().ok()?)),
            b"data" => {
                let there = if length == 0 { rest.len() } else { length.min(rest.len()) };
                let rate = f64::from(bytes_a_second.filter(|&rate| rate > 0)?);
                return (there > 0).then(|| Duration::from_secs_f64(there as f64 / rate));
            }
            _ => {}
        }
        // Chunks are padded to an even length.
        at = at.checked_add(8)?.checked_add(length)?.checked_add(length % 2)?;
    }
    None
}
