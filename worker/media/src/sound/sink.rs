//! Where decoded samples go: averaged, resampled, counted against the limits, kept.

use std::sync::Arc;
use std::time::Duration;

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

use super::{Limits, SAMPLE_RATE, Shape, Sound};
use crate::Error;

/// Rates that are resampled: telephones to studios.
const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;
/// What a rate may be once it is reduced against [`SAMPLE_RATE`]; the oddest in use, 22254 Hz of old Macintoshes, is
/// below. Beyond, a chunk is long and of few factors, and each of its frames costs many times more.
const RATE_REDUCED_MAX: u32 = 12_000;
/// Channels that are averaged.
const CHANNELS_MAX: usize = 32;
/// Samples of all channels that are decoded for each second that is allowed: 96 kHz in stereo, 48 kHz in four channels.
/// What is allowed in seconds could otherwise be made to cost far more time than a sound does.
const DECODED_A_SECOND_MAX: u64 = 192_000;
/// Frames that are resampled at once, before rounding up to what the rates divide by.
const CHUNK_FRAMES: usize = 4_096;
/// Samples of a block of the result: beyond 32 MiB every allocation is given back to the system when it is freed, so
/// that moving the blocks into one piece does not hold the sound twice.
const BLOCK_SAMPLES: usize = 16 << 20;

/// Takes samples of any rate and number of channels.
pub(super) struct Sink {
    limits: Limits,
    /// Of the first packet; the others must agree.
    shape: Option<Shape>,
    /// Samples of all channels so far.
    decoded: u64,
    /// Frames so far.
    frames: u64,
    /// `None` where the rate is already right.
    resampling: Option<Resampling>,
    blocks: Blocks,
}

impl Sink {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            limits: *limits,
            shape: None,
            decoded: 0,
            frames: 0,
            resampling: None,
            blocks: Blocks { full: Vec::new(), last: Vec::new() },
        }
    }

    /// Takes `samples`, (frames, channels).
    ///
    /// # Errors
    /// When a limit is passed, or the shape is not the first one.
    pub(super) fn push(&mut self, samples: &[f32], shape: Shape) -> Result<(), Error> {
        self.accept(shape)?;
        let frames = samples.len() / shape.channels;
        self.decoded += samples.len() as u64;
        self.frames += frames as u64;
        self.check(shape)?;
        let share = 1.0 / shape.channels as f32;
        let sounds = |sample: f32| if sample.is_finite() { sample.clamp(-8.0, 8.0) } else { 0.0 };
        for frame in samples.chunks_exact(shape.channels) {
            let mean = sounds(frame.iter().sum::<f32>() * share);
            match &mut self.resampling {
                Some(resampling) => resampling.push(mean, &mut self.blocks),
                None => self.blocks.push(mean),
            }
        }
        Ok(())
    }

    /// How much of the sound is here.
    pub(super) fn heard(&self) -> Duration {
        let rate = self.shape.map_or(SAMPLE_RATE, |shape| shape.rate);
        Duration::from_secs(self.frames / u64::from(rate))
    }

    /// The sound.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn finish(mut self) -> Result<Sound, Error> {
        let Some(shape) = self.shape.filter(|_| self.frames > 0) else {
            return Err(Error::Malformed("there is no sound in it".into()));
        };
        let whole = (self.frames * u64::from(SAMPLE_RATE)).div_ceil(u64::from(shape.rate)) as usize;
        if let Some(mut resampling) = self.resampling.take() {
            resampling.flush(whole, &mut self.blocks);
        }
        Ok(Sound { samples: self.blocks.joined(whole) })
    }

    fn accept(&mut self, shape: Shape) -> Result<(), Error> {
        match self.shape {
            Some(first) if first == shape => return Ok(()),
            Some(first) => {
                return Err(Error::Unsupported(format!(
                    "a sound that changes from {} to {} channels, from {} to {} Hz",
                    first.channels, shape.channels, first.rate, shape.rate
                )));
            }
            None => {}
        }
        if !RATES.contains(&shape.rate) {
            return Err(Error::Unsupported(format!(
                "a sound of {} Hz; {} to {} Hz are read",
                shape.rate,
                RATES.start(),
                RATES.end()
            )));
        }
        if shape.rate / common_divisor(shape.rate, SAMPLE_RATE) > RATE_REDUCED_MAX {
            return Err(Error::Unsupported(format!("a sound of {} Hz, which is no rate in use", shape.rate)));
        }
        if shape.channels == 0 || shape.channels > CHANNELS_MAX {
            return Err(Error::TooLarge {
                what: format!("the sound has {} channels", shape.channels),
                limit: format!("1 to {CHANNELS_MAX}"),
            });
        }
        self.resampling = (shape.rate != SAMPLE_RATE).then(|| Resampling::new(shape.rate));
        self.shape = Some(shape);
        Ok(())
    }

    fn check(&self, shape: Shape) -> Result<(), Error> {
        let seconds = u64::from(self.limits.seconds);
        if self.frames > seconds * u64::from(shape.rate) {
            return Err(Error::TooLarge {
                what: "the sound is too long".into(),
                limit: format!("{seconds} seconds ({:.1} hours)", seconds as f64 / 3600.0),
            });
        }
        if self.decoded > seconds * DECODED_A_SECOND_MAX {
            return Err(Error::TooLarge {
                what: "the sound has too many samples".into(),
                limit: format!("{} in all channels", seconds * DECODED_A_SECOND_MAX),
            });
        }
        Ok(())
    }
}

