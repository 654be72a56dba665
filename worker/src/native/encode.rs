//! The engine of encoders behind the worker's seam, with what makes inputs of texts, pictures and sounds.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use engine::encode::{self, Clip, Input, Picturing, Pixels, Resizing};
use engine::engine as native;
use engine::tensors::Tensors;
use engine::text::{Encoded, Excess, TEXT_BYTES_MAX, TextEncoder};
use media::picture::{self, Filter, Framing, Picture};
use media::sound;
use protocol::answer::Usage;
use protocol::media::Modality;
use protocol::{ErrorCode, Refusal};
use tokio::sync::mpsc::UnboundedSender;

use super::routes::Routes;
use super::{cancel, refusal};
use crate::error::Error;
use crate::model::{Ask, Cancel, End, Engine, Event, Life, Long, Prompt, Reading, Stats, Work};
use crate::reader::{MediaBudget, Stop};

/// A pixel as a model sees it: three numbers.
const PIXEL_BYTES: u64 = 3 * size_of::<f32>() as u64;

/// What an encoder reads.
pub(super) struct Senses {
    /// Texts to tokens, and the most tokens of a text.
    texts: Option<(Arc<TextEncoder>, usize)>,
    /// How it wants its pictures.
    pictures: Option<Framing>,
    /// Memory for media.
    budget: MediaBudget,
}

impl Senses {
    /// What the model in the file at `path` reads, up to `context` tokens of a text.
    pub(super) fn of(
        path: &Path,
        modality: Modality,
        texts: Option<(Arc<TextEncoder>, usize)>,
        budget: MediaBudget,
    ) -> Result<Self, Error> {
        let pictures = match modality {
            Modality::Image => {
                let tensors = Tensors::open(path)?;
                Some(framing(&Picturing::read(&tensors)?))
            }
            Modality::Text | Modality::Audio => None,
        };
        Ok(Self { texts, pictures, budget })
    }

    fn text(&self, text: &str, long: Long) -> Result<Vec<engine::plan::TokenId>, Refusal> {
        let Some((encoder, limit)) = &self.texts else { return Err(Refusal::invalid("the model reads no text")) };
        let excess = match long {
            Long::Refused => Excess::Refuse,
            Long::Cut => Excess::Cut,
        };
        let unread =
            |error: engine::Error| Refusal::new(ErrorCode::Internal, format!("tokenizer: {:.200}", error.to_string()));
        let most = match encoder.encode(text, *limit, excess).map_err(unread)? {
            Encoded::Whole(tokens) | Encoded::Cut(tokens) => return Ok(tokens),
            Encoded::TooLong => format!("more than {limit} tokens, which is what the model reads"),
            Encoded::TooLarge => format!("more than {TEXT_BYTES_MAX} bytes, which is what is read of a text"),
        };
        Err(Refusal::new(ErrorCode::ContextTooLong, format!("{most}: params.truncate cuts the end off")))
    }

    fn texts(&self, texts: &[String], long: Long, stop: &Stop) -> Result<Reading, Refusal> {
        let mut inputs = Vec::with_capacity(texts.len());
        let mut usage = Usage::default();
        for (number, text) in texts.iter().enumerate() {
            go_on(stop)?;
            let tokens = self.text(text, long).map_err(|refusal| numbered("text", number, texts.len(), refusal))?;
            usage.input_tokens += tokens.len() as u64;
            inputs.push(Input::Tokens(tokens));
        }
        Ok(Reading::Inputs { inputs, usage })
    }

    fn pictures(&self, pictures: &[Bytes], texts: &[String], stop: &Stop) -> Result<Reading, Refusal> {
        let Some(framing) = &self.pictures else { return Err(Refusal::invalid("the model sees no pictures")) };
        self.check_framed(pictures.len(), framing)?;
        let mut pixels = 0;
        let mut inputs = Vec::with_capacity(pictures.len() + texts.len());
        for (number, data) in pictures.iter().enumerate() {
            let picture = self.picture(data, &mut pixels, stop);
            let picture = picture.map_err(|refusal| numbered("picture", number, pictures.len(), refusal))?;
            let side = framing.crop as usize;
            inputs.push(Input::Pixels(Pixels { height: side, width: side, numbers: picture.framed(framing) }));
        }
        let mut usage = Usage { images: pictures.len() as u64, ..Usage::default() };
        for (number, text) in texts.iter().enumerate() {
            go_on(stop)?;
            let tokens = self.text(text, Long::Refused).map_err(|refusal| match refusal.code {
                ErrorCode::ContextTooLong => numbered("label", number, texts.len(), long_label(refusal)),
                _ => refusal,
            })?;
            usage.input_tokens += tokens.len() as u64;
            inputs.push(Input::Tokens(tokens));
        }
        Ok(Reading::Inputs { inputs, usage })
    }

