//! Streams and consumers as data, every setting explicit, so that no client's or server's default is relied on.

use std::time::Duration;

use crate::media::Modality;
use crate::request::{DEADLINE_MAX, Priority};
use crate::subject;

/// Accepted jobs, until acked.
pub const JOBS: &str = "JOBS";
/// Final records, create-once.
pub const RESULTS: &str = "RESULTS";
/// Messages of the durable door.
pub const INGRESS: &str = "INGRESS";
/// Jobs that could not be done.
pub const DEADLETTER: &str = "DEADLETTER";
/// What clients' own ids were used for, create-once.
pub const IDS: &str = "IDS";
/// Deliveries that do not count as attempts.
pub const FORGIVEN: &str = "FORGIVEN";

/// What steps of pipelines gave, until the next job is queued. A work queue like INGRESS, so that nothing in it goes by age:
/// a record leaves when the next job stands in JOBS. Create-once while it stands; later the name may be taken again by a
/// step that was delivered once more, whose next job is the same one by its message id, or finds the request's record.
pub const STEPS: &str = "STEPS";
/// Sessions whose conversations were forgotten: a rebuild must not bring them back.
pub const FORGOTTEN: &str = "FORGOTTEN";

/// Durable consumer of INGRESS that all dispatchers share.
pub const INGRESS_CONSUMER: &str = "dispatcher";
/// Durable consumer of STEPS that all dispatchers share.
pub const STEPS_CONSUMER: &str = "dispatcher";
/// The one priority group of every lane's consumer.
pub const LANE_GROUP: &str = "workers";

/// A delivery that shows no progress for this long goes to somebody else.
pub const ACK_WAIT: Duration = Duration::from_secs(8);
/// How often a worker says that a delivery makes progress.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);
/// Attempts at a job before it is a dead letter.
pub const ATTEMPTS_MAX: u32 = 4;
/// Backstop of the server; forgiven deliveries count here too.
pub const DELIVERIES_MAX: i64 = 1000;
/// The window in which JOBS drops a job published twice; the promise rests on RESULTS, not on this.
pub const JOBS_DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// The least that the server takes: INGRESS must not drop one tenant's message for another's id.
pub const DUPLICATE_WINDOW_MIN: Duration = Duration::from_millis(100);
/// Cannot be changed on a living consumer, so it is born large enough for any fleet.
pub const MAX_WAITING: i64 = 8192;
/// Deliveries in flight of one consumer, over the whole fleet. Those that wait for their next delivery count too, so it is
/// large: one tenant must not fill it.
pub const MAX_ACK_PENDING: i64 = 65_536;

/// When a stream lets go of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// When it is acked.
    WorkQueue,
    /// By limits.
    Limits,
}

/// How many messages one subject may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerSubject {
    /// As many as the stream.
    Unlimited,
    /// This many; the next is refused.
    Refuse(i64),
    /// Only the newest.
    Newest,
}

/// Whether messages may carry their own time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageTtl {
    /// They may.
    Allowed,
    /// They may not: accepted work must never vanish silently.
    Refused,
}

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Name.
    pub name: &'static str,
    /// One line for `nats stream info`.
    pub description: &'static str,
    /// What it captures.
    pub subject: &'static str,
    /// When it lets go.
    pub retention: Retention,
    /// Limit in bytes, after which a publish is refused.
    pub bytes_max: i64,
    /// Limit a subject.
    pub per_subject: PerSubject,
    /// Age at which a message goes; zero is never.
    pub age_max: Duration,
    /// Window of the server's own de-duplication.
    pub duplicate_window: Duration,
    /// Time to live of single messages.
    pub ttl: MessageTtl,
    /// Where the headers of stored messages are republished.
    pub republish: Option<(&'static str, &'static str)>,
}

/// What an operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Replicas of every stream.
    pub replicas: usize,
    /// Jobs that may wait in one lane.
    pub lane_jobs_max: i64,
    /// Bytes of all waiting jobs.
    pub jobs_bytes_max: i64,
    /// Bytes of all kept results.
    pub results_bytes_max: i64,
    /// How long a result is kept.
    pub results_age: Duration,
}

