//! A dispatcher in this process, real servers, and a stand-in for a worker that answers by turning the text around.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use dispatcher::Config;
use futures::StreamExt;
use protocol::answer::{Answer, CacheOutcome, Finish, Output, Usage};
use protocol::heartbeat::{Heartbeat, Loaded, State};
use protocol::job::Job;
use protocol::record::{End, Record};
use protocol::request::{Mode, Priority};
use protocol::token::Token;
use protocol::{media::Modality, reply, stream, subject};
use runtime::cache::Responses;
use runtime::records::{self, Stored};
use runtime::{Bus, bus, clock};
use tests::client::Client;
use tests::servers::{NatsServer, RedisServer};
use tests::wait::until;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const MODEL: &str = "smollm2-135m-instruct";

pub(crate) struct Bench {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) bus: Bus,
    pub(crate) nats: NatsServer,
    pub(crate) redis: RedisServer,
    stop: CancellationToken,
    run: JoinHandle<Result<(), dispatcher::Error>>,
}

impl Bench {
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Bench {
        let (nats, redis) = (NatsServer::start(), RedisServer::start());
        let variables = [
            ("FLOTILLA_NATS__URL", nats.url()),
            ("FLOTILLA_REDIS__SESSIONS", redis.url()),
            ("FLOTILLA_REDIS__CACHE", redis.url()),
        ];
        let env = variables.into_iter().map(|(name, value)| (name.to_owned(), value));
        let mut config: Config = runtime::config::load(None, env).unwrap();
        change(&mut config);
        let client = Client::connect(&nats.url()).await;
        let bus = bus::connect(&config.common.nats, "bench").await.unwrap();
        let (stop, run) = launch(&config);
        let bench = Bench { client, config, bus, nats, redis, stop, run };
        bench.open().await;
        bench
    }

    /// The doors are open when the service says that it is there.
    async fn open(&self) {
        until("the doors", Duration::from_secs(20), || async {
            self.client.nats.request("$SRV.PING.flotilla-dispatcher", "".into()).await.ok()
        })
        .await;
    }

    /// Stops the dispatcher as a signal would.
    pub(crate) async fn stop(self) -> (NatsServer, RedisServer) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(15), self.run).await.expect("it stops").unwrap().unwrap();
        (self.nats, self.redis)
    }

    /// A worker until it is dropped, that takes this long for a job.
    pub(crate) async fn worker(&self, takes: Duration) -> Worker {
        let computed = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for priority in Priority::ALL {
            let worker =
                Hand { bus: self.bus.clone(), computed: Arc::clone(&computed), takes, config: self.config.clone() };
            tasks.spawn(worker.pull(priority));
        }
        tasks.spawn(beat(self.bus.clone()));
        Worker { computed, _tasks: tasks }
    }
}

fn launch(config: &Config) -> (CancellationToken, JoinHandle<Result<(), dispatcher::Error>>) {
    // One process, one recorder: whoever comes first has it.
    let metrics = runtime::telemetry::init(&config.common.telemetry).expect("the first of this process").metrics();
    let stop = CancellationToken::new();
    let run = tokio::spawn(dispatcher::run(config.clone().check().unwrap(), metrics, stop.clone()));
    (stop, run)
}

pub(crate) struct Worker {
    computed: Arc<AtomicU64>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Worker {
    pub(crate) fn computed(&self) -> u64 {
        self.computed.load(Ordering::SeqCst)
    }
}

async fn beat(bus: Bus) {
    let worker = Token::parse("worker", "bench").unwrap();
    loop {
        let models =
            vec![Loaded { name: MODEL.into(), digest: String::new(), precision: "q4_1".into(), context: 8192 }];
        let heartbeat = Heartbeat {
            version: 1,
            worker: worker.clone(),
            release: String::new(),
            device: "none".into(),
            models,
            state: State::Ready,
            slots_free: 1,
            slots: 1,
            step_seconds: 0.0,
            answered: Vec::new(),
        };
        bus.client.publish(subject::heartbeat(&worker), heartbeat.encode().into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[derive(Clone)]
struct Hand {
    bus: Bus,
    computed: Arc<AtomicU64>,
    takes: Duration,
    config: Config,
}

impl Hand {
    async fn pull(self, priority: Priority) {
        let name = subject::lane_consumer(Modality::Text, MODEL, priority);
        let consumer: PullConsumer = self.bus.js.get_consumer_from_stream(name, stream::JOBS).await.unwrap();
        loop {
            let pull = consumer.batch().max_messages(64).group(stream::LANE_GROUP).expires(Duration::from_secs(1));
            let mut messages = pull.messages().await.unwrap();
            while let Some(Ok(message)) = messages.next().await {
                let hand = self.clone();
                tokio::spawn(async move { hand.compute(message).await });
            }
        }
    }

    async fn compute(self, message: Message) {
        let job = Job::decode(&message.payload).unwrap();
        tokio::time::sleep(self.takes).await;
        self.computed.fetch_add(1, Ordering::SeqCst);
        let record = match records::store_result(&self.bus, &record(&job)).await.unwrap() {
            Stored::Created => record(&job),
            Stored::Existed(record) => Record::clone(&record),
        };
        if let (Some(key), End::Done(answer)) = (&job.cache_key, &record.end) {
            let _ = Responses::new(&self.config.common.redis).unwrap().put(key, answer).await;
        }
        let frames = match (&record.end, job.mode) {
            (End::Done(answer), Mode::Whole) => vec![reply::whole(answer, job.format)],
            (End::Done(answer), Mode::Stream) => reply::replay(answer, 0, job.format),
            (End::Failed(refusal), _) => vec![reply::failed(Some(&job.id), refusal, job.format)],
        };
        for frame in frames {
            if let Some(to) = &job.reply_to {
                bus::send(&self.bus, to, frame).await.unwrap();
            }
        }
        message.ack().await.unwrap();
    }
}

fn record(job: &Job) -> Record {
    let text: String = job.input.iter().filter_map(|part| part.text()).flat_map(|text| text.chars().rev()).collect();
    Record {
        version: 1,
        job: job.id.clone(),
        tenant: job.tenant.clone(),
        format: job.format,
        settled_ms: clock::now_ms(),
        end: End::Done(Answer {
            job: job.id.clone(),
            model: job.model.clone(),
            task: job.task.as_str().to_owned(),
            output: vec![Output::Text { text }],
            finish_reason: Finish::Stop,
            usage: Usage::default(),
            cache: CacheOutcome::Miss,
            steps: Vec::new(),
        }),
        session: None,
        cache_key: job.cache_key.clone(),
    }
}
