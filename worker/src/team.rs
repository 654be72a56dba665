//! Engines of one model, each with a device of its own: to the worker they are one engine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::Refusal;
use tokio::sync::mpsc::UnboundedSender;

use crate::model::{Cancel, Engine, Event, Life, Prompt, Reading, Stats, Work};
use crate::reader::Stop;

/// Engines that share a model's jobs.
pub struct Team {
    first: Arc<dyn Engine>,
    others: Vec<Arc<dyn Engine>>,
    rounds: Mutex<Rounds>,
}

impl Team {
    /// The engine itself where there is but one.
    #[must_use]
    pub fn of(first: Arc<dyn Engine>, others: Vec<Arc<dyn Engine>>) -> Arc<dyn Engine> {
        match others.is_empty() {
            true => first,
            false => Arc::new(Self { first, others, rounds: Mutex::default() }),
        }
    }

    fn members(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Engine for Team {
    fn read(&self, prompt: &Prompt, stop: &Stop) -> Result<Reading, Refusal> {
        self.first.read(prompt, stop)
    }

    /// To the one with the fewest jobs; of several the first, which remembers most of what was asked last.
    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal> {
        self.members().min_by_key(|member| member.stats().jobs).unwrap_or(&self.first).submit(work, events)
    }

    /// A key is one job's in all of them.
    fn cancel(&self, key: u64, why: Cancel) {
        self.members().for_each(|member| member.cancel(key, why));
    }

    fn stats(&self) -> Stats {
        let stats: Vec<Stats> = self.members().map(|member| member.stats()).collect();
        let ended = stats.iter().any(|stats| stats.life == Life::Ended);
        Stats {
            progress: self.rounds.lock().unwrap_or_else(PoisonError::into_inner).count(&stats),
            jobs: stats.iter().map(|stats| stats.jobs).sum(),
            step: stats.iter().map(|stats| stats.step).fold(Duration::ZERO, Duration::max),
            life: if ended { Life::Ended } else { Life::Running },
        }
    }

    fn stop(&self) {
        self.members().for_each(|member| member.stop());
    }
}

/// Counts how often every member got on or had nothing to do: one that hangs is not hidden by the others.
#[derive(Default)]
struct Rounds {
    done: u64,
    /// Of each member: its progress when it was last looked at, and whether it moved in this round.
    seen: Vec<(u64, bool)>,
}

impl Rounds {
    fn count(&mut self, stats: &[Stats]) -> u64 {
        self.seen.resize(stats.len(), (0, false));
        for ((progress, moved), stats) in self.seen.iter_mut().zip(stats) {
            *moved |= stats.jobs == 0 || stats.progress != *progress;
            *progress = stats.progress;
        }
        if self.seen.iter().all(|(_, moved)| *moved) {
            self.done += 1;
            self.seen.iter_mut().for_each(|(_, moved)| *moved = false);
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Ends, Fake, Mood};
    use crate::model::{Ask, End};
    use engine::encode::Input;
    use std::time::Instant;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn hanging() -> Arc<Fake> {
        Fake::new(Mood { step: Duration::from_millis(1), end: Ends::Hanging })
    }

    fn submit(team: &dyn Engine, key: u64) -> UnboundedReceiver<Event> {
        let (sender, events) = unbounded_channel();
        let ask = Ask::Encode(vec![Input::Tokens(vec![1])]);
        let work = Work { key, ask, deadline: Instant::now() + Duration::from_secs(60) };
        team.submit(work, sender).expect("a fake lets all in");
        events
    }

    #[tokio::test]
    async fn jobs_go_where_the_fewest_are_and_a_cancel_finds_them() {
        let (first, second) = (hanging(), hanging());
        let team = Team::of(first.clone(), vec![second.clone()]);
        let mut events: Vec<_> = (1..=4).map(|key| submit(team.as_ref(), key)).collect();
        assert_eq!((first.submitted(), second.submitted(), team.stats().jobs), (2, 2, 4));
        team.cancel(2, Cancel::Client);
        assert_eq!(events[1].recv().await, Some(Event::Ended(End::Cancelled)));
        drop(submit(team.as_ref(), 5));
        assert_eq!((first.submitted(), second.submitted()), (2, 3), "it has room again");
    }

    #[test]
    fn a_member_that_hangs_is_not_hidden_by_one_that_gets_on() {
        let stats = |progress, jobs| Stats { progress, jobs, ..Stats::default() };
        let mut rounds = Rounds::default();
        let before = rounds.count(&[stats(5, 1), stats(7, 1)]);
        for progress in 6..20 {
            assert_eq!(rounds.count(&[stats(progress, 1), stats(7, 1)]), before, "the second hangs");
        }
        assert!(rounds.count(&[stats(20, 1), stats(8, 1)]) > before, "it was only long");
        let before = rounds.count(&[stats(20, 0), stats(8, 0)]);
        assert!(rounds.count(&[stats(21, 1), stats(8, 0)]) > before, "who has nothing to do hangs nobody");
    }
}