fn common_divisor(left: u32, right: u32) -> u32 {
    if right == 0 { left } else { common_divisor(right, left % right) }
}

/// One channel to [`SAMPLE_RATE`].
struct Resampling {
    fft: Fft<f32>,
    /// What does not fill a chunk yet.
    input: Vec<f32>,
    chunk: usize,
    output: Vec<f32>,
    /// Samples of the resampler's delay that are still to be left out.
    delay: usize,
}

impl Resampling {
    fn new(rate: u32) -> Self {
        let window = WindowFunction::BlackmanHarris2;
        let (from, to) = (rate as usize, SAMPLE_RATE as usize);
        let fft = Fft::new_custom(from, to, CHUNK_FRAMES, 1, 1, window, FixedSync::Both)
            .expect("rates and chunk are above 0");
        let chunk = fft.input_frames_next();
        let output = vec![0.0; fft.output_frames_max()];
        Self { input: Vec::with_capacity(chunk), chunk, output, delay: fft.output_delay(), fft }
    }

    fn push(&mut self, sample: f32, blocks: &mut Blocks) {
        self.input.push(sample);
        if self.input.len() == self.chunk {
            self.resample(blocks);
        }
    }

    fn resample(&mut self, blocks: &mut Blocks) {
        let input = InterleavedSlice::new(&self.input, 1, self.chunk).expect("a chunk");
        let frames = self.output.len();
        let mut output = InterleavedSlice::new_mut(&mut self.output, 1, frames).expect("room for a chunk");
        let (_, frames) =
            self.fft.process_into_buffer(&input, &mut output, None).expect("buffers are as long as was asked");
        self.input.clear();
        let late = self.delay.min(frames);
        self.delay -= late;
        for &sample in &self.output[late..frames] {
            blocks.push(sample);
        }
    }

    /// Pushes silence until `whole` samples are out.
    fn flush(&mut self, whole: usize, blocks: &mut Blocks) {
        while blocks.len() < whole {
            self.input.resize(self.chunk, 0.0);
            self.resample(blocks);
        }
    }
}

/// Samples in pieces that need not move.
struct Blocks {
    /// Of [`BLOCK_SAMPLES`] each.
    full: Vec<Vec<f32>>,
    last: Vec<f32>,
}

impl Blocks {
    fn push(&mut self, sample: f32) {
        if self.last.len() == BLOCK_SAMPLES {
            self.full.push(std::mem::take(&mut self.last));
        }
        self.last.push(sample);
    }

    fn len(&self) -> usize {
        self.full.len() * BLOCK_SAMPLES + self.last.len()
    }

    /// The first `count` samples in one piece; each block is freed once it is copied.
    fn joined(self, count: usize) -> Arc<[f32]> {
        let count = count.min(self.len());
        let mut blocks = self.full.into_iter().chain(std::iter::once(self.last));
        let mut block = Vec::new().into_iter();
        // A range's length is known, so that it is collected in place.
        (0..count)
            .map(|_| {
                loop {
                    if let Some(sample) = block.next() {
                        break sample;
                    }
                    block = blocks.next().expect("count is within the blocks").into_iter();
                }
            })
            .collect()
    }
}