    /// What the model sees of all pictures is held at once, until their job is over.
    fn check_framed(&self, pictures: usize, framing: &Framing) -> Result<(), Refusal> {
        let crop = u64::from(framing.crop);
        let bytes = crop * crop * PIXEL_BYTES;
        let limit = self.budget.room();
        if bytes.saturating_mul(pictures as u64) <= limit {
            return Ok(());
        }
        let message =
            format!("{pictures} pictures of {bytes} bytes each, as the model sees them; the limit is {limit}");
        Err(Refusal::new(ErrorCode::TooLarge, message))
    }

    /// A picture of a job of which so many pixels were decoded before.
    fn picture(&self, data: &[u8], pixels: &mut u64, stop: &Stop) -> Result<Picture, Refusal> {
        go_on(stop)?;
        let picture = picture::decode(data, &self.budget.pictures()).map_err(|error| unreadable(&error))?;
        *pixels += u64::from(picture.width) * u64::from(picture.height);
        let limit = self.budget.pixels_of_a_job();
        if *pixels > limit {
            let message = format!("{pixels} pixels with those before it; the limit of a job is {limit}");
            return Err(Refusal::new(ErrorCode::TooLarge, message));
        }
        Ok(picture)
    }

    fn sound(
        &self,
        data: &[u8],
        language: Option<&String>,
        words: encode::Words,
        stop: &Stop,
    ) -> Result<Reading, Refusal> {
        let sound = sound::decode_until(data, &self.budget.sounds(), &|| stop.is_asked());
        let sound = sound.map_err(|error| unreadable(&error))?;
        let usage = Usage { audio_ms: (sound.seconds() * 1000.0).round() as u64, ..Usage::default() };
        let clip = Clip { samples: sound.samples, language: language.cloned(), words };
        Ok(Reading::Inputs { inputs: vec![Input::Clip(clip)], usage })
    }
}

pub(super) fn framing(picturing: &Picturing) -> Framing {
    Framing {
        shorter: picturing.resize,
        crop: picturing.size,
        filter: match picturing.filter {
            Resizing::Bilinear => Filter::Bilinear,
            Resizing::Bicubic => Filter::Bicubic,
        },
        mean: picturing.mean,
        deviation: picturing.std,
    }
}

/// Labels are never cut, whatever a job says of texts.
fn long_label(refusal: Refusal) -> Refusal {
    Refusal { message: "the label is longer than what the model reads: a shorter one is needed".to_owned(), ..refusal }
}

/// A refusal that nobody hears, once nobody waits.
fn go_on(stop: &Stop) -> Result<(), Refusal> {
    if stop.is_asked() { Err(unreadable(&media::Error::Stopped)) } else { Ok(()) }
}

/// Where there are several, which it was.
fn numbered(what: &str, number: usize, of: usize, refusal: Refusal) -> Refusal {
    match of {
        1 => refusal,
        _ => Refusal { message: format!("{what} {} of {of}: {}", number + 1, refusal.message), ..refusal },
    }
}

/// As the door says of what it finds in a header: an unknown format is no media of ours, a broken file a bad request.
fn unreadable(error: &media::Error) -> Refusal {
    let code = match error {
        media::Error::Unsupported(_) => ErrorCode::UnsupportedMedia,
        media::Error::Malformed(_) => ErrorCode::InvalidRequest,
        media::Error::TooLarge { .. } => ErrorCode::TooLarge,
        // Nobody hears of it.
        media::Error::Stopped => ErrorCode::Cancelled,
    };
    Refusal::new(code, format!("{:.300}", error.to_string()))
}

/// An encoder in its engine.
pub(super) struct Encoder {
    engine: encode::Engine,
    senses: Senses,
    routes: Routes,
}

impl Encoder {
    pub(super) fn start(encoder: Box<dyn encode::Encoder>, senses: Senses, jobs_max: usize) -> Result<Self, Error> {
        let routes = Routes::default();
        let engine = encode::Engine::start(encoder, jobs_max, Box::new(routes.outbox(told)))?;
        Ok(Self { engine, senses, routes })
    }
}