/// Every stream of a fleet.
#[must_use]
pub fn streams(limits: &Limits) -> Vec<Stream> {
    let keep = |name, description, subject, age_max| Stream {
        name,
        description,
        subject,
        retention: Retention::Limits,
        bytes_max: limits.results_bytes_max,
        per_subject: PerSubject::Refuse(1),
        age_max,
        duplicate_window: DUPLICATE_WINDOW_MIN,
        ttl: MessageTtl::Allowed,
        republish: None,
    };
    let queue = |name, description, subject, per_subject, duplicate_window| Stream {
        name,
        description,
        subject,
        retention: Retention::WorkQueue,
        bytes_max: limits.jobs_bytes_max,
        per_subject,
        age_max: Duration::ZERO,
        duplicate_window,
        ttl: MessageTtl::Refused,
        republish: None,
    };
    let lane = PerSubject::Refuse(limits.lane_jobs_max);
    vec![
        queue(JOBS, "accepted jobs, one subject a lane", subject::JOBS_ALL, lane, JOBS_DUPLICATE_WINDOW),
        queue(INGRESS, "the durable door", subject::SUBMIT_ALL, PerSubject::Unlimited, DUPLICATE_WINDOW_MIN),
        queue(STEPS, "what steps of pipelines gave", subject::STEPS_ALL, PerSubject::Refuse(1), DUPLICATE_WINDOW_MIN),
        Stream {
            republish: Some((subject::RESULTS_ALL, "done.{{wildcard(1)}}.{{wildcard(2)}}")),
            ..keep(RESULTS, "final records, one a job", subject::RESULTS_ALL, limits.results_age)
        },
        keep(IDS, "what clients' ids were used for", subject::IDS_ALL, DEADLINE_MAX + limits.results_age),
        Stream {
            per_subject: PerSubject::Newest,
            ..keep(
                FORGIVEN,
                "deliveries that are no attempts",
                subject::FORGIVEN_ALL,
                DEADLINE_MAX + limits.results_age,
            )
        },
        Stream {
            per_subject: PerSubject::Newest,
            ..keep(FORGOTTEN, "forgotten sessions", subject::FORGOTTEN_ALL, DEADLINE_MAX + limits.results_age)
        },
        Stream {
            per_subject: PerSubject::Unlimited,
            ..keep(DEADLETTER, "jobs that could not be done", subject::DEAD_ALL, Duration::ZERO)
        },
    ]
}

/// Who pulls from a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pullers {
    /// Anybody alike.
    Equal,
    /// Ranked, within this priority group: GPU before CPU, near before far. Every pull must name the group.
    Prioritized(&'static str),
}

/// A durable pull consumer with explicit acks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Of which stream.
    pub stream: &'static str,
    /// Durable name.
    pub name: String,
    /// What it sees; disjoint from every other consumer of a work queue.
    pub filter: String,
    /// Silence after which a delivery goes to somebody else.
    pub ack_wait: Duration,
    /// Most deliveries of one message.
    pub deliveries_max: i64,
    /// Most deliveries in flight.
    pub ack_pending_max: i64,
    /// Most waiting pulls.
    pub waiting_max: i64,
    /// Who pulls.
    pub pullers: Pullers,
}

/// The consumer of one lane.
#[must_use]
pub fn lane_consumer(modality: Modality, model: &str, priority: Priority) -> Consumer {
    Consumer {
        stream: JOBS,
        name: subject::lane_consumer(modality, model, priority),
        filter: subject::lane(modality, model, priority),
        ack_wait: ACK_WAIT,
        deliveries_max: DELIVERIES_MAX,
        ack_pending_max: MAX_ACK_PENDING,
        waiting_max: MAX_WAITING,
        pullers: Pullers::Prioritized(LANE_GROUP),
    }
}

/// The consumer of the durable door.
#[must_use]
pub fn ingress_consumer() -> Consumer {
    dispatchers(INGRESS, INGRESS_CONSUMER, subject::SUBMIT_ALL)
}

/// The consumer of what steps gave.
#[must_use]
pub fn steps_consumer() -> Consumer {
    dispatchers(STEPS, STEPS_CONSUMER, subject::STEPS_ALL)
}

/// One that all dispatchers share.
fn dispatchers(stream: &'static str, name: &str, filter: &str) -> Consumer {
    Consumer {
        stream,
        name: name.to_owned(),
        filter: filter.to_owned(),
        ack_wait: Duration::from_secs(30),
        deliveries_max: DELIVERIES_MAX,
        ack_pending_max: MAX_ACK_PENDING,
        waiting_max: MAX_WAITING,
        pullers: Pullers::Equal,
    }
}
