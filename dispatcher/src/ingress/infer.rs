//! The interactive doors and the control endpoints: core requests, shared by all dispatchers.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use futures::{FutureExt, StreamExt};
use protocol::media::Modality;
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, subject};
use runtime::bus::headers_in;
use runtime::clock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::service::{self, Counts, QUEUE_GROUP};
use super::{Door, Incoming, inbox, reply_to, trace};
use crate::Error;
use crate::answer::{self, Manner};
use crate::control::{self, Control};
use crate::metrics::{self, Labels, Outcome};
use crate::slots::{Place, Slots, Weight};
use crate::state::Dispatcher;
use crate::walk::{self, Verdict};

/// When a client that found no place at the door should come back.
const NO_PLACE_RETRY: Duration = Duration::from_millis(500);

/// What an endpoint does.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// Takes requests.
    Infer(Option<Modality>),
    /// Answers questions about jobs and sessions.
    Control(Control),
}

/// One endpoint, shared by its requests.
struct Desk {
    purpose: Purpose,
    counts: Arc<Counts>,
    dispatcher: Arc<Dispatcher>,
    slots: Slots,
    tasks: TaskTracker,
}

/// Every endpoint.
fn endpoints() -> Vec<(String, Purpose)> {
    let mut all = vec![(subject::INFER.to_owned(), Purpose::Infer(None))];
    all.extend(Modality::ALL.map(|modality| (subject::infer_of(modality), Purpose::Infer(Some(modality)))));
    let controls = [
        (subject::INFER_RESULT, Control::Result),
        (subject::INFER_CANCEL, Control::Cancel),
        (subject::SESSIONS_GET, Control::SessionGet),
        (subject::SESSIONS_FORGET, Control::SessionForget),
    ];
    all.extend(controls.map(|(subject, control)| (subject.to_owned(), Purpose::Control(control))));
    all
}

/// The doors, open. Requests run as tasks of `tasks`; at `stop` the doors close, and what is in is finished.
pub async fn open(
    dispatcher: &Arc<Dispatcher>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<impl Future<Output = Result<(), Error>> + Send + 'static, Error> {
    let client = dispatcher.bus.client.clone();
    let nats = |error: String| Error::Nats(error);
    let options = &dispatcher.options;
    let slots = Slots::new(options.in_flight_max, options.in_flight_bytes_max);
    let (mut doors, mut counted) = (Vec::new(), Vec::new());
    for (subject, purpose) in endpoints() {
        // Names of endpoints have no dots.
        let counts = Counts::new(subject.replace('.', "-"), subject.clone());
        let messages = client.queue_subscribe(subject, QUEUE_GROUP.to_owned()).await;
        counted.push(Arc::clone(&counts));
        let (dispatcher, slots, tasks) = (Arc::clone(dispatcher), slots.clone(), tasks.clone());
        let desk = Arc::new(Desk { purpose, counts, dispatcher, slots, tasks });
        doors.push(desk.serve(messages.map_err(|error| nats(error.to_string()))?, stop.clone()));
    }
    client.flush().await.map_err(|error| nats(error.to_string()))?;
    let board = service::serve(client, counted, stop.clone());
    Ok(async move { futures::future::try_join(board, futures::future::try_join_all(doors)).await.map(|_| ()) })
}

