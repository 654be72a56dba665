//! How a delivery ends, as a value: a total function of what happened, whose fault it is, the attempt and the deadline.
//! Pure; [`crate::settle`] acts on it.

use std::time::Duration;

use protocol::answer::Answer;
use protocol::record::End;
use protocol::stream::{ATTEMPTS_MAX, DELIVERIES_MAX};
use protocol::{ErrorCode, Fault, Refusal};

/// What came of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// An answer.
    Answered(Answer),
    /// A refusal or a failure; its code says whose fault it is.
    Refused(Refusal),
    /// The worker stops, or somebody else comes first: nothing was tried.
    Untried(Why),
    /// Every attempt that the job has was begun, and none came to an end.
    Exhausted,
}

/// Why nothing was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The worker stops: somebody else may have it at once.
    Stopping,
    /// An earlier turn of its session is not settled, or another job is to compute alone first.
    Waits,
}

/// What a verdict depends on, besides what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Which delivery this is, from 1.
    pub delivered: u32,
    /// Earlier deliveries that do not count as attempts.
    pub forgiven: u32,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// The job's deadline, in milliseconds since 1970.
    pub deadline_ms: u64,
}

/// Whether a delivery counts as an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It does.
    Counts,
    /// It does not.
    Forgiven,
}

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The job is over: this is its end, unless somebody stored another before.
    Settled(End),
    /// Another delivery may do it.
    GiveBack {
        /// Not before.
        delay: Duration,
        /// What it costs.
        attempt: Attempt,
    },
    /// The job cannot be done; it stands in the dead-letter stream and its sender is told.
    DeadLetter {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// The word in logs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Outcome::Settled(End::Done(_)) => "done",
            Outcome::Settled(End::Failed(refusal)) => refusal.code.as_str(),
            Outcome::GiveBack { .. } => "give_back",
            Outcome::DeadLetter { .. } => "dead_letter",
        }
    }
}

/// First delay of a delivery that is given back without a fault.
const PATIENCE_FIRST: Duration = Duration::from_millis(150);
/// Its greatest: with it, [`DELIVERIES_MAX`] deliveries outlast the greatest deadline.
const PATIENCE_MOST: Duration = Duration::from_secs(90);
/// Delay after a first fault of ours.
const FAULT_FIRST: Duration = Duration::from_millis(500);
/// A message that the server delivered [`DELIVERIES_MAX`] times is never seen again, so the end comes before.
const DELIVERIES_SPARE: u32 = 8;

impl Case {
    /// Attempts that were begun before this one.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.delivered.saturating_sub(1).saturating_sub(self.forgiven)
    }
}

/// Whether no further delivery may be asked for.
#[must_use]
pub const fn last_delivery(delivered: u32) -> bool {
    delivered as i64 + DELIVERIES_SPARE as i64 >= DELIVERIES_MAX
}

/// The verdict.
#[must_use]
pub fn outcome(ending: Ending, case: &Case) -> Outcome {
    let refusal = match ending {
        Ending::Answered(answer) => return Outcome::Settled(End::Done(answer)),
        Ending::Refused(refusal) if is_final(&refusal) => return Outcome::Settled(End::Failed(refusal)),
        Ending::Exhausted => {
            return Outcome::DeadLetter { reason: format!("{} attempts ended without a verdict", case.attempts()) };
        }
        _ if case.now_ms >= case.deadline_ms => return Outcome::Settled(End::Failed(late())),
        Ending::Untried(Why::Stopping) => return give_back(Duration::ZERO, Attempt::Forgiven, case),
        Ending::Untried(Why::Waits) => return give_back(patience(case.delivered), Attempt::Forgiven, case),
        Ending::Refused(refusal) => refusal,
    };
    match refusal.code.fault() {
        Fault::Passing => give_back(patience(case.delivered), Attempt::Forgiven, case),
        Fault::Sender | Fault::Ours if case.attempts() + 1 < ATTEMPTS_MAX => {
            give_back(FAULT_FIRST * 2_u32.pow(case.attempts()), Attempt::Counts, case)
        }
        Fault::Sender | Fault::Ours => Outcome::DeadLetter { reason: refusal.to_string() },
    }
}

/// What a client is told whose deadline passed.
#[must_use]
pub fn late() -> Refusal {
    Refusal::new(ErrorCode::DeadlineExceeded, "the deadline passed before the answer")
}

/// Whether another attempt would end the same way.
fn is_final(refusal: &Refusal) -> bool {
    let over = matches!(refusal.code, ErrorCode::DeadlineExceeded | ErrorCode::SessionConflict);
    over || refusal.code.fault() == Fault::Sender
}

