//! What the worker measures: names, labels, units and help, all of them here.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const ADMITTED_AFTER: &str = "flotilla_queue_wait_seconds";
const FIRST_TOKEN: &str = "flotilla_time_to_first_token_seconds";
const BETWEEN_TOKENS: &str = "flotilla_inter_token_seconds";
const JOB: &str = "flotilla_job_duration_seconds";
const IN_FLIGHT: &str = "flotilla_jobs_inflight";
const HELD: &str = "flotilla_jobs_held";
const SLOTS: &str = "flotilla_slots";
const JOBS: &str = "flotilla_jobs_total";
const REDELIVERED: &str = "flotilla_jobs_redelivered_total";
const DEAD: &str = "flotilla_jobs_dead_letter_total";
const GIVEN_BACK: &str = "flotilla_jobs_given_back_total";
const ERRORS: &str = "flotilla_errors_total";
const RACES: &str = "flotilla_results_lost_races_total";
const PULLS: &str = "flotilla_pulls_overdue_total";
const ENGINE_JOBS: &str = "flotilla_engine_jobs";

/// Says what each of them is; once, at start.
pub fn describe() {
    describe_histogram!(ADMITTED_AFTER, Unit::Seconds, "from the door's receipt to a worker's look at the job");
    describe_histogram!(FIRST_TOKEN, Unit::Seconds, "from the door's receipt to the first text");
    describe_histogram!(BETWEEN_TOKENS, Unit::Seconds, "from one piece of text to the next");
    describe_histogram!(JOB, Unit::Seconds, "from a worker's look at a job to its end");
    describe_gauge!(IN_FLIGHT, "jobs in a slot");
    describe_gauge!(HELD, "deliveries that wait for a slot");
    describe_gauge!(SLOTS, "jobs that may run at once");
    describe_counter!(JOBS, "jobs settled, by how they ended: done, or an error code");
    describe_counter!(REDELIVERED, "deliveries of jobs that were delivered before");
    describe_counter!(DEAD, "jobs that became dead letters, by reason");
    describe_counter!(GIVEN_BACK, "deliveries given back, by whether they count as an attempt");
    describe_counter!(ERRORS, "jobs that failed, by error code");
    describe_counter!(RACES, "answers that came after somebody else's");
    describe_counter!(PULLS, "pulls that the server never answered");
    describe_gauge!(ENGINE_JOBS, "jobs in the engine");
}

/// A job is looked at for the first time.
pub fn admitted(model: &str, waited: Duration) {
    histogram!(ADMITTED_AFTER, "model" => model.to_owned()).record(waited);
}

/// A job was delivered before.
pub fn redelivered() {
    counter!(REDELIVERED).increment(1);
}

/// The first text of an answer.
pub fn first_token(model: &str, after: Duration) {
    histogram!(FIRST_TOKEN, "model" => model.to_owned()).record(after);
}

/// One more piece of an answer.
pub fn token(model: &str, after: Duration) {
    histogram!(BETWEEN_TOKENS, "model" => model.to_owned()).record(after);
}

/// A job is over: `outcome` is `done` or an error code.
pub fn settled(model: &str, outcome: &'static str, took: Duration) {
    counter!(JOBS, "model" => model.to_owned(), "outcome" => outcome).increment(1);
    histogram!(JOB, "model" => model.to_owned(), "outcome" => outcome).record(took);
    if outcome != "done" {
        counter!(ERRORS, "code" => outcome).increment(1);
    }
}

/// A job is a dead letter. `reason` is one of few words.
pub fn dead_letter(reason: &'static str) {
    counter!(DEAD, "reason" => reason).increment(1);
}

/// A delivery was given back.
pub fn given_back(attempt: &'static str) {
    counter!(GIVEN_BACK, "attempt" => attempt).increment(1);
}

/// Somebody else's record was there before.
pub fn lost_race() {
    counter!(RACES).increment(1);
}

/// Pulls without an answer.
pub fn overdue(pulls: usize) {
    counter!(PULLS).increment(pulls as u64);
}

/// Where the slots stand.
pub fn slots(all: usize, in_flight: usize, held: usize) {
    gauge!(SLOTS).set(all as f64);
    gauge!(IN_FLIGHT).set(in_flight as f64);
    gauge!(HELD).set(held as f64);
}

/// Where an engine stands.
pub fn engine(model: &str, jobs: usize) {
    gauge!(ENGINE_JOBS, "model" => model.to_owned()).set(jobs as f64);
}
