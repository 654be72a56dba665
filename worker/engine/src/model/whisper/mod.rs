//! Whisper: sound to text, a window of 30 seconds at a time.
//!
//! [`crate::mel`] makes frames of samples; the `tower` hears a window of them; `tell` has the `decoder` write it down
//! under the `rules`; `clip` cuts that into segments and goes on; `words` times each word.

mod clip;
mod config;
mod decoder;
mod hands;
mod layers;
mod parts;
mod rules;
mod tell;
mod tower;
mod vocabulary;
mod words;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clip::{Journey, Piece, Told};
use config::{Config, SOURCE_POSITIONS};
use decoder::{Decoder, Observed, Passage, Want};
use hands::Hands;
use rules::Rules;
use tell::{CANDIDATES, Task, Teller, Telling, decide};
use tower::{Tower, WINDOW_FRAMES, WINDOWS_AT_ONCE};
use vocabulary::{Language, Vocabulary};

use crate::Error;
use crate::backend::dense::Dense;
use crate::encode::{Budget, Clip, Cost, Encoder, Input, InputKey, Output, Turn, Wanted, Words};
use crate::mel::{FRAMES_PER_SECOND, HOP, SAMPLE_RATE};
use crate::plan::TokenId;
use crate::tensors::{CONFIG, TOKENIZER, Tensors};

/// Windows of a batch on a processor: more would hold memory for little speed.
const WINDOWS: usize = 8;
/// Samples of a window.
const WINDOW_SAMPLES: usize = WINDOW_FRAMES * HOP;
/// How long a first window waits for company: nothing beside what computing it takes.
const WAIT: Duration = Duration::from_millis(5);
/// Samples of a clip: four hours, what decoders of sound let pass at most.
const SAMPLES_MAX: usize = 4 * 3600 * SAMPLE_RATE;
/// Nothing louder than this, of 1, is silence: a step of 16-bit samples.
const SILENCE: f32 = 1.5 / 32768.0;

/// A Whisper model on its device.
pub struct Whisper<D: Dense> {
    device: D,
    config: Config,
    vocabulary: Vocabulary,
    rules: Rules,
    hands: Hands,
    tower: Tower<D>,
    decoder: Decoder<D>,
    clips: HashMap<InputKey, Journey>,
    progress: Arc<AtomicU64>,
}

/// A window of a batch.
struct Seat<'a> {
    /// The place in the batch.
    index: usize,
    /// Where the decoder keeps the window.
    slot: usize,
    key: InputKey,
    clip: &'a Clip,
    journey: Journey,
}

impl<D: Dense> Whisper<D> {
    /// Takes a model out of its file, whose weights have the names of their authors under `model.`.
    ///
    /// # Errors
    /// When the file lacks something, contradicts itself, or the device has no room.
    pub fn load(tensors: &Tensors, mut device: D) -> Result<Whisper<D>, Error> {
        let config = Config::parse(tensors.text(CONFIG)?)?;
        let vocabulary = Vocabulary::new(tensors.text(TOKENIZER)?, &config)?;
        Ok(Whisper {
            rules: Rules::new(&config, &vocabulary.controls),
            hands: Hands::beside(&device, config.num_mel_bins),
            tower: Tower::new(tensors, &config, &mut device)?,
            decoder: Decoder::new(tensors, &config, &mut device)?,
            clips: HashMap::new(),
            progress: Arc::default(),
            device,
            config,
            vocabulary,
        })
    }

