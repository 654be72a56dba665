//! What the worker measures: names, labels, units and help, all of them here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

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

/// How a job ends that has an answer; others end by an error code.
const DONE: &str = "done";

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

/// What is measured of every job of a model, looked up once: that takes longer than to count.
#[derive(Clone)]
pub struct Meters {
    model: String,
    waited: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    done: (Counter, Histogram),
    answered: Arc<AtomicU64>,
}

impl Meters {
    /// Those of one model.
    #[must_use]
    pub fn of(model: &str) -> Self {
        let of_model = |name| histogram!(name, "model" => model.to_owned());
        Self {
            model: model.to_owned(),
            waited: of_model(ADMITTED_AFTER),
            first_token: of_model(FIRST_TOKEN),
            between_tokens: of_model(BETWEEN_TOKENS),
            done: ended(model, DONE),
            answered: Arc::default(),
        }
    }

    /// A job is looked at for the first time.
    pub fn admitted(&self, waited: Duration) {
        self.waited.record(waited);
    }

    /// The first text of an answer.
    pub fn first_token(&self, after: Duration) {
        self.first_token.record(after);
    }

    /// One more piece of an answer.
    pub fn token(&self, after: Duration) {
        self.between_tokens.record(after);
    }

    /// A job has its answer.
    pub fn done(&self, took: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        count((&self.done.0, &self.done.1), took);
    }

    /// Jobs that have theirs.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// A job is over without one.
    pub fn failed(&self, code: &'static str, took: Duration) {
        let (jobs, durations) = ended(&self.model, code);
        count((&jobs, &durations), took);
        counter!(ERRORS, "code" => code).increment(1);
    }
}

fn ended(model: &str, outcome: &'static str) -> (Counter, Histogram) {
    (
        counter!(JOBS, "model" => model.to_owned(), "outcome" => outcome),
        histogram!(JOB, "model" => model.to_owned(), "outcome" => outcome),
    )
}

fn count((jobs, durations): (&Counter, &Histogram), took: Duration) {
    jobs.increment(1);
    durations.record(took);
}

/// A job was delivered before.
pub fn redelivered() {
    counter!(REDELIVERED).increment(1);
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
