//! Packets of Opus, which symphonia takes out of Ogg but does not decode.

use opus_decoder::OpusDecoder;
use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::packet::Packet;

use super::Shape;
use crate::Error;

/// What Opus decodes to.
const RATE: u32 = 48_000;
/// Frames of the longest packet, 120 ms.
const PACKET_FRAMES_MAX: usize = 5_760;
/// Where the identification header, RFC 7845 section 5.1, has the frames to be skipped at the start.
const PRE_SKIP: std::ops::Range<usize> = 10..12;
/// Where it has the mapping family: 0 is mono or stereo.
const FAMILY: usize = 18;

/// A stream's decoder.
pub(super) struct Opus {
    decoder: OpusDecoder,
    channels: usize,
    /// Frames still to be left out.
    skip: usize,
}

impl Opus {
    pub(super) fn new(parameters: &AudioCodecParameters) -> Result<Self, Error> {
        let head = parameters.extra_data.as_deref().unwrap_or_default();
        let (Some(skip), Some(&family)) = (head.get(PRE_SKIP), head.get(FAMILY)) else {
            return Err(Error::Malformed("the header of the Opus stream is too short".into()));
        };
        let channels = parameters.channels.as_ref().map_or(0, |channels| channels.count());
        if family != 0 || !(1..=2).contains(&channels) {
            return Err(Error::Unsupported(format!("Opus with {channels} channels; 1 and 2 are read")));
        }
        let decoder = OpusDecoder::new(RATE, channels)
            .map_err(|error| Error::Unsupported(format!("this kind of Opus is not read: {error}")))?;
        Ok(Self { decoder, channels, skip: usize::from(u16::from_le_bytes([skip[0], skip[1]])) })
    }

    /// As [`super::Codec::decode`].
    pub(super) fn decode(&mut self, packet: &Packet, samples: &mut Vec<f32>) -> Option<Shape> {
        samples.resize(PACKET_FRAMES_MAX * self.channels, 0.0);
        if packet.data.is_empty() {
            return None;
        }
        let frames = self.decoder.decode_float(&packet.data, samples, false).ok()?.min(PACKET_FRAMES_MAX);
        let surplus = usize::try_from(packet.trim_end.get()).unwrap_or(usize::MAX).min(frames);
        samples.truncate((frames - surplus) * self.channels);
        let skipped = self.skip.min(frames - surplus);
        self.skip -= skipped;
        samples.drain(..skipped * self.channels);
        Some(Shape { rate: RATE, channels: self.channels })
    }
}
