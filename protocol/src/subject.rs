//! The only place where a subject is written or read.

use crate::error::Refusal;
use crate::media::Modality;
use crate::request::Priority;
use crate::token::{SessionId, Token};

/// The interactive door: a core request, answered to its inbox. No stream may capture it.
pub const INFER: &str = "infer";
/// The stored result of a job; body: job id.
pub const INFER_RESULT: &str = "infer.result";
/// Cancels a job; body: job id.
pub const INFER_CANCEL: &str = "infer.cancel";
/// The turns of a session; body: session id.
pub const SESSIONS_GET: &str = "infer.sessions.get";
/// Forgets a session; body: session id.
pub const SESSIONS_FORGET: &str = "infer.sessions.forget";
/// The durable door of all tenants.
pub const SUBMIT_ALL: &str = "submit.*";
/// Every lane.
pub const JOBS_ALL: &str = "jobs.*.*.*";
/// Every result.
pub const RESULTS_ALL: &str = "result.*.*";
/// Every id record.
pub const IDS_ALL: &str = "id.*.*";
/// Every forgiven delivery.
pub const FORGIVEN_ALL: &str = "forgiven.*.*";
/// Every forgotten session.
pub const FORGOTTEN_ALL: &str = "forgotten.*.*";
/// What every step gave.
pub const STEPS_ALL: &str = "step.*.*.*";
/// Every dead letter.
pub const DEAD_ALL: &str = "dead.*.*";
/// Every cancellation as it is made.
pub const CANCEL_ALL: &str = "cancel.*.*";
/// Every heartbeat.
pub const HEARTBEAT_ALL: &str = "fleet.worker.*";

/// Longest reply-to.
pub const REPLY_TO_LENGTH_MAX: usize = 256;

/// First tokens of subjects that belong to the fleet: no answer may be sent there.
const ROOTS: [&str; 13] = [
    "infer",
    "submit",
    "jobs",
    "result",
    "done",
    "id",
    "forgiven",
    "forgotten",
    "dead",
    "cancel",
    "fleet",
    "step",
    "t",
];

/// The interactive door that skips sniffing.
#[must_use]
pub fn infer_of(modality: Modality) -> String {
    format!("{INFER}.{}", modality.as_str())
}

/// The durable door of one tenant.
#[must_use]
pub fn submit(tenant: &Token) -> String {
    format!("submit.{tenant}")
}

/// The tenant of a message at the durable door.
pub fn submit_tenant(subject: &str) -> Result<Token, Refusal> {
    Token::parse("tenant", subject.strip_prefix("submit.").unwrap_or_default())
}

/// The queue of one modality, model and priority.
#[must_use]
pub fn lane(modality: Modality, model: &str, priority: Priority) -> String {
    format!("jobs.{}.{}.{}", modality.as_str(), slug(model), priority.as_str())
}

/// Name of the durable consumer of that queue.
#[must_use]
pub fn lane_consumer(modality: Modality, model: &str, priority: Priority) -> String {
    format!("{}-{}-{}", modality.as_str(), slug(model), priority.as_str())
}

/// Where a worker asks a consumer for messages: the server's own API.
#[must_use]
pub fn next_message(stream: &str, consumer: &str) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")
}

/// Where a NATS micro service is asked `PING`, `INFO` or `STATS`: with all others, by its name, and by itself.
#[must_use]
pub fn service(verb: &str, name: &str, id: &str) -> [String; 3] {
    [format!("$SRV.{verb}"), format!("$SRV.{verb}.{name}"), format!("$SRV.{verb}.{name}.{id}")]
}

/// The one final record of a job.
#[must_use]
pub fn result(tenant: &Token, job: &Token) -> String {
    format!("result.{tenant}.{job}")
}

/// Where the headers of that record are republished as it is stored.
#[must_use]
pub fn done(tenant: &Token, job: &Token) -> String {
    format!("done.{tenant}.{job}")
}

/// What an id was first used for.
#[must_use]
pub fn id(tenant: &Token, job: &Token) -> String {
    format!("id.{tenant}.{job}")
}

/// Deliveries of a job that do not count as attempts.
#[must_use]
pub fn forgiven(tenant: &Token, job: &Token) -> String {
    format!("forgiven.{tenant}.{job}")
}

/// That a session was forgotten. Sessions have free names, so the subject holds a hash of it.
#[must_use]
pub fn forgotten(tenant: &Token, session: &SessionId) -> String {
    let hash = blake3::hash(session.as_str().as_bytes()).to_hex();
    format!("forgotten.{tenant}.{hash}")
}

