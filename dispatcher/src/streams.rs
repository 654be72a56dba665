//! The streams and consumers that a dispatcher makes: at its start, and anew when NATS comes back without them.

use std::time::{Duration, Instant};

use protocol::request::Priority;
use protocol::stream::{self, Consumer, Limits};
use protocol::subject;
use runtime::clock::Seldom;
use runtime::sessions::{Moment, Sessions};
use runtime::{Bus, bus, clock, config};

use crate::Error;
use crate::catalogue::Catalogue;

/// Bounds of the pause between two tries at what NATS does not answer.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// See [`RETRY_FIRST`].
const RETRY_MOST: Duration = Duration::from_secs(2);
/// How long the clock of Redis is waited for.
const MOMENT_WAIT: Duration = Duration::from_secs(1);
/// How often a new connection is looked for.
const LOOK: Duration = Duration::from_millis(500);

/// What must be there before anything is taken in: a lane without a consumer would lose nothing, and move nothing.
#[derive(Debug)]
pub struct Streams {
    limits: Limits,
    consumers: Vec<Consumer>,
}

impl Streams {
    /// Every stream, and the consumers of every lane of the catalogue, of the durable door and of steps.
    #[must_use]
    pub fn new(streams: &config::Streams, catalogue: &Catalogue) -> Self {
        let lanes = catalogue.iter().flat_map(|model| {
            Priority::ALL.map(|priority| stream::lane_consumer(model.modality, &model.name, priority))
        });
        Self {
            limits: streams.limits(),
            consumers: lanes.chain([stream::ingress_consumer(), stream::steps_consumer()]).collect(),
        }
    }

    /// Makes them what they should be, and tries until NATS takes them. `Err` where no wait mends what is wrong.
    pub async fn prepare(&self, bus: &Bus, sessions: &Sessions) -> Result<Prepared, Error> {
        let (connection, mut created) = (bus.connections(), Vec::new());
        let moment = moment(sessions).await;
        let mut attempt = 0;
        let mut seldom = Seldom::default();
        loop {
            match self.prepare_once(bus, &mut created).await {
                Err(Error::Runtime(error @ (runtime::Error::Nats(_) | runtime::Error::Unknown(_)))) => {
                    if seldom.due(Instant::now()) {
                        tracing::warn!(%error, "NATS does not take the streams yet; trying on");
                    }
                    tokio::time::sleep(clock::backoff(attempt, RETRY_FIRST, RETRY_MOST)).await;
                    attempt += 1;
                }
                done => return done.map(|()| Prepared { connection, lost: Lost::of(&created, moment) }),
            }
        }
    }

    async fn prepare_once(&self, bus: &Bus, created: &mut Vec<&'static str>) -> Result<(), Error> {
        bus.check_version().await?;
        created.extend(bus::apply_streams(bus, &self.limits).await?);
        for consumer in &self.consumers {
            bus::apply_consumer(bus, consumer).await?;
        }
        // A stream over a door would send its PubAck to the client's inbox as the first answer.
        if let Ok(stream) = bus.js.stream_by_subject(subject::INFER).await {
            return Err(Error::Captured { stream, subject: subject::INFER });
        }
        Ok(())
    }

    /// Makes anew what is absent after every new connection, since the store behind it may have been lost. What is there
    /// is left alone, and nothing that is wrong with it stops a dispatcher that has work in hand.
    pub async fn keep(self, bus: Bus, sessions: Sessions, mut prepared: Prepared) -> Result<(), Error> {
        let mut seldom = Seldom::default();
        loop {
            if let Some(lost) = prepared.lost.take() {
                prepared.lost = lost.settle(&sessions).await;
            }
            tokio::time::sleep(LOOK).await;
            let connection = bus.connections();
            if connection == prepared.connection || !bus.connected() {
                continue;
            }
            match self.restore(&bus, &sessions, &mut prepared.lost).await {
                Ok(()) => prepared.connection = connection,
                Err(error) if seldom.due(Instant::now()) => {
                    tracing::error!(%error, "the streams could not be looked at after a new connection; trying on");
                }
                Err(_) => {}
            }
        }
    }

    async fn restore(&self, bus: &Bus, sessions: &Sessions, lost: &mut Option<Lost>) -> Result<(), Error> {
        let moment = moment(sessions).await;
        let created = bus::restore_streams(bus, &self.limits).await?;
        *lost = Lost::of(&created, moment).or(lost.take());
        if !created.is_empty() {
            let streams = created.join(", ");
            tracing::error!(streams, "NATS came back without its store; the streams are new, what they held is lost");
        }
        for consumer in &self.consumers {
            bus::restore_consumer(bus, consumer).await?;
        }
        Ok(())
    }
}

/// The streams stand.
#[derive(Debug)]
pub struct Prepared {
    /// Over which connection that was found; a later one may lead to another store.
    connection: u64,
    lost: Option<Lost>,
}

/// The queue is new: sessions may still wait for turns whose jobs the old one held.
#[derive(Debug)]
struct Lost {
    /// Before the queue was made; unknown where Redis was away then.
    moment: Option<Moment>,
}

impl Lost {
    fn of(created: &[&'static str], moment: Option<Moment>) -> Option<Self> {
        created.contains(&stream::JOBS).then_some(Self { moment })
    }

    /// Makes those turns void; itself again where Redis is away.
    async fn settle(self, sessions: &Sessions) -> Option<Self> {
        let before = match self.moment {
            Some(moment) => Some(moment),
            None => moment(sessions).await,
        };
        let Some(before) = before else { return Some(self) };
        match sessions.void_before(before).await {
            Ok(0) => None,
            Ok(turns) => {
                tracing::warn!(turns, "sessions wait no more for turns that a lost queue held");
                None
            }
            Err(_) => Some(self),
        }
    }
}

/// Now, if Redis says so soon.
async fn moment(sessions: &Sessions) -> Option<Moment> {
    tokio::time::timeout(MOMENT_WAIT, sessions.moment()).await.ok()?.ok()
}
