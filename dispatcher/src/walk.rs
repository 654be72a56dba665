//! The thread through the steps: one message in, one [`Verdict`] out. Each step is a function of its own module.

use std::time::Instant;

use bytes::Bytes;
use protocol::header::{self, Headers};
use protocol::media::Modality;
use protocol::record::Record;
use protocol::request::{self, Request, Task};
use protocol::{ErrorCode, Refusal};
use runtime::bus::Arrival;
use tracing::Instrument;

use crate::admit::{self, Asker, Identity, Named};
use crate::answer::Manner;
use crate::classify::{self, Class};
use crate::fleet;
use crate::flight::{self, Ask, Entry};
use crate::forward::{self, Unsent};
use crate::ingress::Incoming;
use crate::metrics::{self, Labels, Outcome};
use crate::pipelines::Plan;
use crate::route::{self, Lane};
use crate::rules::Facts;
use crate::state::{Dispatcher, Stop};
use crate::terms::Terms;

/// Bodies above this are read and written on a thread that may block, so that small requests are not held up.
pub(crate) const BLOCKING_BYTES: usize = 64 * 1024;

/// What is decided of a message.
#[derive(Debug)]
pub enum Verdict {
    /// Its job stands in the queue; the worker answers.
    Forwarded,
    /// Its job has come to an end already.
    Answered(Box<Record>),
    /// It goes no further.
    Refused(Refusal),
}

/// A message at the end of its walk here.
#[derive(Debug)]
pub struct Walked {
    /// What is decided.
    pub verdict: Verdict,
    /// How its sender wants to hear it.
    pub manner: Manner,
    /// The job's id, once the message may speak of it.
    pub job: Option<Named>,
}

/// Walks one message through every step.
pub async fn message(dispatcher: &Dispatcher, incoming: &mut Incoming) -> Walked {
    let begun = Instant::now();
    let _during = metrics::During::admission();
    let mut labels = Labels { modality: "none", model: "none".to_owned(), door: incoming.door.as_str() };
    let span = tracing::info_span!("walk", door = labels.door, trace_id = %incoming.trace.trace_id(),
        job = tracing::field::Empty, model = tracing::field::Empty);
    let walked = walk(dispatcher, incoming, &mut labels).instrument(span.clone()).await;
    let _entered = span.entered();
    let outcome = match &walked {
        (Walked { verdict: Verdict::Refused(refusal), .. }, outcome) => {
            metrics::error(refusal.code);
            // The message may quote the request, so it is not logged.
            tracing::debug!(code = %refusal.code, "refused");
            *outcome
        }
        (_, outcome) => *outcome,
    };
    metrics::request(&labels, outcome, begun.elapsed());
    tracing::debug!(?outcome, seconds = begun.elapsed().as_secs_f64(), "decided");
    walked.0
}

async fn walk(dispatcher: &Dispatcher, incoming: &mut Incoming, labels: &mut Labels) -> (Walked, Outcome) {
    let (request, class) = match read(dispatcher, incoming).await {
        Ok(read) => read,
        Err(refusal) => {
            let manner = Manner::guess(&incoming.headers, &incoming.body);
            return (Walked { verdict: Verdict::Refused(refusal), manner, job: None }, Outcome::Refused);
        }
    };
    metrics::classified(class.modality);
    labels.modality = class.modality.as_str();
    let manner = Manner::of(&request);
    let mut job = None;
    let stop = match decide(dispatcher, incoming, &request, &class) {
        Ok(Way { terms, lane, plan }) => {
            labels.model.clone_from(&lane.model.name);
            go(dispatcher, incoming, Wish { request, way: Way { terms, lane, plan } }, &mut job).await.err()
        }
        Err(refusal) => Some(Stop::Refused(refusal)),
    };
    let (verdict, outcome) = match stop {
        None => (Verdict::Forwarded, Outcome::Accepted),
        Some(Stop::Settled(record, outcome)) => (Verdict::Answered(record), outcome),
        Some(Stop::Refused(refusal)) => (Verdict::Refused(refusal), Outcome::Refused),
    };
    (Walked { verdict, manner, job }, outcome)
}

/// What a request wants, and where it would go.
#[derive(Debug)]
pub struct Wish {
    /// The request.
    pub request: Request,
    /// Its way.
    pub way: Way,
}

/// Where a request would go.
#[derive(Debug)]
pub struct Way {
    /// Its terms.
    pub terms: Terms,
    /// The lane of the model that answers.
    pub lane: Lane,
    /// The steps before it, where several models answer.
    pub plan: Option<Plan>,
}

/// Steps 2 and 3: bytes to a request and its class.
#[tracing::instrument(level = "debug", name = "decode", skip_all)]
async fn read(dispatcher: &Dispatcher, incoming: &Incoming) -> Result<(Request, Class), Refusal> {
    if incoming.headers.get(header::BODY).is_some() {
        return Err(Refusal::invalid("Flotilla-Body: this fleet has no intake object store"));
    }
    let language = dispatcher.rules.language();
    if incoming.body.len() <= BLOCKING_BYTES {
        return decode(&incoming.body, &incoming.headers, incoming.modality, language);
    }
    let (body, headers, modality) = (incoming.body.clone(), incoming.headers.clone(), incoming.modality);
    tokio::task::spawn_blocking(move || decode(&body, &headers, modality, language))
        .await
        .unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Internal, "a fault of the fleet")))
}

