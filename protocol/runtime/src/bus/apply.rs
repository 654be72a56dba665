//! Makes streams and consumers on the server what the protocol says: creates what is absent, updates what may be
//! updated, and refuses what contradicts, naming the setting.

use std::fmt::Debug;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull::Config as ConsumerConfig;
use async_nats::jetstream::consumer::{AckPolicy, Config as AnyConsumer, DeliverPolicy, PriorityPolicy, ReplayPolicy};
use async_nats::jetstream::context::{
    ConsumerInfoErrorKind, CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{
    Config, ConsumerErrorKind, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use protocol::stream::{Consumer, Limits, MessageTtl, PerSubject, Pullers, Retention, Stream, streams};
use tracing::info;

use super::Bus;
use crate::{Error, clock};

/// What to do about what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existing {
    /// Makes it what it should be, or refuses it.
    Update,
    /// Leaves it as it is: another release or an operator may have changed it meanwhile.
    Keep,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Created,
    Found,
}

/// Makes every stream what it should be; refuses one that contradicts, naming the setting. Names those that were absent.
pub async fn apply_streams(bus: &Bus, limits: &Limits) -> Result<Vec<&'static str>, Error> {
    every_stream(bus, limits, Existing::Update).await
}

/// Makes the streams that are absent, and leaves the others as they are. Names those that were absent.
pub async fn restore_streams(bus: &Bus, limits: &Limits) -> Result<Vec<&'static str>, Error> {
    every_stream(bus, limits, Existing::Keep).await
}

async fn every_stream(bus: &Bus, limits: &Limits, existing: Existing) -> Result<Vec<&'static str>, Error> {
    let mut created = Vec::new();
    let mut all = streams(limits);
    // Whoever makes the queue tells what was lost with the old one, so nothing may fail after that.
    all.sort_by_key(|stream| stream.name == protocol::stream::JOBS);
    for stream in all {
        if apply_stream(bus, &stream, limits.replicas, existing).await? == Applied::Created {
            created.push(stream.name);
        }
    }
    Ok(created)
}

async fn apply_stream(bus: &Bus, stream: &Stream, replicas: usize, existing: Existing) -> Result<Applied, Error> {
    let wanted = stream_config(stream, replicas);
    let found = match bus.js.get_stream(stream.name).await {
        Ok(found) => found.cached_info().config.clone(),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(server) if server.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                match bus.js.create_stream(born(&wanted)).await {
                    Ok(_) => {
                        info!(stream = stream.name, replicas, "stream created");
                        return Ok(Applied::Created);
                    }
                    // Another dispatcher was faster.
                    Err(error) if code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => {
                        let found = bus.js.get_stream(stream.name).await.map_err(nats)?;
                        found.cached_info().config.clone()
                    }
                    Err(error) => return Err(refused_stream(stream.name, &error)),
                }
            }
            _ => return Err(nats(error)),
        },
    };
    if existing == Existing::Keep {
        return Ok(Applied::Found);
    }
    check_stream(&found, &wanted)?;
    let updated = updated_stream(&found, &wanted);
    if updated != found {
        bus.js.update_stream(&updated).await.map_err(|error| refused_stream(stream.name, &error))?;
        let (before, replicas) = (found.num_replicas, updated.num_replicas);
        info!(stream = stream.name, replicas, replicas_before = before, "stream updated");
    }
    Ok(Applied::Found)
}

/// Jobs are named after their place in INGRESS, deliveries after theirs in JOBS, and those names outlive a lost store: a
/// stream that is made anew begins above all places of the old one. Only at birth, and never compared.
fn born(wanted: &Config) -> Config {
    let named_after = [protocol::stream::INGRESS, protocol::stream::JOBS];
    let first_sequence = named_after.contains(&wanted.name.as_str()).then(clock::now_ms);
    Config { first_sequence, ..wanted.clone() }
}

fn stream_config(stream: &Stream, replicas: usize) -> Config {
    let (max_per_subject, discard_new_per_subject) = match stream.per_subject {
        PerSubject::Unlimited => (-1, false),
        PerSubject::Refuse(most) => (most, true),
        PerSubject::Newest => (1, false),
    };
    let kept = stream.retention == Retention::Limits;
    Config {
        name: stream.name.to_owned(),
        description: Some(stream.description.to_owned()),
        subjects: vec![stream.subject.to_owned()],
        retention: if kept { RetentionPolicy::Limits } else { RetentionPolicy::WorkQueue },
        discard: DiscardPolicy::New,
        discard_new_per_subject,
        storage: StorageType::File,
        num_replicas: replicas,
        max_bytes: stream.bytes_max,
        max_messages: -1,
        max_messages_per_subject: max_per_subject,
        max_message_size: -1,
        max_consumers: -1,
        max_age: stream.age_max,
        duplicate_window: stream.duplicate_window,
        allow_message_ttl: stream.ttl == MessageTtl::Allowed,
        allow_direct: kept,
        republish: stream.republish.map(|(source, destination)| Republish {
            source: source.to_owned(),
            destination: destination.to_owned(),
            // Who waits for a record reads it; most are waited for by nobody.
            headers_only: true,
        }),
        ..Config::default()
    }
}

