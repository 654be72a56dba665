//! The response cache, and one computation at a time for each key over the whole fleet.
//!
//! Who takes the lease leads: its job is computed and its lease kept until the job ends, see [`crate::leases`]. Who finds
//! it taken by an equal or a more urgent one follows: waits for the leader's record, or for the lease to lapse. A leader's
//! failure or cancel is never a follower's.

use std::time::Duration;

use protocol::answer::{Answer, CacheOutcome};
use protocol::job::Job;
use protocol::record::{End, Record};
use protocol::request::{CachePolicy, Request};
use protocol::token::Token;
use protocol::{Refusal, WIRE_VERSION};
use runtime::cache::{Claim, Found, KeyParts, Lease, cache_key};
use runtime::clock;
use runtime::config::ModelEntry;
use runtime::records::{self, Stored};

use crate::admit;
use crate::fleet::check_workers;
use crate::ingress::Incoming;
use crate::leases::Lead;
use crate::metrics::{self, CacheResult, During, Outcome};
use crate::pipelines::{Plan, Planned};
use crate::state::{Dispatcher, Stop, failed};

/// How often a follower looks whether the lease has lapsed.
const LOOK: Duration = Duration::from_secs(2);
/// Followers of a failed leader come back after this and as much again at most, not in step.
const SPREAD: Duration = Duration::from_millis(25);

/// What the cache says to a job.
pub enum Entry {
    /// The answer is known.
    Hit(Box<Answer>),
    /// It has to be computed; with a lease where others may wait for it.
    Lead(Option<Lead>),
}

/// Asks the cache, and follows whoever computes the same. Sets the job's key.
#[tracing::instrument(level = "debug", name = "cache", skip_all)]
pub async fn enter(dispatcher: &Dispatcher, incoming: &mut Incoming, job: &mut Job, ask: &Ask) -> Result<Entry, Stop> {
    let Some(key) = ask.key(job) else {
        return Ok(Entry::Lead(None));
    };
    job.cache_key = Some(key.clone());
    if ask.policy == CachePolicy::Refresh {
        return Ok(Entry::Lead(None));
    }
    loop {
        match look(dispatcher, &key, job).await {
            Look::Hit(answer) => {
                metrics::cache(CacheResult::Hit);
                return Ok(Entry::Hit(answer));
            }
            Look::Lead(lead) => {
                metrics::cache(if lead.is_some() { CacheResult::Miss } else { CacheResult::Error });
                return Ok(Entry::Lead(lead));
            }
            Look::Taken(leader) => {
                check_workers(&dispatcher.fleet, incoming.door, &job.model)?;
                match Box::pin(follow(dispatcher, incoming, job, &leader)).await? {
                    Followed::Answer(answer) => {
                        metrics::cache(CacheResult::Shared);
                        return Ok(Entry::Hit(answer));
                    }
                    Followed::Astray => return Ok(Entry::Lead(None)),
                    Followed::Nothing => {}
                }
            }
        }
    }
}

enum Look {
    Hit(Box<Answer>),
    Lead(Option<Lead>),
    Taken(Token),
}

/// One look at the cache. Where it is away, nothing is cached and everybody computes.
async fn look(dispatcher: &Dispatcher, key: &str, job: &Job) -> Look {
    let claim = Claim { job: job.id.clone(), priority: job.priority };
    match dispatcher.responses.enter(key, &claim).await {
        Ok(Found::Answer(answer)) => Look::Hit(answer),
        Ok(Found::Lease(Lease::Taken { from })) => {
            let whose = (job.tenant.clone(), job.id.clone());
            Look::Lead(Some(dispatcher.leases.keep(key.to_owned(), from, whose, job.deadline_ms)))
        }
        Ok(Found::Lease(Lease::Held { job: leader })) => Look::Taken(leader),
        Err(error) => {
            tracing::debug!(%error, "the cache is away");
            Look::Lead(None)
        }
    }
}

/// What came of following.
enum Followed {
    /// The leader's answer is ours too.
    Answer(Box<Answer>),
    /// Look again.
    Nothing,
    /// The leader's job is another one than its lease says: compute alone.
    Astray,
}

/// Waits for the leader's end.
async fn follow(dispatcher: &Dispatcher, incoming: &mut Incoming, job: &Job, leader: &Token) -> Result<Followed, Stop> {
    let _place = dispatcher.waiting.try_acquire().map_err(|_| admit::full_of_waiting())?;
    let _during = During::waiting();
    drop(incoming.slot.take());
    let own = async { Ok(dispatcher.done.wait(&job.tenant, &job.id).await?.record().await) };
    let known = |record: Result<Record, runtime::Error>| record.map_err(|error| failed(&error));
    tokio::select! {
        record = dispatcher.done.record(&job.tenant, leader) => Ok(ended(dispatcher, job, known(record)?).await),
        // Somebody cancelled this job, or it was computed elsewhere.
        record = own => Err(Stop::Settled(Box::new(known(record)?), Outcome::Repeated)),
        () = tokio::time::sleep(admit::left(job)) => Err(admit::late().into()),
        () = dispatcher.stopping.cancelled() => Err(admit::stopping().into()),
        () = tokio::time::sleep(LOOK + clock::jitter(LOOK)) => Ok(Followed::Nothing),
    }
}

