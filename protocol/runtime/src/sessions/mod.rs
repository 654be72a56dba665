//! Sessions in Redis: one script an operation, and the whole can be rebuilt from RESULTS.
//!
//! A turn is bound to its job and reserved at admission; it counts once it is confirmed or begun, and is void where
//! neither came in time. Turns are begun in order, and every outcome settles its turn.

mod rebuild;
mod script;
mod void;

use std::time::Duration;

use protocol::job::Turn;
use protocol::record::SessionTurn;
use protocol::request::DEADLINE_MAX;
use protocol::token::{SessionId, Token};
use serde::{Deserialize, Serialize};

use crate::config::Redis;
use crate::store::Store;
use crate::{Bus, Error};

pub use rebuild::Rebuilt;
use script::Scripts;
pub use void::Moment;

/// What a session may hold, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A session that nobody uses for so long is gone.
    pub ttl: Duration,
    /// A reservation that is neither confirmed nor begun within this is void.
    pub hold: Duration,
    /// An open turn older than any deadline keeps nobody waiting.
    pub void_after: Duration,
    /// Most turns that are not settled.
    pub open_max: u64,
    /// Most turns of a conversation; the oldest go first.
    pub turns_max: u64,
    /// Most bytes of a conversation; the oldest turns go first.
    pub bytes_max: u64,
    /// How many settled jobs are known, so that settling twice does nothing.
    pub settled_max: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            hold: Duration::from_secs(5),
            void_after: DEADLINE_MAX,
            open_max: 256,
            turns_max: 200,
            bytes_max: 1024 * 1024,
            settled_max: 1024,
        }
    }
}

/// What a worker that holds a turn is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Begin {
    /// All earlier turns are settled or void: these are the conversation, oldest first, every one with its answer.
    Ready(Vec<SessionTurn>),
    /// An earlier turn is not settled yet.
    Waits,
    /// The turn was void and others have passed it: it is this number now. Begin again with it.
    Moved(u64),
}

/// A turn as it stands in Redis. The job makes it unique.
#[derive(Serialize, Deserialize)]
struct Kept {
    job: Token,
    turn: SessionTurn,
}

/// The sessions; cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    store: Store,
    scripts: Scripts,
    bounds: Bounds,
}

impl Sessions {
    /// Does not wait for Redis: what needs it fails with [`Error::RedisDown`] until it is there.
    pub fn new(redis: &Redis) -> Result<Self, Error> {
        Self::with_bounds(redis, Bounds::default())
    }

    /// The same, with bounds of one's own; all processes of a fleet need the same.
    pub fn with_bounds(redis: &Redis, bounds: Bounds) -> Result<Self, Error> {
        Ok(Self { store: Store::new(&redis.sessions, "sessions")?, scripts: Scripts::new(), bounds })
    }

