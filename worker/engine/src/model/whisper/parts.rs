//! The parts of a model by themselves, to compare and to measure with.

use super::{Observed, Passage, Seat, WINDOW_FRAMES, Want, Whisper};
use crate::Error;
use crate::backend::dense::Dense;
use crate::encode::{Clip, InputKey};
use crate::plan::TokenId;

impl<D: Dense> Whisper<D> {
    /// Logits of every clip's first window: after the tokens before the last, read at once, then after the last; and how
    /// all of these tokens look at the window.
    pub(crate) fn read(&mut self, clips: &[Clip], tokens: &[TokenId]) -> Result<(Vec<f32>, Vec<f32>), Error> {
        self.hear_first(clips)?;
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let last = tokens.len() - 1;
        for part in [0..last, last..tokens.len()] {
            let after: Vec<usize> = (1..=clips.len()).map(|clip| clip * part.len() - 1).collect();
            let passages: Vec<Passage<'_>> = (0..clips.len())
                .map(|lane| Passage { lane, slot: lane, position: part.start, tokens: &tokens[part.clone()] })
                .collect();
            self.decoder.read(&mut self.device, &passages, Want::Logits(&after, &mut some), &self.progress);
            all.extend_from_slice(&some);
        }
        let mut observed = vec![Observed { positions: WINDOW_FRAMES / 2, weights: Vec::new() }; clips.len()];
        let whole = |lane| Passage { lane, slot: lane, position: 0, tokens };
        let passages: Vec<Passage<'_>> = (0..clips.len()).map(whole).collect();
        self.decoder.read(&mut self.device, &passages, Want::Attention(&mut observed), &self.progress);
        Ok((all, observed.into_iter().flat_map(|observed| observed.weights).collect()))
    }

    /// Has the audio tower hear windows of frames so often; ends when it has.
    pub(crate) fn listen(&mut self, frames: &[f32], times: usize) -> Result<(), Error> {
        let windows: Vec<&[f32]> = frames.chunks_exact(WINDOW_FRAMES * self.config.num_mel_bins).collect();
        let mut first = self.device.buffer(1, self.config.d_model)?;
        for time in 1..=times {
            let sound = self.tower.listen(&mut self.device, &windows, &self.progress);
            if time == times {
                self.device.mean(sound, std::slice::from_ref(&(0..1)), &mut first);
            }
        }
        self.device.download(&first, &mut Vec::new());
        Ok(())
    }

    /// Hears every clip's first window.
    pub(crate) fn hear_first(&mut self, clips: &[Clip]) -> Result<(), Error> {
        let seats = self.seats(clips);
        self.hear(&seats, &|_| true)
    }

    /// Writes down greedily what it heard of the clips' first windows: so many tokens in all.
    pub(crate) fn write_first(&mut self, clips: &[Clip]) -> Result<usize, Error> {
        let mut seats = self.seats(clips);
        self.tell(&mut seats, &|_| true)?;
        Ok(seats.iter().flat_map(|seat| &seat.journey.tried).map(|telling| telling.tokens.len()).sum())
    }

    fn seats<'a>(&mut self, clips: &'a [Clip]) -> Vec<Seat<'a>> {
        let keyed: Vec<_> =
            clips.iter().enumerate().map(|(index, clip)| (index, InputKey(index as u64), clip)).collect();
        self.board(&keyed).into_iter().map(|seat| Seat { slot: seat.index, ..seat }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::hands::Hands;
    use super::*;
    use crate::backend::StepLimits;
    use crate::backend::cpu::Cpu;
    use crate::encode::{Encoder, Input, Turn};
    use crate::fixture::{WhisperShape, sound, whisper_bytes};
    use crate::simd::Level;
    use crate::tensors::Tensors;

    fn whisper(threads: usize) -> Whisper<Cpu> {
        let shape = WhisperShape { width: 32, inner: 64, layers: 1, heads: 2, vocabulary: 1600, context: 32 };
        let limits = StepLimits { rows: 1, outputs: 1, blocks: 1 };
        let tensors = Tensors::parse(whisper_bytes(5, shape)).unwrap();
        let mut whisper = Whisper::load(&tensors, Cpu::new(Level::detect(), 1, limits)).unwrap();
        whisper.hands = Hands::of(threads, 80);
        whisper
    }

    #[test]
    fn a_text_without_an_end_is_as_long_as_may_be() {
        let clips = [sound(1, 12), sound(2, 3)];
        let mut whisper = whisper(1);
        whisper.hear_first(&clips).unwrap();
        assert_eq!(whisper.write_first(&clips).unwrap(), 2 * 16);
    }

    #[test]
    fn many_hands_write_what_one_writes() {
        let clips: Vec<Input> = (0..5).map(|clip| Input::Clip(sound(clip, 2 * clip as usize))).collect();
        let batch: Vec<_> = clips.iter().enumerate().map(|(at, clip)| (InputKey(at as u64), clip)).collect();
        let told = [1, 3].map(|threads| {
            let (mut whisper, mut told) = (whisper(threads), Vec::new());
            // As often as a window may be told.
            for _ in 0..6 {
                let mut turns = Vec::new();
                whisper.encode(&batch, &mut turns).unwrap();
                told.push(turns);
            }
            told
        });
        assert!(told[0][5].iter().all(|turn| matches!(turn, Turn::Done(_))), "{:?}", told[0][5]);
        assert_eq!(told[0], told[1]);
    }
}
