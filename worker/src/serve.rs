//! The walk of one delivery: admit, engine, reply, settle. One task a delivery, which nothing else waits for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::answer::{Answer, CacheOutcome, Finish, Output, Usage};
use protocol::job::Job;
use protocol::{ErrorCode, Refusal};
use runtime::clock;
use runtime::telemetry::Trace;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tracing::Instrument;

use crate::admit::{Admission, Order, admit, cancelled};
use crate::delivery::{Delivery, Hand, Phase};
use crate::metrics::{self, Meters};
use crate::model::{Cancel, End, Event, Model};
use crate::outcome::{Attempt, Case, Ending, Outcome, Why, late, outcome};
use crate::output::{Form, unsaid};
use crate::reply::{Pace, Reply};
use crate::settle;
use crate::worker::Worker;

/// Takes a delivery from here to its end.
pub async fn serve(worker: Arc<Worker>, delivery: Arc<Delivery>) {
    let _in_hand = InHand { hand: Arc::clone(&worker.now.hand), delivery: Arc::clone(&delivery) };
    let span = span(&delivery);
    walk(&worker, &delivery).instrument(span).await;
}

/// Gives a delivery back unseen: the worker stops.
pub async fn decline(worker: Arc<Worker>, delivery: Arc<Delivery>) {
    let _in_hand = InHand { hand: Arc::clone(&worker.now.hand), delivery: Arc::clone(&delivery) };
    let forgiven = match delivery.name() {
        Some((tenant, job)) if delivery.info.delivered > 1 => {
            runtime::records::forgiven(&worker.bus, tenant, &job).await.unwrap_or_default()
        }
        _ => 0,
    };
    let case = Case { delivered: delivery.info.delivered, forgiven, now_ms: 0, deadline_ms: u64::MAX };
    let back = Outcome::GiveBack { delay: Duration::ZERO, attempt: Attempt::Forgiven };
    settle::settle(&worker, &delivery, back, &case, None).await;
}

/// However the walk ends, the delivery is out of hand then.
struct InHand {
    hand: Arc<Hand>,
    delivery: Arc<Delivery>,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.hand.release(&self.delivery);
    }
}

fn span(delivery: &Delivery) -> tracing::Span {
    let Ok(job) = &delivery.job else { return tracing::info_span!("deliver", sequence = delivery.info.sequence) };
    let trace = Trace::from_header(job.traceparent.as_deref()).child();
    tracing::info_span!(
        "deliver",
        job = %job.id,
        tenant = %job.tenant,
        model = %job.model,
        attempt = delivery.info.delivered - 1,
        trace_id = %trace.trace_id(),
        span_id = %trace.span_id(),
    )
}

async fn walk(worker: &Worker, delivery: &Delivery) {
    delivery.enter(Phase::Admitting);
    if delivery.info.delivered > 1 {
        metrics::redelivered();
    }
    let attempt = delivery.info.delivered.saturating_sub(1);
    let mut reply = delivery.job.as_ref().ok().map(|job| Reply::new(&worker.bus, job, attempt));
    let (admission, mut case) = admit(worker, delivery).instrument(tracing::debug_span!("admit")).await;
    let ending = match (admission, &delivery.job, &mut reply) {
        (Admission::Stored(record), ..) => {
            let rest = settle::finish(worker, delivery, &record, reply);
            return rest.instrument(tracing::debug_span!("settle")).await;
        }
        (Admission::Ends(ending), ..) => ending,
        (Admission::Compute(order), Ok(job), Some(reply)) => {
            let compute = compute(worker, delivery, job, *order, reply);
            compute.instrument(tracing::debug_span!("compute")).await
        }
        (Admission::Compute(_), ..) => Ending::Exhausted,
    };
    case.now_ms = clock::now_ms();
    let verdict = outcome(ending, &case);
    tracing::debug!(?case, verdict = verdict.word(), "decided");
    settle::settle(worker, delivery, verdict, &case, reply).instrument(tracing::debug_span!("settle")).await;
}

/// Runs the job in the engine and streams what comes.
async fn compute(worker: &Worker, delivery: &Delivery, job: &Job, order: Order<'_>, reply: &mut Reply<'_>) -> Ending {
    let model = &worker.models[delivery.model];
    model.meters.admitted(since(job.accepted_ms));
    let Order { work, form, usage, room: _room, seat: _seat } = order;
    delivery.enter(Phase::Computing);
    let (events_in, events) = unbounded_channel();
    let key = work.key;
    if let Err(refusal) = model.engine.submit(work, events_in) {
        return Ending::Refused(refusal);
    }
    let running = Running { model, key };
    reply.accepted().await;
    let mut telling = Telling { job, meters: &model.meters, form, reply };
    let end = listen(worker, delivery, &running, Feed { events, ahead: None }, &mut telling).await;
    telling.ending(end, usage).await
}

