//! Sound as Whisper hears it: the logarithm of its energy in bands of the mel scale, a hundred frames a second.
//!
//! Frame for frame what OpenAI's and faster-whisper's extractors compute, a window at a time: only the loudest frame of
//! the whole clip must be known before.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// Samples a second.
pub const SAMPLE_RATE: usize = 16_000;
/// Samples from one frame to the next.
pub const HOP: usize = 160;
/// Frames a second.
pub const FRAMES_PER_SECOND: usize = SAMPLE_RATE / HOP;

/// Samples that a frame looks at.
const FRAME: usize = 400;
/// Frames that count as progress.
const FRAMES_A_BEAT: usize = 1000;
/// Zeros after the clip.
const TAIL: usize = HOP;
/// Energies below and above are those of silence and of broken samples.
const ENERGY: (f32, f32) = (1e-10, 1e20);
/// What lies further below the loudest frame, in powers of ten, is raised to this.
const RANGE: f32 = 8.0;
/// The mel scale is linear below this frequency, in hertz, and logarithmic above (Slaney's Auditory Toolbox).
const LINEAR_BELOW: f64 = 1000.0;
/// Hertz in a mel of the linear part.
const LINEAR_STEP: f64 = 200.0 / 3.0;
/// Mels of 8000 Hz, as the models' own filters were computed.
const MEL_MAX: f64 = 45.245_640_471_924_965;

/// The loudest energy of a clip, as a power of ten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loudest(f32);

/// Computes frames of bands.
#[derive(Clone)]
pub struct Mel {
    transform: Arc<dyn RealToComplex<f32>>,
    window: Vec<f32>,
    bands: Vec<Band>,
    frame: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    powers: Vec<f32>,
}

/// A triangular filter over a few bins of the spectrum.
#[derive(Clone, Debug)]
struct Band {
    first: usize,
    weights: Vec<f32>,
}

impl Mel {
    /// Filters for `bands` bands.
    #[must_use]
    pub fn new(bands: usize) -> Mel {
        let transform = RealFftPlanner::new().plan_fft_forward(FRAME);
        let turn = |index: usize| std::f64::consts::TAU * index as f64 / FRAME as f64;
        Mel {
            window: (0..FRAME).map(|index| (0.5 - 0.5 * turn(index).cos()) as f32).collect(),
            bands: filters(bands),
            frame: transform.make_input_vec(),
            spectrum: transform.make_output_vec(),
            scratch: transform.make_scratch_vec(),
            powers: vec![0.0; FRAME / 2 + 1],
            transform,
        }
    }

    /// Bands of a frame.
    #[must_use]
    pub fn bands(&self) -> usize {
        self.bands.len()
    }

    /// The loudest energy in any band of the clip. Counts some progress, as long clips take seconds.
    pub fn loudest(&mut self, samples: &[f32], progress: &AtomicU64) -> Loudest {
        let mut loudest = ENERGY.0;
        for frame in 0..=frames(samples) {
            if frame % FRAMES_A_BEAT == 0 {
                progress.fetch_add(1, Ordering::Relaxed);
            }
            self.analyse(samples, frame);
            loudest = self.bands.iter().map(|band| band.energy(&self.powers)).fold(loudest, f32::max);
        }
        Loudest(loudest.log10())
    }

    /// Appends these frames of the clip (frames, bands).
    pub fn compute(&mut self, samples: &[f32], frames: Range<usize>, loudest: Loudest, out: &mut Vec<f32>) {
        let floor = loudest.0 - RANGE;
        out.reserve(frames.len() * self.bands.len());
        for frame in frames {
            self.analyse(samples, frame);
            out.extend(self.bands.iter().map(|band| (band.energy(&self.powers).log10().max(floor) + 4.0) / 4.0));
        }
    }

    /// The powers of the frame around sample `frame * HOP`.
    fn analyse(&mut self, samples: &[f32], frame: usize) {
        let middle = frame * HOP;
        let first = middle.wrapping_sub(FRAME / 2);
        match samples.get(first..first.wrapping_add(FRAME)) {
            Some(whole) if middle >= FRAME / 2 => {
                for ((out, sample), window) in self.frame.iter_mut().zip(whole).zip(&self.window) {
                    *out = sample * window;
                }
            }
            _ => {
                for (index, (out, window)) in self.frame.iter_mut().zip(&self.window).enumerate() {
                    let at = (middle + index) as isize - (FRAME / 2) as isize;
                    *out = reflected(samples, at) * window;
                }
            }
        }
        self.transform
            .process_with_scratch(&mut self.frame, &mut self.spectrum, &mut self.scratch)
            .expect("the buffers are the transform's own");
        for (power, number) in self.powers.iter_mut().zip(&self.spectrum) {
            *power = number.norm_sqr();
        }
    }
}