/// What is a promise of the design must be exactly so, or messages would be lost, doubled or purged.
fn check_stream(found: &Config, wanted: &Config) -> Result<(), Error> {
    let same = Same { what: "stream", name: &wanted.name };
    same.check("retention", &found.retention, &wanted.retention)?;
    same.check("discard", &found.discard, &wanted.discard)?;
    same.check("discard_new_per_subject", &found.discard_new_per_subject, &wanted.discard_new_per_subject)?;
    same.check("subjects", &found.subjects, &wanted.subjects)?;
    same.check("storage", &found.storage, &wanted.storage)?;
    same.check("no_ack", &found.no_ack, &false)?;
    same.check("sealed", &found.sealed, &false)?;
    same.check("allow_rollup_hdrs", &found.allow_rollup, &false)?;
    same.check("allow_msg_schedules", &found.allow_message_schedules, &false)?;
    same.check("allow_msg_counter", &found.allow_message_counter, &false)?;
    same.check("subject_delete_marker_ttl", &found.subject_delete_marker_ttl.filter(|ttl| !ttl.is_zero()), &None)?;
    same.check("mirror", &found.mirror.is_some(), &false)?;
    same.check("sources", &found.sources.as_ref().is_some_and(|sources| !sources.is_empty()), &false)?;
    same.check("subject_transform", &found.subject_transform.is_some(), &false)?;
    if found.allow_message_ttl && !wanted.allow_message_ttl {
        same.check("allow_msg_ttl", &true, &false)?;
    }
    let limited = |config: &Config| config.max_messages_per_subject > 0;
    same.check("whether max_msgs_per_subject is set", &limited(found), &limited(wanted))
}

/// What is found, with what may change set to what is wanted.
fn updated_stream(found: &Config, wanted: &Config) -> Config {
    Config {
        description: wanted.description.clone(),
        num_replicas: wanted.num_replicas,
        max_bytes: wanted.max_bytes,
        max_messages: wanted.max_messages,
        max_messages_per_subject: wanted.max_messages_per_subject,
        max_message_size: wanted.max_message_size,
        max_age: wanted.max_age,
        duplicate_window: wanted.duplicate_window,
        allow_message_ttl: wanted.allow_message_ttl,
        allow_direct: wanted.allow_direct || found.allow_direct,
        republish: wanted.republish.clone(),
        ..found.clone()
    }
}

/// Makes a consumer what it should be; refuses one that contradicts, naming the setting.
pub async fn apply_consumer(bus: &Bus, consumer: &Consumer) -> Result<(), Error> {
    one_consumer(bus, consumer, Existing::Update).await
}

/// Makes a consumer that is absent, and leaves one that is there as it is.
pub async fn restore_consumer(bus: &Bus, consumer: &Consumer) -> Result<(), Error> {
    one_consumer(bus, consumer, Existing::Keep).await
}

async fn one_consumer(bus: &Bus, consumer: &Consumer, existing: Existing) -> Result<(), Error> {
    let wanted = consumer_config(consumer);
    let stream = bus.js.get_stream_no_info(consumer.stream).await.map_err(nats)?;
    let found = match stream.consumer_info(&consumer.name).await {
        Ok(info) => info.config,
        Err(error) => match error.kind() {
            ConsumerInfoErrorKind::NotFound => {
                return match stream.create_consumer(wanted).await {
                    Ok(_) => {
                        info!(stream = consumer.stream, consumer = %consumer.name, "consumer created");
                        Ok(())
                    }
                    Err(error) => Err(match error.kind() {
                        ConsumerErrorKind::JetStream(server) => {
                            refused(&format!("consumer '{}' of {}", consumer.name, consumer.stream), &server)
                        }
                        _ => nats(error),
                    }),
                };
            }
            _ => return Err(nats(error)),
        },
    };
    if existing == Existing::Keep {
        return Ok(());
    }
    check_consumer(&found, &wanted)?;
    let same = found.ack_wait == wanted.ack_wait
        && found.max_deliver == wanted.max_deliver
        && found.max_ack_pending == wanted.max_ack_pending;
    if !same {
        stream.update_consumer(wanted).await.map_err(nats)?;
        info!(stream = consumer.stream, consumer = %consumer.name, "consumer updated");
    }
    Ok(())
}