/// The leader came to its end. A lease that it left behind is given up in its name, since nobody else may be there to.
async fn ended(dispatcher: &Dispatcher, job: &Job, record: Record) -> Followed {
    let (leader, key) = (record.job.clone(), job.cache_key.as_deref());
    let followed = shared(record, key);
    if let (Followed::Nothing, Some(key)) = (&followed, key) {
        dispatcher.leases.release(key, &leader).await;
        tokio::time::sleep(SPREAD + clock::jitter(SPREAD)).await;
    }
    followed
}

/// An answer to the same question is everybody's; a failure is the leader's own.
fn shared(record: Record, key: Option<&str>) -> Followed {
    match record.end {
        End::Done(answer) if record.cache_key.as_deref() == key => Followed::Answer(Box::new(answer)),
        End::Done(_) => Followed::Astray,
        End::Failed(_) => Followed::Nothing,
    }
}

/// Stores the record of a job that the cache answered, so that it can be asked for like any other.
pub async fn settle_hit(dispatcher: &Dispatcher, job: &Job, answer: Answer) -> Result<Stop, Refusal> {
    let answer = Answer { job: job.id.clone(), cache: CacheOutcome::Hit, ..answer };
    let record = Record {
        version: WIRE_VERSION,
        job: job.id.clone(),
        tenant: job.tenant.clone(),
        format: job.format,
        settled_ms: clock::now_ms(),
        end: End::Done(answer),
        session: None,
        cache_key: job.cache_key.clone(),
    };
    match records::store_result(&dispatcher.bus, &record).await.map_err(|error| failed(&error))? {
        Stored::Created => Ok(Stop::Settled(Box::new(record), Outcome::Hit)),
        Stored::Existed(record) => Ok(Stop::Settled(Box::new(record), Outcome::Repeated)),
    }
}

/// What decides whether and as what a job is cached.
#[derive(Clone, Debug)]
pub struct Ask {
    policy: CachePolicy,
    sameness: Sameness,
    /// Of the model; of several, also what came before.
    digest: String,
    precision: String,
}

/// Whether the same request always has the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sameness {
    Always,
    /// It draws new numbers, or depends on a conversation.
    Never,
}

impl Ask {
    /// As the request stands, before the door fixes its seed.
    #[must_use]
    pub fn of(request: &Request, policy: CachePolicy, model: &ModelEntry, plan: Option<&Plan>) -> Self {
        let before = plan.iter().flat_map(|plan| &plan.steps).map(|Planned { step, model }| {
            format!("{} {} {} {} {},", step.part, step.task.as_str(), model.name, model.sha256, model.precision)
        });
        let digest = before.chain([model.sha256.clone()]).collect();
        let always = request.session.is_none() && request.params.deterministic();
        let sameness = if always { Sameness::Always } else { Sameness::Never };
        Self { policy, sameness, digest, precision: model.precision.clone() }
    }

    fn key(&self, job: &Job) -> Option<String> {
        if self.policy == CachePolicy::Bypass || self.sameness == Sameness::Never {
            return None;
        }
        Some(cache_key(&KeyParts {
            tenant: &job.tenant,
            model: &job.model,
            digest: &self.digest,
            precision: &self.precision,
            task: &job.task,
            params: &job.params,
            input: &job.input,
        }))
    }
}

#[cfg(test)]
mod tests {
    use protocol::ErrorCode;
    use protocol::answer::{Finish, Usage};
    use protocol::request::Format;

    use super::*;

    fn record(end: End, cache_key: Option<&str>) -> Record {
        Record {
            version: WIRE_VERSION,
            job: Token::default_tenant(),
            tenant: Token::default_tenant(),
            format: Format::Raw,
            settled_ms: 1,
            end,
            session: None,
            cache_key: cache_key.map(str::to_owned),
        }
    }

    #[test]
    fn only_the_answer_to_the_same_question_is_shared() {
        let done = End::Done(Answer {
            job: Token::default_tenant(),
            model: "m".into(),
            task: "chat".into(),
            output: Vec::new(),
            finish_reason: Finish::Stop,
            usage: Usage { input_tokens: 1, output_tokens: 1, ..Usage::default() },
            cache: CacheOutcome::Miss,
            steps: Vec::new(),
        });
        assert!(matches!(shared(record(done.clone(), Some("a")), Some("a")), Followed::Answer(_)));
        assert!(matches!(shared(record(done.clone(), Some("b")), Some("a")), Followed::Astray));
        assert!(matches!(shared(record(done, None), Some("a")), Followed::Astray));
        let failed = End::Failed(Refusal::new(ErrorCode::Cancelled, ""));
        assert!(matches!(shared(record(failed, Some("a")), Some("a")), Followed::Nothing));
    }
}