impl Engine for Encoder {
    fn read(&self, prompt: &Prompt, stop: &Stop) -> Result<Reading, Refusal> {
        match prompt {
            Prompt::Chat(_) | Prompt::Text(_) => Err(Refusal::invalid("the model writes no text")),
            Prompt::Texts { texts, long } => self.senses.texts(texts, *long, stop),
            Prompt::Pictures { pictures, texts } => self.senses.pictures(pictures, texts, stop),
            Prompt::Sound { data, language, words } => self.senses.sound(data, language.as_ref(), *words, stop),
        }
    }

    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal> {
        let Ask::Encode(inputs) = work.ask else {
            return Err(Refusal::new(ErrorCode::Internal, "a prompt of a decoder for an encoder"));
        };
        self.routes.open(work.key, events);
        let job = encode::Job { key: native::JobKey(work.key), inputs, deadline: Some(work.deadline) };
        self.engine.submit(job).map_err(|error| {
            self.routes.close(work.key);
            refusal(&error)
        })
    }

    fn cancel(&self, key: u64, why: Cancel) {
        self.engine.cancel(native::JobKey(key), cancel(why));
    }

    fn stats(&self) -> Stats {
        let stats = self.engine.stats();
        Stats {
            progress: self.engine.progress(),
            jobs: stats.jobs,
            step: stats.last_batch,
            life: if self.engine.is_alive() { Life::Running } else { Life::Ended },
        }
    }

    fn stop(&self) {
        self.engine.clone().stop();
    }
}

/// What a walk hears of it.
fn told(event: encode::Event) -> Option<(native::JobKey, Event)> {
    match event {
        encode::Event::Started { .. } => None,
        encode::Event::Chunk { key, text } => Some((key, Event::Chunk(text))),
        encode::Event::Ended { key, end } => Some((key, Event::Ended(ended(end)))),
    }
}

