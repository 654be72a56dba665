//! A worker on a fake engine between real servers.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::{Message, Subscriber};
use futures::StreamExt;
use protocol::job::Job;
use protocol::media::Modality;
use protocol::record::Record;
use protocol::request::Priority;
use protocol::stream::{self, lane_consumer};
use protocol::{header, subject};
use runtime::cache::Responses;
use runtime::config::{Nats, Redis, Streams};
use runtime::sessions::Sessions;
use runtime::{Bus, bus, records};
use tests::servers::{NatsServer, RedisServer};
use tests::wait::until;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::fake::{self, Ends, Fake, Mood};
use worker::model::Model;
use worker::reader::Reader;
use worker::worker::{Now, fresh_name};
use worker::{Error, Worker, run};

/// Longest wait for what should come at once, on a machine that builds at the same time.
pub(crate) const SOON: Duration = Duration::from_secs(40);

/// Servers with everything applied.
pub(crate) struct Bench {
    pub(crate) nats: NatsServer,
    pub(crate) redis: RedisServer,
    pub(crate) bus: Bus,
    pub(crate) sessions: Sessions,
}

pub(crate) type Task = JoinHandle<Result<(), Error>>;

/// A worker that runs.
pub(crate) struct Running {
    pub(crate) engine: Arc<Fake>,
    pub(crate) stop: CancellationToken,
    pub(crate) task: Task,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) const QUICK: Mood = Mood { step: Duration::from_millis(1), end: Ends::Well };
pub(crate) const SLOW: Mood = Mood { step: Duration::from_millis(100), end: Ends::Well };

impl Bench {
    pub(crate) async fn start() -> Bench {
        let (nats, redis) = (NatsServer::start(), RedisServer::start());
        let bus = connect(&nats).await;
        bus::apply_streams(&bus, &Streams::default().limits()).await.unwrap();
        let sessions = Sessions::new(&redis_of(&redis)).unwrap();
        until("sessions", SOON, || async { sessions.rebuild(&bus).await.ok() }).await;
        let bench = Bench { nats, redis, bus, sessions };
        bench.lanes(Modality::Text, fake::MODEL).await;
        bench
    }

    /// A worker with a connection of its own.
    pub(crate) async fn worker(&self, slots: usize, mood: Mood, drain: Duration) -> Running {
        let engine = Fake::new(mood);
        let (stop, task) = self.run(slots, fake::model_on(Arc::clone(&engine)), drain).await;
        Running { engine, stop, task }
    }

    /// A worker that runs this model.
    pub(crate) async fn run(&self, slots: usize, model: Model, drain: Duration) -> (CancellationToken, Task) {
        self.run_all(slots, vec![model], drain).await
    }

    /// A worker that runs these models.
    pub(crate) async fn run_all(&self, slots: usize, models: Vec<Model>, drain: Duration) -> (CancellationToken, Task) {
        let worker = Worker {
            name: fresh_name(),
            bus: connect(&self.nats).await,
            sessions: Sessions::new(&redis_of(&self.redis)).unwrap(),
            responses: self.responses(),
            device: "cpu".to_owned(),
            models,
            reader: Reader::new(worker::memory::media(None)),
            slots,
            rank: 5,
            now: Now::default(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(run::run(Arc::new(worker), drain, stop.clone()));
        (stop, task)
    }

    /// The response cache.
    pub(crate) fn responses(&self) -> Responses {
        Responses::new(&redis_of(&self.redis)).unwrap()
    }

    /// The lanes of one more model.
    pub(crate) async fn lanes(&self, modality: Modality, model: &str) {
        for priority in Priority::ALL {
            bus::apply_consumer(&self.bus, &lane_consumer(modality, model, priority)).await.unwrap();
        }
    }

    /// Publishes a job, as the dispatcher does.
    pub(crate) async fn publish(&self, job: &Job) {
        self.publish_bytes(job, job.encode()).await;
    }

    pub(crate) async fn publish_bytes(&self, job: &Job, body: bytes::Bytes) {
        let to = subject::lane(job.modality, &job.model, job.priority);
        let message = PublishMessage::build().payload(body).message_id(format!("{}/{}", job.tenant, job.name()));
        self.bus.js.send_publish(to, message).await.unwrap().await.unwrap();
    }

    /// Publishes a job that is answered to an inbox; the inbox.
    pub(crate) async fn ask(&self, job: &mut Job) -> Answers {
        let inbox = self.bus.client.new_inbox();
        let subscriber = self.bus.client.subscribe(inbox.clone()).await.unwrap();
        self.bus.client.flush().await.unwrap();
        job.reply_to = Some(inbox);
        self.publish(job).await;
        Answers(subscriber)
    }

    pub(crate) async fn record(&self, job: &Job) -> Record {
        let find = || async { records::result(&self.bus, &job.tenant, &job.id).await.unwrap() };
        until("a record", SOON, find).await
    }

    /// Waits until every job is acked.
    pub(crate) async fn queue_empty(&self) {
        until("an empty queue", SOON, || async { (self.messages(stream::JOBS).await == 0).then_some(()) }).await;
    }

    pub(crate) async fn messages(&self, stream: &str) -> u64 {
        self.bus.js.get_stream(stream).await.unwrap().get_info().await.unwrap().state.messages
    }
}

/// What comes to an inbox.
pub(crate) struct Answers(Subscriber);

impl Answers {
    pub(crate) async fn next(&mut self) -> Message {
        tokio::time::timeout(SOON, self.0.next()).await.expect("an answer").expect("an open inbox")
    }

    /// All up to the end mark.
    pub(crate) async fn stream(&mut self) -> Vec<Message> {
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await;
            let last = frame.payload.is_empty();
            frames.push(frame);
            if last {
                return frames;
            }
        }
    }

    /// Whether nothing more comes.
    pub(crate) async fn silent(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.0.next()).await.is_err()
    }
}

pub(crate) fn header_of<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers.as_ref().and_then(|headers| headers.get(name)).map_or("", |value| value.as_str())
}

/// The text that a client has after a raw stream: a new attempt discards what came before.
pub(crate) fn text_of(frames: &[Message]) -> String {
    let attempt = |frame: &Message| header_of(frame, header::ATTEMPT).parse::<u32>().ok();
    let last = frames.iter().filter_map(attempt).max();
    frames.iter().filter(|frame| attempt(frame) == last).map(|frame| String::from_utf8_lossy(&frame.payload)).collect()
}

async fn connect(nats: &NatsServer) -> Bus {
    bus::connect(&Nats { url: nats.url(), ..Nats::default() }, "test").await.unwrap()
}

fn redis_of(redis: &RedisServer) -> Redis {
    Redis { sessions: redis.url(), cache: redis.url() }
}