impl Desk {
    /// Takes messages until `stop`, and then those that are on their way.
    async fn serve(self: Arc<Self>, mut messages: Subscriber, stop: CancellationToken) -> Result<(), Error> {
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => break,
                message = messages.next() => message,
            };
            self.take(message.ok_or(Error::Ended("a door's subscription"))?).await;
        }
        // Without a connection nothing is on its way, and the drain would wait for one.
        if self.dispatcher.bus.connected() && messages.drain().await.is_ok() {
            while let Some(message) = messages.next().await {
                self.take(message).await;
            }
        }
        Ok(())
    }

    async fn take(self: &Arc<Self>, message: Message) {
        match self.slots.take(message.payload.len()) {
            Some(slot) => {
                let desk = Arc::clone(self);
                // In a box, since a task is moved some eight times before it runs, and a walk is large.
                self.tasks.spawn(Box::pin(async move { desk.handle(message, slot).await }));
            }
            None => {
                self.counts.decided(Duration::ZERO);
                let refusal = Refusal::new(ErrorCode::Overloaded, "too many requests are at the door");
                self.turn_away(&message, refusal.retry_after(clock::jitter(NO_PLACE_RETRY) + NO_PLACE_RETRY)).await;
            }
        }
    }

    async fn handle(&self, message: Message, slot: (Place, Weight)) {
        let begun = Instant::now();
        let (place, _weight) = slot;
        let copy = message.clone();
        let work = async {
            match self.purpose {
                Purpose::Infer(modality) => self.infer(message, modality, place).await,
                Purpose::Control(control) => self.control(message, control).await,
            }
        };
        // A defect of ours costs one request its answer, never its sender the knowledge of it.
        if AssertUnwindSafe(work).catch_unwind().await.is_err() {
            self.turn_away(&copy, Refusal::new(ErrorCode::Internal, "a fault of the fleet")).await;
        }
        self.counts.decided(begun.elapsed());
    }

    async fn infer(&self, message: Message, modality: Option<Modality>, place: Place) {
        let headers = message.headers.as_ref().map(headers_in).unwrap_or_default();
        let reply_to = match reply_to(&headers, message.reply.as_deref()) {
            Ok(Some(reply_to)) => reply_to,
            Ok(None) => return metrics::request(&unread(), Outcome::NoReply, Duration::ZERO),
            Err(refusal) => return self.turn_away(&message, refusal).await,
        };
        let mut incoming = Incoming {
            door: Door::Infer,
            tenant: Token::default_tenant(),
            body: message.payload,
            trace: trace(&headers),
            headers,
            modality,
            reply_to: Some(reply_to),
            received_ms: clock::now_ms(),
            slot: Some(place),
        };
        let walked = walk::message(&self.dispatcher, &mut incoming).await;
        let frames = match walked.verdict {
            Verdict::Forwarded => return,
            Verdict::Answered(record) => answer::record_frames(&record, walked.manner),
            Verdict::Refused(refusal) => {
                self.counts.refused(&refusal);
                answer::refusal_frames(walked.job.as_ref().map(|named| &named.job), &refusal, walked.manner)
            }
        };
        let reply_to = incoming.reply_to.expect("set above");
        answer::send(&self.dispatcher.bus, &reply_to, frames).await;
    }

    async fn control(&self, message: Message, control: Control) {
        let headers = message.headers.as_ref().map(headers_in).unwrap_or_default();
        let Some(reply) = inbox(message.reply.as_deref()) else {
            return;
        };
        let frame = match control::answer(&self.dispatcher, control, &headers, &message.payload).await {
            Ok(frame) => frame,
            Err(refusal) => {
                self.count(&refusal);
                protocol::reply::failed(None, &refusal, Manner::guess(&headers, &message.payload).format)
            }
        };
        answer::send(&self.dispatcher.bus, reply, vec![frame]).await;
    }

    /// Refuses what is not even looked at.
    async fn turn_away(&self, message: &Message, refusal: Refusal) {
        self.count(&refusal);
        metrics::request(&unread(), Outcome::Refused, Duration::ZERO);
        let Some(reply) = inbox(message.reply.as_deref()) else {
            return;
        };
        let headers = message.headers.as_ref().map(headers_in).unwrap_or_default();
        let manner = Manner::guess(&headers, &message.payload);
        answer::send(&self.dispatcher.bus, reply, answer::refusal_frames(None, &refusal, manner)).await;
    }

    fn count(&self, refusal: &Refusal) {
        self.counts.refused(refusal);
        metrics::error(refusal.code);
    }
}

fn unread() -> Labels {
    Labels { modality: "none", model: "none".to_owned(), door: Door::Infer.as_str() }
}