fn ended(end: encode::End) -> End {
    match end {
        encode::End::Done(outputs) => End::Encoded(outputs),
        encode::End::Cancelled => End::Cancelled,
        encode::End::Deadline => End::Deadline,
        encode::End::Stopped => End::Stopped,
        encode::End::Refused(why) => End::Refused(why),
        encode::End::Failed(why) => End::Failed(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eye() -> Senses {
        let framing = Framing { shorter: 8, crop: 4, filter: Filter::Bicubic, mean: [0.5; 3], deviation: [0.5; 3] };
        Senses { texts: None, pictures: Some(framing), budget: MediaBudget { bytes: 64 << 20 } }
    }

    fn wav(samples: u32) -> Vec<u8> {
        let data = samples * 2;
        let mut file = b"RIFF".to_vec();
        file.extend((36 + data).to_le_bytes());
        file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
        file.extend(16_000_u32.to_le_bytes());
        file.extend(32_000_u32.to_le_bytes());
        file.extend(b"\x02\0\x10\0data");
        file.extend(data.to_le_bytes());
        file.resize(file.len() + data as usize, 0);
        file
    }

    /// A GIF of one pixel.
    const GIF: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

    #[test]
    fn pictures_become_pixels_and_what_is_none_is_named() {
        let good = Bytes::from_static(GIF);
        let Ok(Reading::Inputs { inputs, usage }) = eye().pictures(std::slice::from_ref(&good), &[], &Stop::default())
        else {
            panic!("a picture")
        };
        let [Input::Pixels(Pixels { height: 4, width: 4, numbers })] = &inputs[..] else { panic!("{inputs:?}") };
        assert_eq!((numbers.len(), &numbers[..3], usage.images), (48, &[1.0, -1.0, -1.0][..], 1));
        let refusal = eye().pictures(&[good.clone(), good.slice(..20)], &[], &Stop::default()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidRequest, "{refusal}");
        assert!(refusal.message.starts_with("picture 2 of 2: "), "{refusal}");
        let refusal = eye().pictures(&[Bytes::from_static(b"no picture at all")], &[], &Stop::default()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::UnsupportedMedia, "{refusal}");
        let huge = [&b"GIF89a\xff\xff\xff\xff"[..], &GIF[10..]].concat();
        let refusal = eye().pictures(&[Bytes::from(huge)], &[], &Stop::default()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::TooLarge, "{refusal}");
        assert_eq!(
            eye().pictures(&[good], &["cat".to_owned()], &Stop::default()).unwrap_err().code,
            ErrorCode::InvalidRequest
        );
    }

    /// A picture of 8 by 8 pixels, which begins like [`GIF`] and has a table of colours only.
    fn gif_of_64() -> Bytes {
        Bytes::from([&b"GIF89a\x08\0\x08\0"[..], &GIF[10..]].concat())
    }

    #[test]
    fn the_pictures_of_a_job_have_a_limit_together() {
        let dot = Framing { shorter: 1, crop: 1, ..eye().pictures.unwrap() };
        let small = Senses { pictures: Some(dot), budget: MediaBudget { bytes: 4096 }, ..eye() };
        let limit = small.budget.pixels_of_a_job();
        let most = usize::try_from(limit / 64).unwrap();
        let pictures = vec![gif_of_64(); most + 1];
        assert!(small.pictures(&pictures[1..], &[], &Stop::default()).is_ok());
        let refusal = small.pictures(&pictures, &[], &Stop::default()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::TooLarge);
        assert!(refusal.message.contains(&format!("limit of a job is {limit}")), "{refusal}");
    }

    #[test]
    fn what_the_model_sees_of_all_pictures_has_a_limit() {
        let seen = 4 * 4 * PIXEL_BYTES;
        let small = Senses { budget: MediaBudget { bytes: 3 * 5 * seen }, ..eye() };
        let pictures = vec![Bytes::from_static(GIF); 6];
        assert!(small.pictures(&pictures[1..], &[], &Stop::default()).is_ok());
        let refusal = small.pictures(&pictures, &[], &Stop::default()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::TooLarge);
        assert!(refusal.message.contains(&format!("the limit is {}", 5 * seen)), "{refusal}");
    }

    #[test]
    fn what_nobody_waits_for_is_not_decoded() {
        let stop = Stop::default();
        stop.ask();
        let good = Bytes::from_static(GIF);
        assert_eq!(eye().pictures(&[good], &[], &stop).unwrap_err().code, ErrorCode::Cancelled);
        let refusal = eye().sound(&wav(8_000), None, encode::Words::Untimed, &stop).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Cancelled);
    }

    fn reader() -> Senses {
        let encoder = TextEncoder::parse(&engine::fixture::wordpiece()).unwrap();
        Senses { texts: Some((Arc::new(encoder), 8)), pictures: None, ..eye() }
    }

    #[test]
    fn a_text_that_is_too_long_names_the_limit_that_it_passes() {
        let read = |text: String, long| reader().texts(&[text], long, &Stop::default());
        for (text, limit) in
            [("a b c d e f g".to_owned(), "8 tokens"), (" ".repeat(TEXT_BYTES_MAX + 1), "1048576 bytes")]
        {
            let refusal = read(text.clone(), Long::Refused).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::ContextTooLong, "{refusal}");
            assert!(refusal.message.contains(limit), "{refusal}");
            assert!(read(text, Long::Cut).is_ok());
        }
    }

    #[test]
    fn texts_that_nobody_waits_for_are_not_read() {
        let stop = Stop::default();
        stop.ask();
        let texts = ["a".to_owned()];
        assert_eq!(reader().texts(&texts, Long::Refused, &stop).unwrap_err().code, ErrorCode::Cancelled);
        let both = Senses { pictures: eye().pictures, ..reader() };
        assert_eq!(both.pictures(&[], &texts, &stop).unwrap_err().code, ErrorCode::Cancelled);
    }

    #[test]
    fn a_sound_beyond_the_memory_for_it_names_the_limit() {
        let ear = Senses { budget: MediaBudget { bytes: 2 * 3 * sound::BYTES_A_SECOND }, ..eye() };
        let heard = ear.sound(&wav(8_000), None, encode::Words::Untimed, &Stop::default());
        let Ok(Reading::Inputs { usage, .. }) = heard else { panic!("{heard:?}") };
        assert_eq!(usage.audio_ms, 500);
        let refusal = ear.sound(&wav(3 * 16_000), None, encode::Words::Untimed, &Stop::default()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::TooLarge);
        assert!(refusal.message.contains("limit"), "{refusal}");
        let refusal = ear.sound(&wav(8_000)[..30], None, encode::Words::Untimed, &Stop::default()).unwrap_err();
        assert!(matches!(refusal.code, ErrorCode::InvalidRequest | ErrorCode::UnsupportedMedia), "{refusal}");
    }
}