fn decode(
    body: &Bytes,
    headers: &Headers,
    modality: Option<Modality>,
    language: classify::Language,
) -> Result<(Request, Class), Refusal> {
    let request = Request::decode(&request::Incoming { body, headers, modality })?;
    let class = classify::classify(&request, language)?;
    Ok((request, class))
}

/// Rules and step 5: what is wanted and which lane has it. It comes before admission, which needs the model's digest.
fn decide(dispatcher: &Dispatcher, incoming: &Incoming, request: &Request, class: &Class) -> Result<Way, Refusal> {
    let _step = tracing::debug_span!("route").entered();
    let text = classify::last_text(&request.input);
    let facts = Facts { class, tenant: &incoming.tenant, headers: &incoming.headers, text };
    let mut terms = Terms::decide(request, class, dispatcher.rules.first(&facts), &incoming.door);
    let plan = dispatcher.pipelines.plan(&request.input, class, &terms, &dispatcher.catalogue)?;
    let task = plan.as_ref().map_or(&terms.task, |plan| &plan.task);
    if request.session.is_some() && !matches!(task, Task::Chat | Task::Complete) {
        let task = task.as_str();
        return Err(Refusal::invalid(format!("a session remembers a conversation, and '{task:.64}' is none")));
    }
    let lane = match &plan {
        Some(plan) => {
            terms.task = plan.task.clone();
            plan.last.clone()
        }
        None => route::route(class, &terms, &dispatcher.catalogue)?,
    };
    route::check_params(&request.params, &lane.model)?;
    Ok(Way { terms, lane, plan })
}

/// Steps 4 and 6: admission and the queue. `named` is set as soon as the message may speak of its id. Ways that are seldom
/// taken are boxed: every walk would have their size.
async fn go(
    dispatcher: &Dispatcher,
    incoming: &mut Incoming,
    wish: Wish,
    named: &mut Option<Named>,
) -> Result<(), Stop> {
    let Wish { request, way: Way { terms, lane, plan } } = wish;
    let identity = admit::identify(incoming, &request);
    let session = request.session.clone();
    let ask = Ask::of(&request, terms.cache, &lane.model, plan.as_ref());
    let mut job = admit::job(incoming, request, &identity, &terms, &lane);
    tracing::record_all!(tracing::Span::current(), job = job.id.as_str(), model = lane.model.name.as_str());
    let asker = match &identity {
        Identity::Fresh => Asker::First,
        Identity::Claimed(meaning) => Box::pin(admit::claim(dispatcher, incoming.door, &job, meaning)).await?,
    };
    let mine = named.insert(Named { job: job.id.clone(), asker });
    // What is stored counts, however late somebody asks for it.
    admit::check_deadline(&job)?;
    dispatcher.room.check()?;
    let lead = match flight::enter(dispatcher, incoming, &mut job, &ask).await? {
        Entry::Hit(answer) => return Err(Box::pin(flight::settle_hit(dispatcher, &job, *answer)).await?),
        Entry::Lead(lead) => lead,
    };
    let steps = plan.iter().flat_map(Plan::models);
    for model in steps.chain([lane.model.as_ref()]) {
        fleet::check_workers(&dispatcher.fleet, incoming.door, &model.name)?;
    }
    if let Some(session) = session {
        job.session = Some(Box::pin(admit::reserve(dispatcher, &job, session)).await?);
    }
    let (lane, mut job) = match plan {
        Some(plan) => plan.begin(job),
        None => (lane, job),
    };
    if job.steps.is_some() && asker == Asker::Repeat {
        job.reply_to = None;
    }
    let arrival = match forward::publish(dispatcher, &lane, &job).await {
        Ok(arrival) => arrival,
        Err(fault) => {
            let unsent = Unsent { job: &job, identity, fault };
            return Err(Box::pin(forward::given_up(dispatcher, &lane, unsent)).await);
        }
    };
    if let Some(lead) = lead {
        lead.published(arrival);
    }
    if let Some(turn) = job.turn() {
        Box::pin(admit::confirm(dispatcher, &job, turn)).await;
    }
    // A step speaks to nobody: whatever became of this one, its request was asked before, and is answered from the record.
    let arrival = if job.steps.is_some() && asker == Asker::Repeat { Arrival::Repeat } else { arrival };
    if identity == Identity::Fresh || !admit::must_answer(incoming, arrival, asker) {
        return Ok(());
    }
    // The job in the queue is another message's, whoever had the id first.
    mine.asker = Asker::Repeat;
    let record = Box::pin(admit::wait(dispatcher, incoming, &job)).await?;
    Err(Stop::Settled(Box::new(record), Outcome::Repeated))
}