/// What a step of a job gave, by the step's number.
#[must_use]
pub fn step(tenant: &Token, job: &Token, number: u32) -> String {
    format!("step.{tenant}.{job}.{number}")
}

/// Tenant and job of what a step gave.
#[must_use]
pub fn step_job(subject: &str) -> Option<(Token, Token)> {
    tenant_and_job(subject.rsplit_once('.')?.0, "step")
}

/// A job that could not be done, with its reason.
#[must_use]
pub fn dead(tenant: &Token, job: &Token) -> String {
    format!("dead.{tenant}.{job}")
}

/// Tells workers that a job is cancelled.
#[must_use]
pub fn cancel(tenant: &Token, job: &Token) -> String {
    format!("cancel.{tenant}.{job}")
}

/// Tenant and job of a cancellation.
#[must_use]
pub fn cancel_job(subject: &str) -> Option<(Token, Token)> {
    tenant_and_job(subject, "cancel")
}

/// What one worker says of itself.
#[must_use]
pub fn heartbeat(worker: &Token) -> String {
    format!("fleet.worker.{worker}")
}

fn tenant_and_job(subject: &str, root: &str) -> Option<(Token, Token)> {
    let rest = subject.strip_prefix(root)?.strip_prefix('.')?;
    let (tenant, job) = rest.split_once('.')?;
    Some((Token::parse("tenant", tenant).ok()?, Token::parse("job", job).ok()?))
}

/// A model's name as one subject token, one to one: what is not a lower-case letter, a digit or `-` becomes `_` and two hexadecimal digits.
#[must_use]
pub fn slug(model: &str) -> String {
    let mut slug = String::with_capacity(model.len());
    for byte in model.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => slug.push(char::from(byte)),
            other => slug.push_str(&format!("_{other:02x}")),
        }
    }
    slug
}

/// Refuses a reply-to that would make a worker publish where a client could not.
pub fn check_reply_to(subject: &str) -> Result<(), Refusal> {
    let server_made = subject.starts_with("_R_.") || subject.starts_with("_GR_.");
    let bad_character = |c: char| c.is_whitespace() || c.is_control() || "*>".contains(c) || (c == '$' && !server_made);
    // Which nearly all are, and what is seen at once.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' || byte == b'-';
    let bad = !subject.bytes().all(plain) && subject.contains(bad_character);
    if subject.len() > REPLY_TO_LENGTH_MAX || subject.is_empty() || bad {
        return Err(Refusal::invalid(format!(
            "reply-to must be a plain subject of at most {REPLY_TO_LENGTH_MAX} bytes without '$', wildcards or spaces"
        )));
    }
    if subject.starts_with('.') || subject.ends_with('.') || subject.contains("..") {
        return Err(Refusal::invalid("reply-to has an empty token"));
    }
    let root = subject.split('.').next().unwrap_or_default();
    if ROOTS.contains(&root) {
        return Err(Refusal::invalid(format!("reply-to may not be under '{root}', which belongs to the fleet")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_tokens_and_one_to_one() {
        assert_eq!(slug("smollm2-135m-instruct"), "smollm2-135m-instruct");
        assert_eq!(slug("Qwen/Q.5"), "_51wen_2f_51_2e5");
        assert_ne!(slug("a.b"), slug("a_2eb"));
    }

    #[test]
    fn reply_to_stays_out_of_the_fleet_and_the_server() {
        for good in ["_INBOX.abc.1", "my.answers", "_R_.x.$y"] {
            assert!(check_reply_to(good).is_ok(), "{good}");
        }
        let long = "x".repeat(257);
        for bad in [
            "",
            "$JS.API.STREAM.PURGE.JOBS",
            "result.default.x",
            "infer",
            "submit.default",
            "a.*",
            "a.>",
            "a b",
            "a..b",
            "x.$y",
            &long,
        ] {
            assert!(check_reply_to(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subjects_read_back() {
        let (tenant, job) = (Token::default_tenant(), Token::parse("job", "j1").unwrap());
        assert_eq!(cancel_job(&cancel(&tenant, &job)), Some((tenant.clone(), job)));
        assert_eq!(submit_tenant(&submit(&tenant)).unwrap(), tenant);
        let job = Token::parse("job", "j1").unwrap();
        assert_eq!(step_job(&step(&tenant, &job, 7)), Some((tenant, job)));
        assert_eq!(step_job("step.x"), None);
    }
}
