//! A job as the queue handed it over, and what keeps it ours: its ack subject, and how long ago we showed progress.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, AckKind};
use async_nats::{Message, Subject};
use bytes::Bytes;
use protocol::job::{Job, Turn};
use protocol::stream::ACK_WAIT;
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, WIRE_VERSION};
use runtime::Bus;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// What the queue says of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Sequence in JOBS: the same for every delivery of a job.
    pub sequence: u64,
    /// Which delivery of the job this is, from 1.
    pub delivered: u32,
    /// Jobs that wait behind it in the lane.
    pub waiting: u64,
}

/// Where a delivery stands in its walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a slot.
    Held,
    /// It is looked at.
    Admitting,
    /// It is in the engine.
    Computing,
    /// Its end is written down.
    Settling,
}

/// A delivery in hand.
#[derive(Debug)]
pub struct Delivery {
    /// What the queue says of it.
    pub info: Info,
    /// Which of the worker's lanes it came from.
    pub lane: usize,
    /// Which of the worker's models its lane belongs to.
    pub model: usize,
    /// The job, or why it cannot be read.
    pub job: Result<Box<Job>, Unreadable>,
    /// The original bytes.
    pub body: Bytes,
    /// When it came.
    pub received: Instant,
    /// Somebody cancelled it.
    pub cancelled: CancellationToken,
    lease: Mutex<Lease>,
}

/// A job that cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Whose it is, as far as can be told.
    pub whose: Option<(Token, Token)>,
    /// Why.
    pub refusal: Refusal,
}

/// Whether this walk alone can have spoken to the client since the delivery came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voice {
    Ours,
    /// Another worker had the job, or may have had it. That is never over: what was said cannot be unsaid.
    Contested,
}

/// Written by the walk of the delivery and by the run loop on a repeat, read by the progress acks.
#[derive(Debug)]
struct Lease {
    ack: Subject,
    /// The newest delivery of the job that came here.
    delivered: u32,
    progress: Instant,
    voice: Voice,
    phase: Phase,
    turn: Option<Turn>,
}

impl Lease {
    fn new(ack: Subject, delivered: u32, turn: Option<Turn>) -> Self {
        Self { ack, delivered, progress: Instant::now(), voice: Voice::Ours, phase: Phase::Held, turn }
    }

    /// Whether the queue still counts the delivery as ours; that it did not is remembered.
    fn ours(&mut self, now: Instant) -> bool {
        let ours = now.duration_since(self.progress) < ACK_WAIT;
        if !ours {
            self.voice = Voice::Contested;
        }
        ours
    }

    /// The queue was told of progress. Of a lapsed lease it hears too late: that one stays lapsed.
    fn progressed(&mut self, told: Instant) {
        if self.ours(Instant::now()) {
            self.progress = told;
        }
    }

    /// The queue handed the job over once more, so it was not ours for a while.
    fn again(&mut self, ack: Subject, delivered: u32, now: Instant) {
        self.ack = ack;
        self.delivered = self.delivered.max(delivered);
        self.progress = now;
        self.voice = Voice::Contested;
    }

    /// An attempt above all that the queue can have begun, `age` after the delivery came; `None` while nobody else can
    /// have spoken.
    fn above(&mut self, age: Duration, now: Instant) -> Option<u32> {
        self.ours(now);
        let lapses = u32::try_from(age.as_secs() / ACK_WAIT.as_secs()).unwrap_or(u32::MAX);
        let attempt = self.delivered.saturating_sub(1);
        (self.voice == Voice::Contested).then(|| attempt.saturating_add(2).saturating_add(lapses))
    }
}

impl Delivery {
    /// Reads a message of a lane. `None` when it is none: without an ack subject nobody can be told anything.
    #[must_use]
    pub fn read(bus: &Bus, message: Message, (lane, model): (usize, usize)) -> Option<Delivery> {
        let ack = message.reply.clone()?;
        let message = jetstream::Message { message, context: bus.js.clone() };
        let info = message.info().ok().map(|info| Info {
            sequence: info.stream_sequence,
            delivered: u32::try_from(info.delivered).unwrap_or(u32::MAX),
            waiting: info.pending,
        })?;
        let job = read_job(&message);
        let turn = job.as_deref().ok().and_then(|job| job.session.clone());
        let lease = Lease::new(ack, info.delivered, turn);
        Some(Delivery {
            info,
            lane,
            model,
            job,
            body: message.payload.clone(),
            received: Instant::now(),
            cancelled: CancellationToken::new(),
            lease: Mutex::new(lease),
        })
    }

    /// Whose job it is, as far as can be told.
    #[must_use]
    pub fn whose(&self) -> Option<(&Token, &Token)> {
        match &self.job {
            Ok(job) => Some((&job.tenant, &job.id)),
            Err(unreadable) => unreadable.whose.as_ref().map(|(tenant, job)| (tenant, job)),
        }
    }

    /// Whose it is, and its name among all jobs: under it, deliveries are counted.
    #[must_use]
    pub fn name(&self) -> Option<(&Token, Token)> {
        match &self.job {
            Ok(job) => Some((&job.tenant, job.name())),
            Err(unreadable) => unreadable.whose.as_ref().map(|(tenant, job)| (tenant, job.clone())),
        }
    }

    /// What its answer is cached under, and others wait for meanwhile.
    #[must_use]
    pub fn cache_key(&self) -> Option<&str> {
        self.job.as_ref().ok()?.cache_key.as_deref()
    }

