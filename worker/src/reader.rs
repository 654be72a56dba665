//! Prompts to what models read, beside the threads that talk to NATS, and never more media at once than there is memory
//! for: a file of some megabytes may be hours of sound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use media::{picture, sound};
use protocol::{ErrorCode, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::{Model, Prompt, Reading};

/// Texts longer than this are read on a thread of their own, so that others stream meanwhile.
const INLINE_BYTES: usize = 4 * 1024;
/// What the pictures of a job may have in all, in pictures of the greatest size: what is decoded one after another takes
/// no more memory, but as much longer.
const GREATEST_PICTURES: u64 = 4;
/// How long a place is held while there is no room: others cannot decode meanwhile, and what waits longer waits for a
/// whole clip, which another worker need not.
const ROOM_PATIENCE: Duration = Duration::from_secs(10);
/// What room is counted in.
const UNIT: u64 = 1024;

/// Memory for media: what is being decoded may take two thirds of it, what waits for its engine or is in it one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaBudget {
    /// Of memory.
    pub bytes: u64,
}

impl MediaBudget {
    /// Files that are decoded at once: two, if the greatest picture fits twice.
    #[must_use]
    pub fn places(self) -> usize {
        let greatest = picture::Limits::default().bytes();
        if self.decoding() >= 2 * greatest { 2 } else { 1 }
    }

    /// What fits of a picture.
    #[must_use]
    pub fn pictures(self) -> picture::Limits {
        picture::Limits::for_memory(self.decoding() / self.places() as u64)
    }

    /// Pixels of all pictures of a job.
    #[must_use]
    pub fn pixels_of_a_job(self) -> u64 {
        self.pictures().pixels * GREATEST_PICTURES
    }

    /// What fits of a sound.
    #[must_use]
    pub fn sounds(self) -> sound::Limits {
        sound::Limits::for_memory(self.room())
    }

    fn decoding(self) -> u64 {
        self.bytes - self.room()
    }

    /// What is read may take, until its job is over.
    #[must_use]
    pub fn room(self) -> u64 {
        self.bytes / 3
    }
}

/// Reads prompts.
#[derive(Clone, Debug)]
pub struct Reader {
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// In [`UNIT`]s.
    room_size: u32,
    /// See [`ROOM_PATIENCE`].
    patience: Duration,
}

/// Whether reading is to be given up: nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Gives it up.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody did.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who waits for what is read; asks for the stop when he goes, with it or without.
struct Waiting(Stop);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.ask();
    }
}

/// A prompt that was read.
#[derive(Debug)]
pub struct Read {
    /// As the model reads it.
    pub reading: Reading,
    /// The memory that it holds until its job is over.
    pub room: Option<OwnedSemaphorePermit>,
}

impl Reader {
    /// One that keeps within the budget.
    #[must_use]
    pub fn new(budget: MediaBudget) -> Self {
        let room_size = u32::try_from(budget.room() / UNIT).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            places: semaphore(budget.places()),
            room: semaphore(room_size as usize),
            room_size,
            patience: ROOM_PATIENCE,
        }
    }

    /// Reads a prompt for a model, waiting for a place to decode in and for room to keep the rest in. Who stops waiting
    /// takes nothing from others.
    pub async fn read(&self, model: &Model, prompt: Prompt) -> Result<Read, Refusal> {
        if !prompt.has_media() && prompt.bytes() <= INLINE_BYTES {
            return Ok(Read { reading: model.engine.read(&prompt, &Stop::default())?, room: None });
        }
        let place = match prompt.has_media() {
            true => Some(permit(&self.places, 1).await?),
            false => None,
        };
        let engine = Arc::clone(&model.engine);
        let waiting = Waiting(Stop::default());
        let stop = waiting.0.clone();
        // The place is the thread's own until it is done, whoever waits for it.
        let reading = tokio::task::spawn_blocking(move || engine.read(&prompt, &stop).map(|reading| (reading, place)));
        let failed = |_| Err(Refusal::new(ErrorCode::Internal, "reading the input failed"));
        let (reading, place) = reading.await.unwrap_or_else(failed)?;
        let room = match &place {
            // Who holds a place and waits for room keeps others from decoding more than there is room for.
            Some(_) => Some(self.room(&reading).await?),
            None => None,
        };
        Ok(Read { reading, room })
    }

    /// Room for what was read; a refusal that passes when there is none for long.
    async fn room(&self, reading: &Reading) -> Result<OwnedSemaphorePermit, Refusal> {
        let permit = tokio::time::timeout(self.patience, permit(&self.room, self.size(reading)));
        permit.await.unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Unavailable, "no memory for media is free")))
    }

    /// What is larger than all room has all of it.
    fn size(&self, reading: &Reading) -> u32 {
        let bytes = match reading {
            Reading::Tokens(_) => 0,
            Reading::Inputs { inputs, .. } => inputs.iter().map(bytes).sum::<usize>() as u64,
        };
        u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).min(self.room_size)
    }
}