/// A job in the engine; taken out when its walk ends before it does.
struct Running<'a> {
    model: &'a Model,
    key: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.model.engine.cancel(self.key, Cancel::Client);
    }
}

/// Hears the engine out. Bounded by the engine: whatever is cancelled ends within a step.
async fn listen(
    worker: &Worker,
    delivery: &Delivery,
    running: &Running<'_>,
    mut feed: Feed,
    telling: &mut Telling<'_, '_>,
) -> End {
    // Told to the engine, not merely asked for: what was asked for before this is told first of all.
    let (mut cancelled, mut quit) = (false, false);
    let mut pace = Pace::Flowing;
    let mut last = None;
    loop {
        let event = tokio::select! {
            biased;
            () = delivery.cancelled.cancelled(), if !cancelled => {
                cancelled = true;
                running.model.engine.cancel(running.key, Cancel::Client);
                continue;
            }
            () = worker.now.quit.cancelled(), if !quit => {
                quit = true;
                running.model.engine.cancel(running.key, Cancel::Stopping);
                continue;
            }
            event = feed.next(pace) => event,
        };
        match event {
            Some(Event::Chunk(text)) => pace = telling.chunk(text, &mut last).await,
            Some(Event::Ended(end)) => return end,
            None => return End::Failed("the engine dropped the job".to_owned()),
        }
    }
}

/// The events of a job, with one that was read ahead.
struct Feed {
    events: UnboundedReceiver<Event>,
    ahead: Option<Event>,
}

impl Feed {
    /// The next event; while the connection is backed up, all text that is there as one chunk. Loses nothing when
    /// dropped: it waits before it takes.
    async fn next(&mut self, pace: Pace) -> Option<Event> {
        let event = match self.ahead.take() {
            Some(event) => event,
            None => self.events.recv().await?,
        };
        let mut text = match event {
            Event::Chunk(text) if pace == Pace::BackedUp => text,
            event => return Some(event),
        };
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Chunk(more) => text.push_str(&more),
                other => {
                    self.ahead = Some(other);
                    break;
                }
            }
        }
        Some(Event::Chunk(text))
    }
}

/// What comes from the engine, on its way to the client.
struct Telling<'t, 'r> {
    job: &'t Job,
    meters: &'t Meters,
    form: Form,
    reply: &'t mut Reply<'r>,
}

impl Telling<'_, '_> {
    /// More of the answer; `last` is when there was something before.
    async fn chunk(&mut self, text: String, last: &mut Option<Instant>) -> Pace {
        let Some(text) = self.form.chunk(self.reply.text(), text) else { return Pace::Flowing };
        match last {
            None => self.meters.first_token(since(self.job.accepted_ms)),
            Some(last) => self.meters.token(last.elapsed()),
        }
        *last = Some(Instant::now());
        self.reply.chunk(text).await
    }

    /// What the engine's end means for the job.
    async fn ending(self, end: End, usage: Usage) -> Ending {
        match end {
            End::Done { finish, input_tokens, output_tokens } => {
                let usage = Usage {
                    input_tokens: input_tokens as u64,
                    output_tokens: output_tokens as u64,
                    ..Usage::default()
                };
                let text = vec![Output::Text { text: self.reply.text().to_owned() }];
                Ending::Answered(answer(self.job, text, finish, usage))
            }
            End::Encoded(found) => match self.form.outputs(found) {
                Ok((outputs, pieces)) => {
                    for piece in unsaid(pieces, self.reply.text()) {
                        self.reply.chunk(piece).await;
                    }
                    Ending::Answered(answer(self.job, outputs, Finish::Stop, usage))
                }
                Err(why) => failed(self.job, &why),
            },
            End::Cancelled => Ending::Refused(cancelled()),
            End::Deadline => Ending::Refused(late()),
            End::Stopped => Ending::Untried(Why::Stopping),
            End::Refused(why) => Ending::Refused(Refusal::invalid(why)),
            End::Failed(why) => failed(self.job, &why),
        }
    }
}

fn failed(job: &Job, why: &str) -> Ending {
    tracing::error!(job = %job.id, why, "the engine failed the job");
    Ending::Refused(Refusal::new(ErrorCode::Internal, "the engine failed"))
}

fn answer(job: &Job, output: Vec<Output>, finish_reason: Finish, usage: Usage) -> Answer {
    Answer {
        job: job.id.clone(),
        model: job.model.clone(),
        task: job.task.as_str().to_owned(),
        output,
        finish_reason,
        usage,
        cache: CacheOutcome::Miss,
        steps: Vec::new(),
    }
}

fn since(accepted_ms: u64) -> Duration {
    Duration::from_millis(clock::now_ms().saturating_sub(accepted_ms))
}