    /// Its place in a session, as it stands now.
    #[must_use]
    pub fn turn(&self) -> Option<Turn> {
        self.lease().turn.clone()
    }

    /// The session gave it another number.
    pub fn moved(&self, number: u64) {
        if let Some(turn) = &mut self.lease().turn {
            turn.number = number;
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lease().phase
    }

    /// It goes on to the next step.
    pub fn enter(&self, phase: Phase) {
        self.lease().phase = phase;
    }

    /// Whether the queue still counts it as ours, by our own clock: a process that was stopped for a while must not give
    /// back what is somebody else's by now.
    #[must_use]
    pub fn ours(&self) -> bool {
        self.lease().ours(Instant::now())
    }

    /// Where its end is said.
    #[must_use]
    pub fn ack_subject(&self) -> Subject {
        self.lease().ack.clone()
    }

    /// The queue handed it over once more: the newer delivery is the one to be acked.
    pub fn again(&self, newer: &Delivery) {
        let ack = newer.ack_subject();
        self.lease().again(ack, newer.info.delivered, Instant::now());
    }

    /// Somebody else ended the job.
    pub fn lost(&self) {
        self.lease().voice = Voice::Contested;
    }

    /// Where somebody else may have spoken to the client meanwhile: the attempt under which all of the answer is said
    /// once more, above every other.
    #[must_use]
    pub fn above(&self) -> Option<u32> {
        self.lease().above(self.received.elapsed(), Instant::now())
    }

    /// Tells the queue that it makes progress.
    pub async fn progress(&self, bus: &Bus) {
        let (ack, now) = (self.ack_subject(), Instant::now());
        if bus.client.publish(ack, AckKind::Progress.into()).await.is_ok() {
            self.lease().progressed(now);
        }
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What even a reader of an older version finds in a job.
#[derive(Deserialize)]
struct Label {
    version: u32,
    id: Token,
    tenant: Token,
}

fn read_job(message: &Message) -> Result<Box<Job>, Unreadable> {
    let refusal = match Job::decode(&message.payload) {
        Ok(job) => return Ok(Box::new(job)),
        Err(refusal) => refusal,
    };
    let Ok(label) = rmp_serde::from_slice::<Label>(&message.payload) else {
        return Err(Unreadable { whose: by_message_id(message), refusal });
    };
    let refusal = if label.version > WIRE_VERSION {
        // A newer worker can read it: it passes.
        Refusal::new(ErrorCode::Unavailable, "the job is of a newer wire version than this worker")
    } else {
        refusal
    };
    Err(Unreadable { whose: Some((label.tenant, label.id)), refusal })
}

/// The publisher names tenant and job in the message's id.
fn by_message_id(message: &Message) -> Option<(Token, Token)> {
    let id = message.headers.as_ref()?.get(async_nats::header::NATS_MESSAGE_ID)?;
    let (tenant, job) = id.as_str().split_once('/')?;
    // A step is its request's, whatever its number.
    let job = job.split_once('~').map_or(job, |(request, _)| request);
    Some((Token::parse("tenant", tenant).ok()?, Token::parse("job", job).ok()?))
}

/// Every delivery in hand, held or served. Written by the run loop and the end of a walk, read by the progress acks.
#[derive(Debug, Default)]
pub struct Hand(Mutex<HashMap<u64, Arc<Delivery>>>);

impl Hand {
    /// Takes a delivery in hand; `None` when its job is in hand already, which then answers for the newer delivery.
    pub fn take(&self, delivery: Delivery) -> Option<Arc<Delivery>> {
        let mut hand = self.lock();
        if let Some(older) = hand.get(&delivery.info.sequence) {
            older.again(&delivery);
            return None;
        }
        let delivery = Arc::new(delivery);
        hand.insert(delivery.info.sequence, Arc::clone(&delivery));
        Some(delivery)
    }

    /// It is out of our hands.
    pub fn release(&self, delivery: &Delivery) {
        self.lock().remove(&delivery.info.sequence);
    }

    /// All of them, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Delivery>> {
        self.lock().values().cloned().collect()
    }

    /// Somebody cancelled a job; how many deliveries of it were in hand.
    pub fn cancel(&self, tenant: &Token, job: &Token) -> usize {
        let hand = self.lock();
        let theirs = hand.values().filter(|delivery| delivery.whose() == Some((tenant, job)));
        theirs.map(|delivery| delivery.cancelled.cancel()).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Delivery>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(age: Duration) -> Lease {
        let came = Instant::now().checked_sub(age).unwrap();
        Lease { progress: came, ..Lease::new("ack".into(), 1, None) }
    }

    #[test]
    fn a_lease_that_is_kept_is_ours_alone() {
        let mut lease = lease(Duration::from_secs(7));
        lease.progressed(Instant::now());
        assert!(lease.ours(Instant::now() + Duration::from_secs(7)));
        assert_eq!(lease.above(Duration::from_secs(100), Instant::now()), None);
    }

    #[test]
    fn a_lapsed_lease_stays_contested() {
        let mut lapsed = lease(ACK_WAIT);
        lapsed.progressed(Instant::now());
        assert!(!lapsed.ours(Instant::now()), "progress comes too late");
        let now = Instant::now();
        lapsed.again("ack".into(), 3, now);
        assert!(lapsed.ours(now));
        assert_eq!(lapsed.above(ACK_WAIT * 2, now), Some(6), "above the third delivery and two more");
        assert_eq!(lease(ACK_WAIT).above(ACK_WAIT, Instant::now()), Some(3), "seen when it is asked for");
    }
}