fn give_back(delay: Duration, attempt: Attempt, case: &Case) -> Outcome {
    if last_delivery(case.delivered) {
        return Outcome::DeadLetter { reason: format!("given back {} times", case.delivered) };
    }
    // Whatever becomes of it, its sender hears at the deadline.
    let left = Duration::from_millis(case.deadline_ms.saturating_sub(case.now_ms));
    Outcome::GiveBack { delay: delay.min(left), attempt }
}

/// How long to wait for something that passes. A fifth longer each time, so at most a fifth longer than it had to be.
#[must_use]
pub fn patience(delivered: u32) -> Duration {
    let grown = PATIENCE_FIRST.as_secs_f64() * 1.2_f64.powi(delivered.saturating_sub(1).min(100).cast_signed());
    Duration::from_secs_f64(grown.min(PATIENCE_MOST.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::request::DEADLINE_MAX;

    use super::*;

    const CASE: Case = Case { delivered: 1, forgiven: 0, now_ms: 1000, deadline_ms: 61_000 };

    fn refused(code: ErrorCode) -> Ending {
        Ending::Refused(Refusal::new(code, "x"))
    }

    #[test]
    fn the_senders_fault_ends_at_the_first_attempt() {
        for code in ErrorCode::ALL.into_iter().filter(|code| code.fault() == Fault::Sender) {
            assert!(
                matches!(outcome(refused(code), &CASE), Outcome::Settled(End::Failed(refusal)) if refusal.code == code)
            );
        }
    }

    #[test]
    fn our_fault_has_a_number_of_attempts_and_then_is_a_dead_letter() {
        for delivered in 1..=ATTEMPTS_MAX {
            let verdict = outcome(refused(ErrorCode::Internal), &Case { delivered, ..CASE });
            match delivered {
                ATTEMPTS_MAX => assert!(matches!(verdict, Outcome::DeadLetter { .. })),
                _ => assert!(matches!(verdict, Outcome::GiveBack { attempt: Attempt::Counts, .. })),
            }
        }
    }

    #[test]
    fn what_passes_is_no_attempt_however_often() {
        for delivered in [1, 5, 100, 900] {
            let case = Case { delivered, forgiven: delivered - 1, ..CASE };
            for ending in [refused(ErrorCode::Unavailable), Ending::Untried(Why::Waits), Ending::Untried(Why::Stopping)]
            {
                let verdict = outcome(ending, &case);
                assert!(matches!(verdict, Outcome::GiveBack { attempt: Attempt::Forgiven, .. }), "{verdict:?}");
            }
        }
    }

    #[test]
    fn patience_outlasts_every_deadline_before_the_server_gives_up() {
        let spare = u32::try_from(DELIVERIES_MAX).unwrap() - DELIVERIES_SPARE;
        let total: Duration = (1..spare).map(patience).sum();
        assert!(total > DEADLINE_MAX, "{total:?}");
        assert_eq!(patience(1), PATIENCE_FIRST);
    }

    fn endings() -> impl Strategy<Value = Ending> {
        let refused = (0..ErrorCode::ALL.len()).prop_map(|index| refused(ErrorCode::ALL[index]));
        let why = prop_oneof![Just(Why::Stopping), Just(Why::Waits)].prop_map(Ending::Untried);
        prop_oneof![refused, why, Just(Ending::Exhausted)]
    }

    proptest! {
        #[test]
        fn a_verdict_never_outlives_the_deadline_or_the_server(
            ending in endings(), delivered in 1_u32..3000, forgiven in 0_u32..3000, now in 0_u64..200_000,
        ) {
            let case = Case { delivered, forgiven, now_ms: now, deadline_ms: 100_000 };
            match outcome(ending.clone(), &case) {
                Outcome::GiveBack { delay, .. } => {
                    prop_assert!(now < case.deadline_ms);
                    prop_assert!(now + u64::try_from(delay.as_millis()).unwrap() <= case.deadline_ms);
                    prop_assert!(i64::from(delivered) < DELIVERIES_MAX);
                }
                Outcome::DeadLetter { .. } => prop_assert!(
                    ending == Ending::Exhausted
                        || case.attempts() + 1 >= ATTEMPTS_MAX
                        || i64::from(delivered + DELIVERIES_SPARE) >= DELIVERIES_MAX
                ),
                Outcome::Settled(End::Failed(refusal)) => {
                    prop_assert!(refusal.code.fault() != Fault::Ours, "our fault is never final without a dead letter");
                }
                Outcome::Settled(End::Done(_)) => prop_assert!(false, "nothing was answered"),
            }
        }
    }
}