    /// Numbers that a model computes in, of single precision: windows of a batch, their keys and values, what is said of
    /// them, and how each token looks at them.
    ///
    /// # Errors
    /// When the file lacks its configuration, or states nonsense.
    pub fn scratch(tensors: &Tensors) -> Result<usize, Error> {
        let config = Config::parse(tensors.text(CONFIG)?)?;
        let (width, context) = (config.d_model, config.max_target_positions);
        let (frames, heard) = (WINDOWS_AT_ONCE * WINDOW_FRAMES, WINDOWS_AT_ONCE * SOURCE_POSITIONS);
        let lanes = WINDOWS.max(CANDIDATES);
        let tower = frames * (4 * config.num_mel_bins + width) + heard * (9 * width + config.encoder_ffn_dim);
        let kept = config.decoder_layers * (WINDOWS * SOURCE_POSITIONS + lanes * context) * 2 * width;
        let rows = lanes * context * (7 * width + config.decoder_ffn_dim) + heard * 2 * width;
        let logits = 2 * lanes * (width + 2 * config.vocab_size);
        let seen = WINDOWS * config.alignment_heads.len() * (context / 2) * SOURCE_POSITIONS;
        Ok(tower + kept + rows + logits + seen)
    }

    /// ISO 639-1 codes of the languages that the model hears.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        self.vocabulary.languages().iter().map(|language| language.code.as_str())
    }

    /// What is remembered of clips, or what can be known before their first windows: a seat for each, by its place in
    /// the batch.
    fn board<'a>(&mut self, clips: &[(usize, InputKey, &'a Clip)]) -> Vec<Seat<'a>> {
        let mut boarded: Vec<(&Clip, Option<Journey>)> =
            clips.iter().map(|(_, key, clip)| (*clip, self.clips.remove(key))).collect();
        let (vocabulary, progress) = (&self.vocabulary, &self.progress);
        self.hands.each(&mut boarded, |mel, (clip, journey)| {
            journey.get_or_insert_with(|| {
                let known = clip.language.as_deref().and_then(|code| vocabulary.language(code));
                let language = match vocabulary.languages() {
                    [only] => Some(only.clone()),
                    _ => known.cloned(),
                };
                Journey::new(&clip.samples, mel.loudest(&clip.samples, progress), language)
            });
        });
        let seat = |((index, key, clip), (_, journey)): (&(usize, InputKey, &'a Clip), (&Clip, Option<Journey>))| {
            let journey = journey.expect("every clip was boarded");
            Seat { index: *index, slot: 0, key: *key, clip, journey }
        };
        clips.iter().zip(boarded).map(seat).collect()
    }

    /// What is remembered of clips is what was before a batch that came to nothing.
    fn go_back(&mut self, clips: &[(usize, InputKey, &Clip)], before: Vec<(InputKey, Journey)>) {
        for (_, key, _) in clips {
            self.clips.remove(key);
        }
        self.clips.extend(before);
    }

    /// Hears the windows, each in the slot of its seat, but no more once nobody wants them.
    fn hear(&mut self, seats: &[Seat<'_>], wanted: Wanted<'_>) -> Result<(), Error> {
        self.decoder.reserve(&mut self.device, seats.len().max(CANDIDATES), seats.len())?;
        let at_once = self.tower.windows();
        for (group, seats) in seats.chunks(at_once).enumerate() {
            if !seats.iter().any(|seat| wanted(seat.key)) {
                continue;
            }
            let mut windows: Vec<(&Seat<'_>, Vec<f32>)> = seats.iter().map(|seat| (seat, Vec::new())).collect();
            self.hands.each(&mut windows, |mel, (Seat { clip, journey, .. }, frames)| {
                let window = journey.seek..journey.seek + journey.window();
                mel.compute(&clip.samples, window, journey.loudest, frames);
                frames.resize(WINDOW_FRAMES * mel.bands(), 0.0);
            });
            let frames: Vec<&[f32]> = windows.iter().map(|(_, frames)| frames.as_slice()).collect();
            let sound = self.tower.listen(&mut self.device, &frames, &self.progress);
            let first = group * at_once;
            self.decoder.remember(&mut self.device, sound, first..first + seats.len(), &self.progress);
        }
        Ok(())
    }

    /// Finds out the languages that are not known.
    fn find_languages(&mut self, seats: &mut [Seat<'_>]) {
        let start = [self.vocabulary.controls.start];
        let unknown: Vec<usize> = (0..seats.len()).filter(|seat| seats[*seat].journey.language.is_none()).collect();
        if unknown.is_empty() {
            return;
        }
        let passage = |seat: &usize| Passage { lane: *seat, slot: seats[*seat].slot, position: 0, tokens: &start };
        let passages: Vec<Passage<'_>> = unknown.iter().map(passage).collect();
        let (rows, mut logits): (Vec<usize>, _) = ((0..unknown.len()).collect(), Vec::new());
        self.decoder.read(&mut self.device, &passages, Want::Logits(&rows, &mut logits), &self.progress);
        for (seat, logits) in unknown.into_iter().zip(logits.chunks_exact(self.config.vocab_size)) {
            let logit = |language: &&Language| language.id.map_or(f32::NEG_INFINITY, |id| logits[id as usize]);
            let likeliest = self.vocabulary.languages().iter().max_by(|a, b| logit(a).total_cmp(&logit(b)));
            seats[seat].journey.language = likeliest.cloned();
        }
    }

    /// Tells the windows once, and what those say whose text is known by that.
    fn tell(&mut self, seats: &mut [Seat<'_>], wanted: Wanted<'_>) -> Result<Vec<Option<Telling>>, Error> {
        let context = self.config.max_target_positions;
        let task = |seat: &Seat<'_>| {
            let prompt = seat.journey.prompt(&self.vocabulary.controls, guide_most(context));
            let start = prompt.iter().position(|token| *token == self.vocabulary.controls.start).unwrap_or(0);
            let (trial, seed) = (seat.journey.tried.len(), seat.journey.seek as u64);
            Task { key: seat.key, slot: seat.slot, trial, prompt, start, seed }
        };
        let tasks: Vec<Task> = seats.iter().map(task).collect();
        let mut teller = Teller {
            device: &mut self.device,
            decoder: &mut self.decoder,
            rules: &self.rules,
            vocabulary: &self.vocabulary,
            context,
            lanes: seats.len().max(CANDIDATES),
            hands: &mut self.hands,
            wanted,
            progress: &self.progress,
        };
        let told = teller.tell(&tasks)?;
        let settled = |(seat, telling): (&mut Seat<'_>, Option<Telling>)| {
            seat.journey.tried.push(telling?);
            decide(&mut seat.journey.tried)
        };
        Ok(seats.iter_mut().zip(told).map(settled).collect())
    }

    /// What becomes of the windows' clips, by their places in the batch.
    fn transcribe(&mut self, seats: Vec<Seat<'_>>, wanted: Wanted<'_>) -> Result<Vec<(usize, Turn)>, Error> {
        self.hear(&seats, wanted)?;
        let (mut seats, left): (Vec<_>, Vec<_>) = seats.into_iter().partition(|seat| wanted(seat.key));
        let mut turns: Vec<(usize, Turn)> = left.into_iter().map(|seat| self.wait(seat)).collect();
        self.find_languages(&mut seats);
        let tellings = self.tell(&mut seats, wanted)?;
        let cut = |(seat, telling): (&Seat<'_>, &Option<Telling>)| {
            let speech = telling.as_ref().filter(|telling| !telling.is_silence());
            speech.map(|telling| seat.journey.cut(&telling.tokens, &self.vocabulary.controls))
        };
        let mut told: Vec<Option<Told>> = seats.iter().zip(&tellings).map(cut).collect();
        self.time_words(&mut seats, &mut told)?;
        for ((seat, telling), told) in seats.into_iter().zip(tellings).zip(told) {
            turns.push(match telling {
                Some(telling) => self.turn(seat, telling, told),
                None => self.wait(seat),
            });
        }
        Ok(turns)
    }

    /// Times the words of the windows whose clips want it.
    fn time_words(&mut self, seats: &mut [Seat<'_>], told: &mut [Option<Told>]) -> Result<(), Error> {
        let controls = &self.vocabulary.controls;
        let (mut timed, mut texts, mut observed) = (Vec::new(), Vec::new(), Vec::new());
        for (place, (seat, told)) in seats.iter().zip(told.iter()).enumerate() {
            let Some(told) = told.as_ref().filter(|_| seat.clip.words == Words::Timed) else { continue };
            let said = told.pieces.iter().flat_map(|piece| &piece.tokens).copied();
            let text: Vec<TokenId> = said.filter(|token| *token < controls.end).collect();
            let beginning = seat.journey.beginning(controls);
            let before = beginning.len();
            let whole: Vec<TokenId> =
                beginning.into_iter().chain([controls.no_times]).chain(text.clone()).chain([controls.end]).collect();
            timed.push((place, before, text));
            texts.push(whole);
            observed.push(Observed { positions: seat.journey.window() / 2, weights: Vec::new() });
        }
        if timed.is_empty() {
            return Ok(());
        }
        let passage = |((place, ..), tokens): (&(usize, usize, Vec<TokenId>), _)| Passage {
            lane: *place,
            slot: seats[*place].slot,
            position: 0,
            tokens,
        };
        let passages: Vec<Passage<'_>> = timed.iter().zip(texts.iter().map(Vec::as_slice)).map(passage).collect();
        self.decoder.read(&mut self.device, &passages, Want::Attention(&mut observed), &self.progress);
        let mut walks: Vec<_> =
            timed.into_iter().zip(observed).map(|(timed, observed)| (timed, observed, Vec::new())).collect();
        self.hands.each(&mut walks, |_, ((_, before, text), observed, jumps)| {
            // Words placed by nothing would all be at one instant, and pieces of no length are dropped with their text.
            if !observed.weights.is_empty() {
                *jumps = words::jumps(std::mem::take(observed), *before, text.len());
            }
        });
        for ((place, _, text), _, jumps) in walks.into_iter().filter(|(.., jumps)| !jumps.is_empty()) {
            let (journey, told) = (&mut seats[place].journey, told[place].as_mut().expect("timed if told"));
            let language = journey.language.as_ref().map_or("", |language| &language.code);
            let words = self.vocabulary.words(&text, language)?;
            words::place(&mut told.pieces, &words, &jumps, journey.offset(), journey.last_end);
            follow_words(journey, told);
        }
        Ok(())
    }

    /// What becomes of a seat's clip.
    fn turn(&mut self, mut seat: Seat<'_>, telling: Telling, told: Option<Told>) -> (usize, Turn) {
        let mut new = String::new();
        match told {
            Some(told) => {
                let texts = told.pieces.iter().map(|piece| self.vocabulary.decode(&piece.tokens));
                let texts = match texts.collect::<Result<Vec<String>, Error>>() {
                    Ok(texts) => texts,
                    Err(error) => return (seat.index, Turn::Failed(error.to_string())),
                };
                new = seat.journey.take(told, texts, telling.temperature);
                seat.journey.shorten_guide(guide_most(self.config.max_target_positions));
            }
            None => seat.journey.skip(),
        }
        (seat.index, self.leave(seat.key, seat.clip, seat.journey, new))
    }

    /// The clip waits as it is for another batch.
    fn wait(&mut self, seat: Seat<'_>) -> (usize, Turn) {
        self.clips.insert(seat.key, seat.journey);
        (seat.index, Turn::More(String::new()))
    }

    /// Passes windows of silence by, and says how the clip goes on.
    fn leave(&mut self, key: InputKey, clip: &Clip, mut journey: Journey, new: String) -> Turn {
        pass_silence(&mut journey, clip);
        if journey.is_over() {
            return Turn::Done(Output::Transcript(journey.transcript(self.vocabulary.usual_language())));
        }
        self.clips.insert(key, journey);
        Turn::More(new)
    }
}

impl<D: Dense> Encoder for Whisper<D> {
    fn family(&self) -> &'static str {
        "whisper"
    }

    fn budget(&self) -> Budget {
        let windows = WINDOWS.max(self.tower.windows());
        Budget { units: windows * WINDOW_SAMPLES, inputs: windows, max_wait: WAIT }
    }

    fn cost(&self, input: &Input) -> Result<Cost, String> {
        let Input::Clip(clip) = input else { return Err("this model hears sound only".into()) };
        if clip.samples.len() > SAMPLES_MAX {
            return Err(format!("the clip is longer than {} minutes", SAMPLES_MAX / SAMPLE_RATE / 60));
        }
        match &clip.language {
            Some(code) if self.vocabulary.language(code).is_none() => {
                Err(format!("this model does not hear the language `{}`", code.escape_debug()))
            }
            _ => Ok(Cost { units: clip.samples.len().clamp(1, WINDOW_SAMPLES), kind: 0 }),
        }
    }

    fn count_progress(&mut self, progress: Arc<AtomicU64>) {
        self.progress = progress;
    }

    fn encode(&mut self, batch: &[(InputKey, &Input)], turns: &mut Vec<Turn>) -> Result<(), Error> {
        self.encode_while(&|_| true, batch, turns)
    }

    fn encode_while(
        &mut self,
        wanted: Wanted<'_>,
        batch: &[(InputKey, &Input)],
        turns: &mut Vec<Turn>,
    ) -> Result<(), Error> {
        let mut found: Vec<Option<Turn>> = vec![None; batch.len()];
        let mut clips = Vec::new();
        for (index, (key, input)) in batch.iter().enumerate() {
            match input {
                Input::Clip(clip) if wanted(*key) => clips.push((index, *key, clip)),
                Input::Clip(_) => found[index] = Some(Turn::More(String::new())),
                _ => found[index] = Some(Turn::Failed("this model hears sound only".into())),
            }
        }
        let before: Vec<(InputKey, Journey)> =
            clips.iter().filter_map(|(_, key, _)| Some((*key, self.clips.get(key)?.clone()))).collect();
        let mut seats = Vec::new();
        for mut seat in self.board(&clips) {
            pass_silence(&mut seat.journey, seat.clip);
            if seat.journey.is_over() {
                let transcript = seat.journey.transcript(self.vocabulary.usual_language());
                found[seat.index] = Some(Turn::Done(Output::Transcript(transcript)));
            } else {
                seats.push(Seat { slot: seats.len(), ..seat });
            }
        }
        if !seats.is_empty() {
            let turns = self.transcribe(seats, wanted);
            // What the device could not do is known only now, and is told before what it came to.
            match self.device.step_end().and(turns) {
                Ok(turns) => turns.into_iter().for_each(|(index, turn)| found[index] = Some(turn)),
                Err(error) => {
                    self.go_back(&clips, before);
                    return Err(error);
                }
            }
        }
        turns.extend(found.into_iter().map(|turn| turn.expect("every input of the batch has a turn")));
        Ok(())
    }

    fn forget(&mut self, key: InputKey) {
        self.clips.remove(&key);
    }
}

/// Tokens of what was said before that a prompt has room for.
fn guide_most(context: usize) -> usize {
    (context / 2).saturating_sub(1)
}

/// Goes on to the first window in which there is any sound.
fn pass_silence(journey: &mut Journey, clip: &Clip) {
    while !journey.is_over() {
        let first = journey.seek * HOP;
        let window = &clip.samples[first..first + journey.window() * HOP];
        if window.iter().any(|sample| sample.abs() > SILENCE) {
            break;
        }
        journey.skip();
    }
}

/// Goes on where the last word ends, unless the text ended where speech does.
fn follow_words(journey: &mut Journey, told: &mut Told) {
    let words = |piece: &Piece| piece.words.last().map(|word| word.end);
    let last = told.pieces.iter().rev().find_map(words).or(told.pieces.last().map(|piece| piece.end));
    let Some(last) = last else { return };
    if !told.complete && last > journey.offset() {
        told.next = (last * FRAMES_PER_SECOND as f64).round_ties_even() as usize;
    }
    journey.last_end = last;
}
