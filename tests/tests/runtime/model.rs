//! The session scripts against a small model, over random operations. A failure prints its seed.

use std::collections::{BTreeMap, BTreeSet};

use protocol::job::Turn;
use protocol::record::SessionTurn;
use protocol::token::{SessionId, Token};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redis::aio::MultiplexedConnection;
use runtime::Error;
use runtime::sessions::{Begin, Bounds, Sessions};
use serde::Serialize;
use tests::servers::RedisServer;

use crate::sessions::{held, raw};
use crate::setup::{job, session, tenant, turn};

const SEEDS: u64 = 150;
const STEPS: usize = 80;
const JOBS: u64 = 14;

fn bounds() -> Bounds {
    Bounds { open_max: 4, turns_max: 4, bytes_max: 700, settled_max: 6, ..Bounds::default() }
}

#[derive(Clone, Copy, PartialEq)]
enum Open {
    Reserved,
    Lapsed,
    Confirmed,
}

/// What a session is, in the plainest words.
#[derive(Default)]
struct Model {
    tail: u64,
    floor: u64,
    open: BTreeMap<String, (u64, Open)>,
    settled: BTreeSet<(u64, String)>,
    turns: Vec<(SessionTurn, usize)>,
}

impl Model {
    fn settled(&self, job: &str) -> Option<u64> {
        self.settled.iter().find(|(_, name)| name == job).map(|(number, _)| *number)
    }

    fn reserve(&mut self, job: &str) -> Option<u64> {
        if let Some((number, _)) = self.open.get(job) {
            return Some(*number);
        }
        if let Some(number) = self.settled(job) {
            return Some(number);
        }
        let most = usize::try_from(bounds().open_max).unwrap();
        if self.open.len() >= most {
            self.open.retain(|_, (_, state)| *state != Open::Lapsed);
        }
        if self.open.len() >= most {
            return None;
        }
        self.tail += 1;
        self.open.insert(job.to_owned(), (self.tail, Open::Reserved));
        Some(self.tail)
    }

    fn confirm(&mut self, job: &str) {
        if let Some((_, state)) = self.open.get_mut(job) {
            *state = Open::Confirmed;
        }
    }

    fn begin(&mut self, job: &str, number: u64) -> Begin {
        let over = self.settled(job);
        let mine = match (self.open.get(job), over) {
            (Some((mine, _)), _) => *mine,
            (None, Some(over)) => over,
            (None, None) => self.begin_unknown(number),
        };
        if over.is_none() {
            self.open.insert(job.to_owned(), (mine, Open::Confirmed));
        }
        if mine != number {
            return Begin::Moved(mine);
        }
        if over.is_none() {
            self.open.retain(|_, (other, state)| *other >= mine || *state != Open::Lapsed);
            if self.open.values().any(|(other, _)| *other < mine) {
                return Begin::Waits;
            }
        }
        let earlier = self.turns.iter().map(|(turn, _)| turn).filter(|turn| turn.number < mine);
        Begin::Ready(earlier.cloned().collect())
    }

    fn begin_unknown(&mut self, number: u64) -> u64 {
        if number > self.tail {
            for missing in (self.tail + 1).max(number.saturating_sub(bounds().open_max))..number {
                self.open.insert(format!("?{missing}"), (missing, Open::Reserved));
            }
            self.tail = number;
            return number;
        }
        if self.open.remove(&format!("?{number}")).is_some() {
            return number;
        }
        self.tail += 1;
        self.tail
    }

