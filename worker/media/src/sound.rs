//! Sounds: WAV, FLAC, MP3, Ogg (Vorbis, Opus) and MP4 (AAC, ALAC) to one channel at 16 kHz.
//!
//! Channels are averaged, then resampled in the frequency domain, chunk by chunk. Only the result grows with the clip:
//! [`BYTES_A_SECOND`], 230 MB an hour.

mod opus;
mod sink;
mod tally;
mod vorbis;
mod wav;

use std::io::{Cursor, ErrorKind};
use std::sync::Arc;

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known::{CODEC_ID_OPUS, CODEC_ID_VORBIS};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Symphonia;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;

use crate::Error;
use crate::error::guarded;
use opus::Opus;
use sink::Sink;
use tally::Tally;

/// Samples a second of every decoded sound.
pub const SAMPLE_RATE: u32 = 16_000;
/// What a second of decoded sound takes.
pub const BYTES_A_SECOND: u64 = SAMPLE_RATE as u64 * 4;

/// What is decoded at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Seconds of sound; checked while decoding, whatever the header says.
    pub seconds: u32,
}

impl Default for Limits {
    /// What the dispatcher lets pass: 4 hours, 922 MB of samples.
    fn default() -> Self {
        Self { seconds: 4 * 60 * 60 }
    }
}

impl Limits {
    /// As long as `bytes` of memory can hold, and no longer than the default.
    #[must_use]
    pub fn for_memory(bytes: u64) -> Self {
        let seconds = u32::try_from(bytes / BYTES_A_SECOND).unwrap_or(u32::MAX);
        Self { seconds: seconds.min(Self::default().seconds) }
    }
}

/// One channel at [`SAMPLE_RATE`], mostly within -1 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Sound {
    /// At least one.
    pub samples: Arc<[f32]>,
}

impl Sound {
    /// Length.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(SAMPLE_RATE)
    }
}

/// Decodes a sound. One that ends too early is decoded as far as it goes; a length in a header is not believed.
///
/// # Errors
/// When the format is not read, nothing or little of it can be decoded, or a limit is passed.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Sound, Error> {
    decode_until(bytes, limits, &|| false)
}

/// As [`decode`], given up when `stop` says so, which is asked for every packet.
///
/// # Errors
/// As [`decode`], and [`Error::Stopped`].
pub fn decode_until(bytes: &[u8], limits: &Limits, stop: &dyn Fn() -> bool) -> Result<Sound, Error> {
    if bytes.is_empty() {
        return Err(Error::Malformed("the sound is empty".into()));
    }
    guarded("sound", || decode_unguarded(bytes, limits, stop))
}

fn decode_unguarded(bytes: &[u8], limits: &Limits, stop: &dyn Fn() -> bool) -> Result<Sound, Error> {
    let bytes = wav::closed(bytes);
    let source = MediaSourceStream::new(Box::new(Cursor::new(&bytes[..])), MediaSourceStreamOptions::default());
    let mut reader = symphonia::default::get_probe()
        .probe(&Hint::new(), source, FormatOptions::default(), MetadataOptions::default())
        .map_err(|error| match error {
            Symphonia::LimitError(what) => too_large(what),
            Symphonia::DecodeError(what) => Error::Malformed(format!("the sound cannot be read: {what}")),
            _ => Error::Unsupported("not a sound in WAV, FLAC, MP3, Ogg (Vorbis, Opus) or MP4 (AAC, ALAC)".into()),
        })?;
    let (track, parameters) = track(reader.as_ref())?;
    let mut codec = Codec::new(&parameters)?;
    let mut sink = Sink::new(limits);
    let mut samples = Vec::new();
    let mut tally = Tally::new(bytes.len());
    while let Some(packet) = next_packet(reader.as_mut())? {
        if stop() {
            return Err(Error::Stopped);
        }
        tally.read(packet.data.len(), sink.heard())?;
        if packet.track_id != track {
            tally.passed_over()?;
            continue;
        }
        match codec.decode(&packet, &mut samples)? {
            Some(shape) => sink.push(&samples, shape)?,
            None => tally.failed()?,
        }
    }
    tally.finish()?;
    sink.finish()
}

fn too_large(what: &str) -> Error {
    Error::TooLarge { what: "the sound's tables or tags are too large".into(), limit: what.into() }
}

/// The first track with sound.
fn track(reader: &dyn FormatReader) -> Result<(u32, AudioCodecParameters), Error> {
    let none = || Error::Unsupported("no track with sound".into());
    let track = reader.default_track(TrackType::Audio).ok_or_else(none)?;
    match &track.codec_params {
        Some(CodecParameters::Audio(parameters)) => Ok((track.id, parameters.clone())),
        _ => Err(none()),
    }
}

/// The next packet, or `None` at the end, however early it comes.
fn next_packet(reader: &mut dyn FormatReader) -> Result<Option<Packet>, Error> {
    match reader.next_packet() {
        Ok(packet) => Ok(packet),
        Err(Symphonia::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(Symphonia::ResetRequired) => Err(Error::Unsupported("several sounds in one file".into())),
        Err(Symphonia::LimitError(what)) => Err(too_large(what)),
        Err(error) => Err(Error::Malformed(format!("the sound cannot be read: {error}"))),
    }
}

/// Shape of decoded samples, which lie (frames, channels).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Frames a second.
    rate: u32,
    /// Samples a frame.
    channels: usize,
}

/// A decoder of packets.
enum Codec {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<Opus>),
}

impl Codec {
    fn new(parameters: &AudioCodecParameters) -> Result<Self, Error> {
        if parameters.codec == CODEC_ID_OPUS {
            return Opus::new(parameters).map(Box::new).map(Self::Opus);
        }
        if parameters.codec == CODEC_ID_VORBIS {
            vorbis::check(parameters.extra_data.as_deref().unwrap_or_default())?;
        }
        // What a header says of its packets would be allocated before there is one.
        let parameters = AudioCodecParameters { max_frames_per_packet: None, ..parameters.clone() };
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(&parameters, &AudioDecoderOptions::default())
            .map_err(|error| match error {
                Symphonia::DecodeError(what) => Error::Malformed(format!("the sound cannot be decoded: {what}")),
                error => Error::Unsupported(format!("this kind of sound is not read: {error}")),
            })?;
        Ok(Self::Symphonia(decoder))
    }

    /// Decodes a packet into `samples`; `None` when it cannot be decoded, which costs no more than itself.
    fn decode(&mut self, packet: &Packet, samples: &mut Vec<f32>) -> Result<Option<Shape>, Error> {
        let decoder = match self {
            Self::Symphonia(decoder) => decoder,
            Self::Opus(decoder) => return Ok(decoder.decode(packet, samples)),
        };
        match decoder.decode(packet) {
            Ok(decoded) => {
                let shape = Shape { rate: decoded.spec().rate(), channels: decoded.spec().channels().count() };
                decoded.copy_to_vec_interleaved(samples);
                Ok(Some(shape))
            }
            Err(Symphonia::DecodeError(_) | Symphonia::IoError(_)) => Ok(None),
            Err(Symphonia::ResetRequired) => Err(Error::Unsupported("several sounds in one file".into())),
            Err(error) => Err(Error::Unsupported(format!("this kind of sound is not read: {error}"))),
        }
    }
}
