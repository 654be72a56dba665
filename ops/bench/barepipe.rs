//! The least that a durable fleet can do with a request: store it, pull it, store the answer once, say it, ack. No ids of
//! clients, no decoding, no model, no cache, no limits. The answer is the request.
//!
//! usage: barepipe dispatcher|worker URL

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, Context, Message};
use async_nats::{Client, HeaderMap, header};
use futures::{StreamExt, TryStreamExt};

/// What clients ask.
const DOOR: &str = "bare";
/// Where requests and answers are stored.
const JOBS: &str = "BAREJOBS";
const RESULTS: &str = "BARERESULTS";
const BYTES_MAX: i64 = 1 << 30;
/// Name of the one consumer of JOBS.
const CONSUMER: &str = "worker";
/// Jobs of one pull.
const BATCH: usize = 64;
const EXPIRES: Duration = Duration::from_secs(1);
const REPLY_TO: &str = "Reply-To";
const ID: &str = "Id";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, url] = arguments.as_slice() else { bail!("usage: barepipe dispatcher|worker URL") };
    let client = async_nats::connect(url).await?;
    let js = jetstream::new(client.clone());
    // Whoever comes first.
    apply(&js).await?;
    match role.as_str() {
        "dispatcher" => dispatch(&client, &js).await,
        "worker" => work(&client, &js).await,
        other => bail!("there is no role {other}"),
    }
}

async fn apply(js: &Context) -> Result<()> {
    let (subjects, max_bytes, discard) = (|root: &str| vec![format!("{root}.>")], BYTES_MAX, DiscardPolicy::New);
    let jobs = Config {
        name: JOBS.to_owned(),
        subjects: subjects("barejobs"),
        retention: RetentionPolicy::WorkQueue,
        discard,
        max_bytes,
        ..Config::default()
    };
    let results = Config {
        name: RESULTS.to_owned(),
        subjects: subjects("bareresults"),
        max_messages_per_subject: 1,
        discard,
        discard_new_per_subject: true,
        allow_direct: true,
        allow_message_ttl: true,
        max_bytes,
        ..Config::default()
    };
    js.get_or_create_stream(results).await?;
    let jobs = js.get_or_create_stream(jobs).await?;
    let consumer =
        pull::Config { durable_name: Some(CONSUMER.to_owned()), max_ack_pending: 20_000, ..pull::Config::default() };
    jobs.get_or_create_consumer(CONSUMER, consumer).await?;
    Ok(())
}

async fn dispatch(client: &Client, js: &Context) -> Result<()> {
    let mut requests = client.queue_subscribe(DOOR, "dispatchers".to_owned()).await?;
    let numbers = AtomicU64::new(0);
    while let Some(request) = requests.next().await {
        let reply_to = request.reply.context("a request without an inbox")?;
        let mut headers = HeaderMap::new();
        headers.insert(REPLY_TO, reply_to.as_str());
        headers.insert(ID, format!("{}-{}", std::process::id(), numbers.fetch_add(1, Ordering::Relaxed)));
        let stored = js.publish_with_headers("barejobs.text", headers, request.payload).await?;
        tokio::spawn(async move { stored.await.expect("a job is stored") });
    }
    Ok(())
}

async fn work(client: &Client, js: &Context) -> Result<()> {
    let consumer: PullConsumer = js.get_consumer_from_stream(CONSUMER, JOBS).await?;
    loop {
        let mut jobs = consumer.fetch().max_messages(BATCH).expires(EXPIRES).messages().await?;
        while let Some(job) = jobs.try_next().await.map_err(anyhow::Error::from_boxed)? {
            let (client, js) = (client.clone(), js.clone());
            tokio::spawn(async move { serve(&client, &js, job).await.expect("an answer is stored and said") });
        }
    }
}

async fn serve(client: &Client, js: &Context, job: Message) -> Result<()> {
    let given = job.headers.as_ref().context("a job without headers")?;
    let value = |name: &str| given.get(name).map(ToString::to_string).with_context(|| format!("a job without {name}"));
    let (id, reply_to) = (value(ID)?, value(REPLY_TO)?);
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    headers.insert(header::NATS_MESSAGE_TTL, "3600");
    js.publish_with_headers(format!("bareresults.{id}"), headers, job.payload.clone()).await?.await?;
    client.publish(reply_to, job.payload.clone()).await?;
    job.ack().await.map_err(anyhow::Error::from_boxed)
}