    /// Whether Redis answered last.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.store.healthy()
    }

    /// Gives a job its turn; the same job always gets the same. Void unless confirmed or begun within 5 s.
    pub async fn reserve(&self, tenant: &Token, session: &SessionId, job: &Token) -> Result<u64, Error> {
        self.check_held().await?;
        let mut call = self.scripts.reserve(&self.bounds, tenant, session);
        let number: i64 = self.store.run(call.arg(job.as_str())).await?;
        u64::try_from(number)
            .map_err(|_| Error::Full(format!("{} turns of the session are under way", self.bounds.open_max)))
    }

    /// The job of a reserved turn is stored.
    pub async fn confirm(&self, tenant: &Token, session: &SessionId, job: &Token) -> Result<(), Error> {
        self.check_held().await?;
        let mut call = self.scripts.confirm(&self.bounds, tenant, session);
        self.store.run(call.arg(job.as_str())).await
    }

    /// A worker holds the job of a turn.
    pub async fn begin(&self, tenant: &Token, turn: &Turn, job: &Token) -> Result<Begin, Error> {
        self.check_held().await?;
        let mut call = self.scripts.begin(&self.bounds, tenant, &turn.session);
        let call = call.arg(job.as_str()).arg(turn.number);
        let (word, rest): (String, Vec<Vec<u8>>) = self.store.run(call).await?;
        let moved = || {
            let number = rest.first().and_then(|bytes| std::str::from_utf8(bytes).ok());
            number.and_then(|text| text.parse().ok()).ok_or_else(|| Error::Corrupt("a moved turn".to_owned()))
        };
        match word.as_str() {
            "ready" => Ok(Begin::Ready(decode(&rest)?)),
            "waits" => Ok(Begin::Waits),
            _ => Ok(Begin::Moved(moved()?)),
        }
    }

    /// A turn is over; without an answer it leaves no trace in the conversation. Idempotent by job.
    pub async fn settle(&self, tenant: &Token, turn: &SessionTurn, job: &Token) -> Result<(), Error> {
        self.check_held().await?;
        self.apply(tenant, turn, job).await
    }

    /// Settles whether or not Redis holds the sessions: rebuilding does just this.
    async fn apply(&self, tenant: &Token, turn: &SessionTurn, job: &Token) -> Result<(), Error> {
        let body = match turn.answer {
            None => Vec::new(),
            Some(_) => rmp_serde::to_vec_named(&Kept { job: job.clone(), turn: turn.clone() })
                .map_err(|error| Error::Corrupt(error.to_string()))?,
        };
        let bounds = &self.bounds;
        let mut call = self.scripts.settle(bounds, tenant, &turn.session);
        let call = call.arg(job.as_str()).arg(turn.number).arg(body);
        self.store.run(call.arg(bounds.turns_max).arg(bounds.bytes_max).arg(bounds.settled_max)).await
    }

    /// The conversation, oldest turn first; `None` where there is none.
    pub async fn get(&self, tenant: &Token, session: &SessionId) -> Result<Option<Vec<SessionTurn>>, Error> {
        self.check_held().await?;
        let (_, turns) = self.look(tenant, session).await?;
        Ok((!turns.is_empty()).then_some(turns))
    }

    async fn look(&self, tenant: &Token, session: &SessionId) -> Result<(u64, Vec<SessionTurn>), Error> {
        let call = self.scripts.get(&self.bounds, tenant, session);
        let (tail, turns): (u64, Vec<Vec<u8>>) = self.store.run(&call).await?;
        Ok((tail, decode(&turns)?))
    }

    /// Forgets the conversation, for rebuilds too; turns in flight leave no trace. Whether there was one.
    pub async fn forget(&self, bus: &Bus, tenant: &Token, session: &SessionId) -> Result<bool, Error> {
        self.check_held().await?;
        let (tail, turns) = self.look(tenant, session).await?;
        if tail == 0 {
            return Ok(false);
        }
        // First for ever, then in Redis: a crash between the two forgets at the next try, never brings back.
        rebuild::remember_forgotten(bus, tenant, session, tail).await?;
        self.forget_upto(tenant, session, tail).await?;
        Ok(!turns.is_empty())
    }

    async fn forget_upto(&self, tenant: &Token, session: &SessionId, number: u64) -> Result<(), Error> {
        let mut call = self.scripts.forget(&self.bounds, tenant, session);
        self.store.run(call.arg(number)).await
    }

    /// Whether Redis holds the sessions; where not, somebody must [`Self::rebuild`].
    pub async fn held(&self) -> Result<bool, Error> {
        self.store.run(&self.scripts.held("look")).await
    }

    async fn check_held(&self) -> Result<(), Error> {
        if self.held().await? { Ok(()) } else { Err(Error::Rebuilding) }
    }

    /// Applies every record of RESULTS to an empty or partly filled Redis, under a lock, then marks it as holding the
    /// sessions. Does nothing where it does.
    pub async fn rebuild(&self, bus: &Bus) -> Result<Rebuilt, Error> {
        rebuild::rebuild(self, bus).await
    }

    /// Now, by the clock of Redis. Who makes the queue anew takes it first, for [`Self::void_before`].
    pub async fn moment(&self) -> Result<Moment, Error> {
        void::moment(self).await
    }

    /// The queue lost its store: makes every turn void that was confirmed before `moment`, since nobody will settle it,
    /// and returns how many there were. Reservations end by themselves. A job that a worker still holds is moved at its
    /// next begin. May be repeated, by several processes at once, and whether or not Redis holds the sessions.
    pub async fn void_before(&self, moment: Moment) -> Result<u64, Error> {
        void::before(self, moment).await
    }
}

fn decode(turns: &[Vec<u8>]) -> Result<Vec<SessionTurn>, Error> {
    let kept = |bytes: &Vec<u8>| rmp_serde::from_slice(bytes).map(|kept: Kept| kept.turn);
    turns.iter().map(kept).collect::<Result<_, _>>().map_err(|error| Error::Corrupt(format!("session turn: {error}")))
}