async fn permit(semaphore: &Arc<Semaphore>, permits: u32) -> Result<OwnedSemaphorePermit, Refusal> {
    let permit = Arc::clone(semaphore).acquire_many_owned(permits).await;
    permit.map_err(|_| Refusal::new(ErrorCode::Unavailable, "the worker stops"))
}

fn bytes(input: &engine::encode::Input) -> usize {
    use engine::encode::Input::{Clip, Pixels, Tokens};
    match input {
        Tokens(tokens) => size_of_val(&tokens[..]),
        Pixels(pixels) => size_of_val(&pixels.numbers[..]),
        Clip(clip) => size_of_val(&clip.samples[..]),
    }
}

#[cfg(test)]
mod tests {
    use engine::encode::Words;
    use futures::poll;
    use protocol::media::Modality;

    use super::*;
    use crate::fake;

    fn sound(text: &'static [u8]) -> Prompt {
        Prompt::Sound { data: bytes::Bytes::from_static(text), language: None, words: Words::Untimed }
    }

    #[test]
    fn a_small_machine_decodes_less_at_once() {
        let of = |mib: u64| MediaBudget { bytes: mib << 20 };
        assert_eq!((of(64).places(), of(1024).places(), of(3072).places()), (1, 1, 2));
        assert!((3_500_000..4_000_000).contains(&of(64).pictures().pixels));
        assert_eq!(of(3072).pictures(), picture::Limits::default());
        assert_eq!((of(64).sounds().seconds, of(3072).sounds().seconds), (349, 4 * 60 * 60));
        for budget in [64, 256, 1024, 1400, 1536, 3072].map(of) {
            let decoding = budget.pictures().bytes().max(u64::from(budget.sounds().seconds) * sound::BYTES_A_SECOND);
            assert!(budget.places() as u64 * decoding + budget.room() <= budget.bytes, "{budget:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_decoded_waits_for_room_and_keeps_others_from_decoding() {
        // The fake's sound has a sample for each letter.
        let model = fake::encoder(Modality::Audio);
        let reader = Reader { room_size: 1, ..Reader::new(MediaBudget { bytes: 3 * UNIT }) };
        let long: &'static [u8] = vec![b'a'; 1024].leak();
        let first = reader.read(&model, sound(long)).await.unwrap();
        assert!(first.room.is_some());
        let second = tokio::spawn({
            let (reader, model) = (reader.clone(), model.clone());
            async move { reader.read(&model, sound(long)).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!second.is_finished(), "there is no room");
        let mut third = std::pin::pin!(reader.read(&model, sound(b"short")));
        assert!(poll!(third.as_mut()).is_pending(), "one place, which the second has");
        drop(first);
        assert!(second.await.unwrap().is_ok());
        assert!(third.await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_finds_no_room_for_long_lets_others_decode() {
        let model = fake::encoder(Modality::Audio);
        let reader = Reader::new(MediaBudget { bytes: 3 * UNIT });
        let reader = Reader { room_size: 1, patience: Duration::from_millis(10), ..reader };
        let long: &'static [u8] = vec![b'a'; 1024].leak();
        let _first = reader.read(&model, sound(long)).await.unwrap();
        assert_eq!(reader.read(&model, sound(long)).await.unwrap_err().code, ErrorCode::Unavailable);
        assert_eq!(reader.places.available_permits(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_read_leaves_its_place() {
        let model = fake::encoder(Modality::Audio);
        let reader = Reader::new(MediaBudget { bytes: 64 << 20 });
        for _ in 0..3 {
            assert_eq!(reader.read(&model, sound(b"bad")).await.unwrap_err().code, ErrorCode::InvalidRequest);
        }
        assert!(reader.read(&model, sound(b"good")).await.is_ok());
    }
}