fn consumer_config(consumer: &Consumer) -> ConsumerConfig {
    let (priority_policy, priority_groups) = match consumer.pullers {
        Pullers::Equal => (PriorityPolicy::None, Vec::new()),
        Pullers::Prioritized(group) => (PriorityPolicy::Prioritized, vec![group.to_owned()]),
    };
    ConsumerConfig {
        durable_name: Some(consumer.name.clone()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        replay_policy: ReplayPolicy::Instant,
        ack_wait: consumer.ack_wait,
        max_deliver: consumer.deliveries_max,
        filter_subject: consumer.filter.clone(),
        max_waiting: consumer.waiting_max,
        max_ack_pending: consumer.ack_pending_max,
        priority_policy,
        priority_groups,
        ..ConsumerConfig::default()
    }
}

fn check_consumer(found: &AnyConsumer, wanted: &ConsumerConfig) -> Result<(), Error> {
    let same = Same { what: "consumer", name: wanted.durable_name.as_deref().unwrap_or_default() };
    same.check("filter_subject", &found.filter_subject, &wanted.filter_subject)?;
    same.check("filter_subjects", &found.filter_subjects, &wanted.filter_subjects)?;
    same.check("deliver_subject", &found.deliver_subject, &None)?;
    same.check("deliver_policy", &found.deliver_policy, &wanted.deliver_policy)?;
    same.check("ack_policy", &found.ack_policy, &wanted.ack_policy)?;
    same.check("headers_only", &found.headers_only, &false)?;
    same.check("backoff", &found.backoff, &wanted.backoff)?;
    same.check("max_waiting", &found.max_waiting, &wanted.max_waiting)?;
    same.check("priority_policy", &found.priority_policy, &wanted.priority_policy)?;
    same.check("priority_groups", &found.priority_groups, &wanted.priority_groups)
}

/// Comparison of one object's settings.
struct Same<'a> {
    what: &'a str,
    name: &'a str,
}

impl Same<'_> {
    fn check<T: PartialEq + Debug>(&self, setting: &str, found: &T, wanted: &T) -> Result<(), Error> {
        if found == wanted {
            return Ok(());
        }
        let Same { what, name } = self;
        Err(Error::Contradiction(format!(
            "{what} '{name}' has {setting} {found:?}, this fleet needs {wanted:?}: mend or remove the {what}"
        )))
    }
}

fn code(error: &CreateStreamError) -> Option<ErrorCode> {
    match error.kind() {
        CreateStreamErrorKind::JetStream(server) => Some(server.error_code()),
        _ => None,
    }
}

fn refused_stream(name: &str, error: &CreateStreamError) -> Error {
    let what = format!("stream '{name}'");
    match error.kind() {
        CreateStreamErrorKind::JetStream(server) => refused(&what, &server),
        _ => Error::Nats(format!("{what}: {error}")),
    }
}

/// The server's own word: a cluster that has no leader yet, or too few peers, gets over it; what else it refuses, for
/// example subjects that overlap with another's, is a contradiction.
fn refused(what: &str, server: &async_nats::jetstream::Error) -> Error {
    const PASSING: [ErrorCode; 13] = [
        ErrorCode::CLUSTER_NO_PEERS,
        ErrorCode::CLUSTER_INCOMPLETE,
        ErrorCode::CLUSTER_NOT_ACTIVE,
        ErrorCode::CLUSTER_NOT_ASSIGNED,
        ErrorCode::CLUSTER_NOT_AVAILABLE,
        ErrorCode::CLUSTER_NOT_LEADER,
        ErrorCode::CLUSTER_PEER_NOT_MEMBER,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::RAFT_GENERAL,
        ErrorCode::STREAM_NOT_FOUND,
        ErrorCode::STREAM_OFFLINE,
        ErrorCode::STREAM_MOVE_IN_PROGRESS,
        ErrorCode::STREAM_TOO_MANY_REQUESTS,
    ];
    if PASSING.contains(&server.error_code()) {
        return Error::Nats(format!("{what}: {server}"));
    }
    Error::Contradiction(format!("{what}: {server}"))
}

fn nats(error: impl std::fmt::Display) -> Error {
    Error::Nats(error.to_string())
}

#[cfg(test)]
mod tests {
    use protocol::stream;

    use super::*;

    #[test]
    fn only_places_that_name_something_are_born_late() {
        let limits = Limits {
            replicas: 1,
            lane_jobs_max: 1,
            jobs_bytes_max: 1,
            results_bytes_max: 1,
            results_age: std::time::Duration::from_secs(1),
        };
        for stream in streams(&limits) {
            let wanted = stream_config(&stream, 1);
            assert_eq!(wanted.first_sequence, None, "never compared");
            let first = born(&wanted).first_sequence;
            let named_after = [stream::INGRESS, stream::JOBS].contains(&stream.name);
            assert_eq!(first.is_some_and(|first| first > 1_700_000_000_000), named_after);
        }
    }

    #[test]
    fn a_cluster_that_is_not_ready_contradicts_nothing() {
        let refusal = |code: u64, err_code: u64| {
            let said = format!(r#"{{"code":{code},"err_code":{err_code},"description":"x"}}"#);
            refused("stream 'JOBS'", &serde_json::from_str(&said).unwrap())
        };
        for (code, passing) in [(503, 10008), (400, 10005), (503, 10023), (500, 10009), (503, 10004)] {
            assert!(matches!(refusal(code, passing), Error::Nats(_)), "{passing}");
        }
        for (code, lasting) in [(400, 10065), (500, 10074), (500, 10052), (400, 10058)] {
            assert!(matches!(refusal(code, lasting), Error::Contradiction(_)), "{lasting}");
        }
    }
}
