//! What the client of a delivery hears: chunks as they come, and the final frames once the record stands. Straight to
//! its inbox, in order; one walk owns one reply.

use std::pin::pin;
use std::task::Poll;

use protocol::answer::{Answer, CacheOutcome, Streamed};
use protocol::job::Job;
use protocol::record::{End, Record};
use protocol::reply::{self, ChunkOf, Frame};
use protocol::request::{Mode, Task};
use protocol::subject;
use runtime::{Bus, bus};

/// Whether the connection keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It does: a chunk a step.
    Flowing,
    /// It does not: what came meanwhile goes as one chunk.
    BackedUp,
}

/// What a client was told in this attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Begun,
}

/// The reply to one delivery.
#[derive(Debug)]
pub struct Reply<'a> {
    bus: &'a Bus,
    job: &'a Job,
    to: Option<&'a str>,
    attempt: u32,
    told: Told,
    seq: u64,
    text: String,
}

impl<'a> Reply<'a> {
    /// A reply of which nothing is said yet.
    #[must_use]
    pub fn new(bus: &'a Bus, job: &'a Job, attempt: u32) -> Self {
        // Checked at the door, and here again: it is this process that would publish there.
        let to = job.reply_to.as_deref().filter(|to| subject::check_reply_to(to).is_ok());
        Self { bus, job, to, attempt, told: Told::Nothing, seq: 0, text: String::new() }
    }

    /// The text so far.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the client hears it as it comes. Of a pipeline, only the last job speaks: see [`protocol::pipeline`].
    fn streams(&self) -> bool {
        self.job.mode == Mode::Stream && !self.job.is_step()
    }

    /// The attempt begins, with what the steps before gave.
    pub async fn accepted(&mut self) {
        if self.streams() {
            self.told = Told::Begun;
            if let Some(frame) = reply::accepted(&self.job.id, self.attempt, self.job.format) {
                self.send(frame).await;
            }
            for given in self.job.given() {
                let frame = reply::given(&self.of(), given, self.job.format);
                self.seq += 1;
                self.send(frame).await;
            }
        }
    }

    /// More of the answer.
    pub async fn chunk(&mut self, text: String) -> Pace {
        self.text.push_str(&text);
        if !self.streams() || text.is_empty() {
            return Pace::Flowing;
        }
        let frame = reply::chunk(&self.of(), text, self.job.format);
        self.seq += 1;
        self.send(frame).await
    }

    fn of(&self) -> ChunkOf<'a> {
        ChunkOf {
            job: &self.job.id,
            model: &self.job.model,
            kind: if self.job.task == Task::Transcribe { Streamed::Transcript } else { Streamed::Text },
            attempt: self.attempt,
            seq: self.seq,
            cache: CacheOutcome::Miss,
        }
    }

    /// The end, as the record has it. `above` is the attempt to say it under where others may have spoken too.
    pub async fn finish(&mut self, record: &Record, above: Option<u32>) {
        for frame in self.last_frames(record, above) {
            self.send(frame).await;
        }
    }

    fn last_frames(&self, record: &Record, above: Option<u32>) -> Vec<Frame> {
        let (id, format) = (Some(&self.job.id), self.job.format);
        match (&record.end, self.job.mode) {
            (End::Done(answer), Mode::Whole) => vec![reply::whole(answer, format)],
            (End::Failed(refusal), Mode::Whole) => vec![reply::failed(id, refusal, format)],
            (End::Failed(refusal), Mode::Stream) => reply::stream_failed(id, refusal, format),
            (End::Done(answer), Mode::Stream) => self.last_of_stream(answer, above),
        }
    }

    /// The end mark where the client heard this very answer, and nothing after it; otherwise all of it, as an attempt
    /// of its own, since a new attempt means: discard what came before.
    fn last_of_stream(&self, answer: &Answer, above: Option<u32>) -> Vec<Frame> {
        match (above, self.told) {
            (Some(above), _) => reply::replay(answer, above, self.job.format),
            (None, Told::Begun) if self.text == answer.text() => reply::stream_done(answer, self.job.format),
            (None, Told::Begun) => reply::replay(answer, self.attempt + 1, self.job.format),
            (None, Told::Nothing) => reply::replay(answer, self.attempt, self.job.format),
        }
    }

    /// Publishes a frame. That nobody listens any more is no fault: the record stands.
    async fn send(&self, frame: Frame) -> Pace {
        let Some(to) = self.to else { return Pace::Flowing };
        let mut sending = pin!(bus::send(self.bus, to, frame));
        let (sent, pace) = match futures::poll!(sending.as_mut()) {
            Poll::Ready(sent) => (sent, Pace::Flowing),
            Poll::Pending => (sending.await, Pace::BackedUp),
        };
        if let Err(error) = sent {
            tracing::warn!(job = %self.job.id, %error, "a reply could not be sent");
        }
        pace
    }
}