impl Band {
    fn energy(&self, powers: &[f32]) -> f32 {
        let sum: f32 = self.weights.iter().zip(&powers[self.first..]).map(|(weight, power)| weight * power).sum();
        // In this order a NaN becomes silence.
        sum.max(ENERGY.0).min(ENERGY.1)
    }
}

/// Frames of a clip.
#[must_use]
pub fn frames(samples: &[f32]) -> usize {
    samples.len() / HOP
}

/// The sample at `at` of the clip and its tail, which lies between mirrors.
fn reflected(samples: &[f32], at: isize) -> f32 {
    let last = (samples.len() + TAIL - 1) as isize;
    let within = at.rem_euclid(2 * last);
    let at = within.min(2 * last - within) as usize;
    samples.get(at).copied().unwrap_or(0.0)
}

fn filters(bands: usize) -> Vec<Band> {
    let edge = |index: usize| hertz(MEL_MAX * index as f64 / (bands + 1) as f64);
    let bin = |index: usize| index as f64 * SAMPLE_RATE as f64 / FRAME as f64;
    let filter = |band: usize| {
        let (low, middle, high) = (edge(band), edge(band + 1), edge(band + 2));
        let weight = |index: usize| {
            let (rise, fall) = ((bin(index) - low) / (middle - low), (high - bin(index)) / (high - middle));
            (rise.min(fall).max(0.0) * 2.0 / (high - low)) as f32
        };
        let weights: Vec<f32> = (0..=FRAME / 2).map(weight).collect();
        let first = weights.iter().position(|weight| *weight > 0.0).unwrap_or(0);
        let end = weights.iter().rposition(|weight| *weight > 0.0).map_or(first, |last| last + 1);
        Band { first, weights: weights[first..end].to_vec() }
    };
    (0..bands).map(filter).collect()
}

fn hertz(mel: f64) -> f64 {
    let turn = LINEAR_BELOW / LINEAR_STEP;
    if mel < turn { LINEAR_STEP * mel } else { LINEAR_BELOW * ((6.4f64.ln() / 27.0) * (mel - turn)).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `tests/golden/mel.py`: faster-whisper's features of the same samples, every 7th frame.
    #[derive(serde::Deserialize)]
    struct Golden {
        samples: usize,
        frames: usize,
        step: usize,
        rows: Vec<Vec<f32>>,
    }

    /// A sweep with a hum, noise and a pause, from integers alone, so that Python makes the same.
    fn sound(samples: usize) -> Vec<f32> {
        let mut noise = 1u32;
        let sample = |index: usize| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let sweep = (index * index / 64 % 2048) as f32 / 1024.0 - 1.0;
            let hum = (index % 133) as f32 / 66.5 - 1.0;
            let hiss = (noise >> 16) as f32 / 32768.0 - 1.0;
            if (16_000..20_000).contains(&index) { 0.0 } else { 0.25 * sweep + 0.125 * hum + 0.01 * hiss }
        };
        (0..samples).map(sample).collect()
    }

    #[test]
    fn frames_are_those_of_faster_whisper() {
        let golden: Golden = serde_json::from_str(include_str!("../tests/golden/mel.json")).unwrap();
        let samples = sound(golden.samples);
        assert_eq!(frames(&samples) + 1, golden.frames);
        let mut mel = Mel::new(80);
        let loudest = mel.loudest(&samples, &AtomicU64::new(0));
        for (index, row) in golden.rows.iter().enumerate() {
            let mut ours = Vec::new();
            mel.compute(&samples, index * golden.step..index * golden.step + 1, loudest, &mut ours);
            for (band, (ours, theirs)) in ours.iter().zip(row).enumerate() {
                assert!((ours - theirs).abs() < 1e-4, "frame {} band {band}: {ours} {theirs}", index * golden.step);
            }
        }
    }

    #[test]
    fn hostile_samples_give_finite_frames() {
        let mut mel = Mel::new(80);
        for samples in [vec![], vec![0.5; 3], vec![f32::NAN; 1000], vec![f32::INFINITY; 1000], vec![f32::MAX; 1000]] {
            let loudest = mel.loudest(&samples, &AtomicU64::new(0));
            let mut out = Vec::new();
            mel.compute(&samples, 0..frames(&samples) + 1, loudest, &mut out);
            assert!(out.iter().all(|number| number.is_finite()), "{:?}", samples.first());
        }
    }

    #[test]
    fn a_window_in_the_middle_is_that_of_the_whole() {
        let samples = sound(48_000);
        let mut mel = Mel::new(80);
        let loudest = mel.loudest(&samples, &AtomicU64::new(0));
        let (mut whole, mut part) = (Vec::new(), Vec::new());
        mel.compute(&samples, 0..300, loudest, &mut whole);
        mel.compute(&samples, 120..170, loudest, &mut part);
        assert_eq!(part, whole[120 * 80..170 * 80]);
    }
}