    fn settle(&mut self, job: &str, turn: &SessionTurn) {
        let bounds = bounds();
        self.open.remove(job);
        self.open.remove(&format!("?{}", turn.number));
        if self.settled(job).is_some() || turn.number <= self.floor {
            return;
        }
        self.settled.insert((turn.number, job.to_owned()));
        self.tail = self.tail.max(turn.number);
        while self.settled.len() as u64 > bounds.settled_max {
            self.floor = self.settled.pop_first().map_or(0, |(number, _)| number);
        }
        if turn.answer.is_some() {
            self.turns.push((turn.clone(), kept_bytes(job, turn)));
            self.turns.sort_by_key(|(turn, _)| turn.number);
            while self.turns.len() as u64 > bounds.turns_max || self.bytes() > bounds.bytes_max {
                self.turns.remove(0);
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.turns.iter().map(|(_, bytes)| *bytes as u64).sum()
    }
}

/// How many bytes a turn takes in Redis.
fn kept_bytes(name: &str, turn: &SessionTurn) -> usize {
    #[derive(Serialize)]
    struct Kept<'a> {
        job: Token,
        turn: &'a SessionTurn,
    }
    rmp_serde::to_vec_named(&Kept { job: job(name), turn }).unwrap().len()
}

/// Makes every reservation older than its hold.
async fn lapse(redis: &mut MultiplexedConnection, model: &mut Model, session: &SessionId) {
    let key = format!("session:{{default:{}}}:open", session.as_str());
    let entries: BTreeMap<String, String> = redis::cmd("HGETALL").arg(&key).query_async(redis).await.unwrap();
    for (field, entry) in entries {
        if let Some((number, _)) = entry.split_once(":r:") {
            let () =
                redis::cmd("HSET").arg(&key).arg(&field).arg(format!("{number}:r:0")).query_async(redis).await.unwrap();
        }
    }
    for (_, state) in model.open.values_mut() {
        if *state == Open::Reserved {
            *state = Open::Lapsed;
        }
    }
}

struct Trial {
    sessions: Sessions,
    redis: MultiplexedConnection,
    session: SessionId,
    model: Model,
    random: StdRng,
    /// Numbers as jobs and workers know them.
    numbers: BTreeMap<String, u64>,
    /// What came to pass, so that a trial that tries nothing is noticed.
    seen: BTreeSet<&'static str>,
}

impl Trial {
    async fn step(&mut self) {
        let name = format!("j{}", self.random.random_range(0..JOBS));
        let (tenant, session) = (tenant(), self.session.clone());
        match self.random.random_range(0..100) {
            0..25 => {
                let expected = self.model.reserve(&name);
                let got = self.sessions.reserve(&tenant, &session, &job(&name)).await;
                match (expected, got) {
                    (Some(number), got) => {
                        assert_eq!(got.unwrap(), number, "reserve {name}");
                        self.numbers.insert(name, number);
                    }
                    (None, got) => {
                        assert!(matches!(got, Err(Error::Full(_))), "reserve {name}: {got:?}");
                        self.seen.insert("full");
                    }
                }
            }
            25..40 => {
                self.model.confirm(&name);
                self.sessions.confirm(&tenant, &session, &job(&name)).await.unwrap();
            }
            40..65 => self.begin(&name).await,
            65..90 => self.settle(&name).await,
            90..96 => lapse(&mut self.redis, &mut self.model, &session).await,
            _ => {
                let got = self.sessions.get(&tenant, &session).await.unwrap().unwrap_or_default();
                let expected: Vec<SessionTurn> = self.model.turns.iter().map(|(turn, _)| turn.clone()).collect();
                assert_eq!(got, expected, "get");
            }
        }
    }

    async fn begin(&mut self, name: &str) {
        // Now and then a job that Redis never saw, as after a loss.
        let lost = self.random.random_range(1..=self.model.tail + 3);
        let number = *self.numbers.entry(name.to_owned()).or_insert(lost);
        let turn = Turn { session: self.session.clone(), number };
        let got = self.sessions.begin(&tenant(), &turn, &job(name)).await.unwrap();
        assert_eq!(got, self.model.begin(name, number), "begin {name} {number}");
        self.seen.insert(match got {
            Begin::Moved(to) => {
                self.numbers.insert(name.to_owned(), to);
                "moved"
            }
            Begin::Waits => "waits",
            Begin::Ready(history) if history.len() as u64 == bounds().turns_max => "full history",
            Begin::Ready(_) => "ready",
        });
    }

    async fn settle(&mut self, name: &str) {
        let Some(&number) = self.numbers.get(name) else { return };
        // Only who began has an answer; everything else may end at any time.
        let began = self.model.open.get(name) == Some(&(number, Open::Confirmed));
        let text = "x".repeat(self.random.random_range(1..120));
        let answer = (began && self.random.random_bool(0.8)).then_some(text.as_str());
        let turn = turn(self.session.as_str(), number, answer);
        for _ in 0..self.random.random_range(1..3) {
            self.model.settle(name, &turn);
            self.sessions.settle(&tenant(), &turn, &job(name)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_scripts_are_the_model() {
    let server = RedisServer::start();
    let sessions = held(&server, bounds()).await;
    let base: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let mut seen = BTreeSet::new();
    for seed in (0..SEEDS).map(|n| base.wrapping_add(n)) {
        println!("SEED={seed}");
        let mut trial = Trial {
            sessions: sessions.clone(),
            redis: raw(&server).await,
            session: session(&format!("s{seed}")),
            model: Model::default(),
            random: StdRng::seed_from_u64(seed),
            numbers: BTreeMap::new(),
            seen: BTreeSet::new(),
        };
        for _ in 0..STEPS {
            trial.step().await;
        }
        if trial.model.floor > 0 {
            seen.insert("floor");
        }
        if trial.model.open.keys().any(|name| name.starts_with('?')) {
            seen.insert("held places");
        }
        seen.extend(trial.seen);
    }
    let all = ["floor", "full", "full history", "held places", "moved", "ready", "waits"];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
}
