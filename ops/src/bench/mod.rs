//! `flotilla bench`: closed-loop clients at the interactive door, each asking again as soon as its answer is whole.

mod cache;
mod whole;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::Client;
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::Refusal;
use protocol::request::Params;
use serde::Serialize;

use crate::client::{self, Answers, Collected, Heard, Input, Question};
use crate::fleet;
use crate::table::table;
use whole::Whole;

/// Longest time that is told apart; anything longer counts as this.
const MICROSECONDS_MAX: u64 = 600_000_000;
/// Three digits are right.
const DIGITS: u8 = 3;

/// `flotilla bench`
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// Clients at once, one run for each number.
    #[arg(long, short, env = "FLOTILLA_CLIENTS", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: Vec<u16>,
    /// Seconds of each run; answers in hand at its end are waited for and counted.
    #[arg(long, env = "FLOTILLA_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// What is asked; `{i}` is another number in every request, so that no prompt but its template is computed before.
    #[arg(
        long,
        env = "FLOTILLA_PROMPT",
        default_value = "Story {i}: tell me about a ship that is looking for a harbour."
    )]
    prompt: String,
    /// Most tokens of an answer.
    #[arg(long, env = "FLOTILLA_MAX_TOKENS", default_value_t = 64)]
    max_tokens: u32,
    /// Model, if not the fleet's own choice.
    #[arg(long, short, env = "FLOTILLA_MODEL")]
    model: Option<String>,
    /// Ask this subject for whole answers, with the prompt as it stands and nothing around it, so with the cache where one is.
    #[arg(long, env = "FLOTILLA_WHOLE", value_name = "SUBJECT", conflicts_with = "cache")]
    whole: Option<String>,
    /// What becomes of such a prompt, if not what the fleet takes it for.
    #[arg(long, env = "FLOTILLA_TASK", requires = "whole")]
    task: Option<String>,
    /// Also ask fifty questions twice, and compare the cache's hits with misses.
    #[arg(long, env = "FLOTILLA_BENCH_CACHE")]
    cache: bool,
    /// Also write the figures here as JSON; `-` prints them instead of the table.
    #[arg(long, env = "FLOTILLA_BENCH_JSON", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Figures of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Run {
    clients: u16,
    seconds: f64,
    requests: u64,
    failed: BTreeMap<String, u64>,
    requests_per_second: f64,
    tokens: u64,
    tokens_per_second: f64,
    first_token_ms: Percentiles,
    inter_token_ms: Percentiles,
    answer_ms: Percentiles,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
    max: f64,
}

/// What every client asks, again and again.
#[derive(Clone, Debug)]
enum Asked {
    Streamed(Box<Question>),
    Whole(Whole),
}

#[derive(Serialize)]
struct Report<'a> {
    server: String,
    prompt_bytes: usize,
    max_tokens: u32,
    runs: &'a [Run],
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<cache::Worth>,
}

/// What one client, and then all of them, counted.
struct Tally {
    requests: u64,
    tokens: u64,
    failed: BTreeMap<String, u64>,
    first_token: Histogram<u64>,
    inter_token: Histogram<u64>,
    answer: Histogram<u64>,
}

impl Tally {
    fn new() -> Tally {
        let empty = || Histogram::new_with_max(MICROSECONDS_MAX, DIGITS).expect("fixed bounds");
        let (first_token, inter_token, answer) = (empty(), empty(), empty());
        Tally { requests: 0, tokens: 0, failed: BTreeMap::new(), first_token, inter_token, answer }
    }

    fn add(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.tokens += other.tokens;
        for (code, count) in &other.failed {
            *self.failed.entry(code.clone()).or_default() += count;
        }
        self.first_token += &other.first_token;
        self.inter_token += &other.inter_token;
        self.answer += &other.answer;
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a load test are small")]
    fn figures(self, clients: u16, took: Duration) -> Run {
        let seconds = took.as_secs_f64();
        Run {
            clients,
            seconds,
            requests: self.requests,
            requests_per_second: self.requests as f64 / seconds,
            tokens: self.tokens,
            tokens_per_second: self.tokens as f64 / seconds,
            first_token_ms: percentiles(&self.first_token),
            inter_token_ms: percentiles(&self.inter_token),
            answer_ms: percentiles(&self.answer),
            failed: self.failed,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds of a load test are small")]
fn percentiles(times: &Histogram<u64>) -> Percentiles {
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    Percentiles { p50: at(0.5), p99: at(0.99), max: times.max() as f64 / 1000.0 }
}

fn record(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(u64::try_from(time.as_micros()).unwrap_or(MICROSECONDS_MAX));
}

impl Bench {
    /// Runs each number of clients, then prints.
    pub(crate) async fn run(self, url: &str) -> Result<()> {
        let client = fleet::connect(url).await?;
        let (question, asked) = (self.question(), self.asked());
        // The first answer warms what is cold, and shows a fleet that cannot answer before the clock runs.
        asked.once(&client, 0, &mut Tally::new()).await.context("the fleet does not answer the first request")?;
        let (number, mut runs) = (Arc::new(AtomicU64::new(1)), Vec::new());
        for &clients in &self.clients {
            runs.push(self.level(url, (&asked, &number), clients).await?);
        }
        let cache = if self.cache { Some(cache::measure(&client, &question).await?) } else { None };
        let server = client.server_info().version;
        let (prompt_bytes, max_tokens) = (self.prompt.len(), self.max_tokens);
        let report = Report { server, prompt_bytes, max_tokens, runs: &runs, cache };
        let json = serde_json::to_string_pretty(&report)?;
        match &self.json {
            Some(file) if file.as_os_str() == "-" => println!("{json}"),
            file => {
                println!("{}", shown(&runs));
                if let Some(cache) = cache {
                    println!("{}", cache.line());
                }
                if let Some(file) = file {
                    std::fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
                }
            }
        }
        if runs.iter().all(|run| run.requests == 0) {
            bail!("not one request was answered");
        }
        Ok(())
    }

    fn question(&self) -> Question {
        Question {
            input: Input::Text(self.prompt.clone()),
            task: None,
            model: self.model.clone(),
            session: None,
            stream: true,
            deadline_ms: 120_000,
            cache: "bypass",
            params: Params { max_tokens: Some(self.max_tokens), ..Params::default() },
        }
    }

    fn asked(&self) -> Asked {
        let Some(subject) = self.whole.clone() else { return Asked::Streamed(Box::new(self.question())) };
        Asked::Whole(Whole { subject, task: self.task.clone(), prompt: self.prompt.clone() })
    }

    async fn level(&self, url: &str, asked: (&Asked, &Arc<AtomicU64>), clients: u16) -> Result<Run> {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("  {spinner} {msg} {elapsed}").expect("a fixed template"));
        bar.set_message(format!("{clients} client(s), {} s", self.seconds));
        bar.enable_steady_tick(Duration::from_millis(100));
        if bar.is_hidden() {
            eprintln!("  {clients} client(s), {} s", self.seconds);
        }
        let mut connected = Vec::new();
        for _ in 0..clients {
            connected.push(fleet::connect(url).await?);
        }
        let start = Instant::now();
        let until = start + Duration::from_secs(self.seconds);
        let (asked, number) = asked;
        let mut running = tokio::task::JoinSet::new();
        for client in connected {
            running.spawn(closed_loop(client, asked.clone(), Arc::clone(number), until));
        }
        let mut all = Tally::new();
        while let Some(tally) = running.join_next().await {
            all.add(&tally?);
        }
        bar.finish_and_clear();
        Ok(all.figures(clients, start.elapsed()))
    }
}

async fn closed_loop(client: Client, asked: Asked, number: Arc<AtomicU64>, until: Instant) -> Tally {
    let mut tally = Tally::new();
    while Instant::now() < until {
        let number = number.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = asked.once(&client, number, &mut tally).await {
            let refusal = error.downcast_ref::<Refusal>();
            let name = refusal.map_or("broken", |refusal| refusal.code.as_str());
            *tally.failed.entry(name.to_owned()).or_default() += 1;
            let pause = refusal.and_then(|refusal| refusal.retry_after_ms).unwrap_or(100);
            tokio::time::sleep(Duration::from_millis(pause).min(until.saturating_duration_since(Instant::now()))).await;
        }
    }
    tally
}

impl Asked {
    /// One question, with its number in it.
    async fn once(&self, client: &Client, number: u64, tally: &mut Tally) -> Result<()> {
        match self {
            Asked::Streamed(question) => one(client, &numbered(question, number), tally).await,
            Asked::Whole(whole) => {
                let took = whole.ask(client, with_number(&whole.prompt, number)).await?;
                record(&mut tally.answer, took);
                tally.requests += 1;
                Ok(())
            }
        }
    }
}

fn numbered(question: &Question, number: u64) -> Question {
    let input = match &question.input {
        Input::Text(text) => Input::Text(with_number(text, number)),
        other => other.clone(),
    };
    Question { input, ..question.clone() }
}

fn with_number(prompt: &str, number: u64) -> String {
    prompt.replace("{i}", &number.to_string())
}

async fn one(client: &Client, question: &Question, tally: &mut Tally) -> Result<()> {
    let mut answer = client::ask(client, question, Answers::Text).await?;
    let mut collected = Collected::default();
    let mut last: Option<Instant> = None;
    loop {
        match answer.next().await? {
            Heard::Chunk { attempt, seq, kind, body } => {
                let now = Instant::now();
                match last {
                    None => record(&mut tally.first_token, now - answer.asked),
                    Some(last) => record(&mut tally.inter_token, now - last),
                }
                last = Some(now);
                collected.take(attempt, seq, &kind, &body)?;
            }
            Heard::End(summary) => {
                collected.check(&summary)?;
                record(&mut tally.answer, answer.asked.elapsed());
                tally.requests += 1;
                tally.tokens += summary.output_tokens;
                return Ok(());
            }
            Heard::Accepted { .. } | Heard::Whole { .. } => {}
        }
    }
}

fn shown(runs: &[Run]) -> String {
    let head = [
        "clients",
        "requests",
        "failed",
        "requests/s",
        "tokens/s",
        "first ms p50",
        "p99",
        "inter-token ms p50",
        "p99",
        "answer ms p50",
        "p99",
    ];
    let row = |run: &Run| {
        let failed: u64 = run.failed.values().sum();
        let pair = |times: Percentiles| [format!("{:.1}", times.p50), format!("{:.1}", times.p99)];
        let counts = [run.clients.to_string(), run.requests.to_string(), failed.to_string()];
        let rates = [format!("{:.2}", run.requests_per_second), format!("{:.1}", run.tokens_per_second)];
        let times = [run.first_token_ms, run.inter_token_ms, run.answer_ms].map(pair).into_iter().flatten();
        counts.into_iter().chain(rates).chain(times).collect()
    };
    let codes: Vec<String> =
        runs.iter().flat_map(|run| &run.failed).map(|(code, count)| format!("{count} {code}")).collect();
    let mut text = table(&head, &runs.iter().map(row).collect::<Vec<_>>());
    if !codes.is_empty() {
        text.push_str(&format!("\nfailed: {}", codes.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_to_figures() {
        let (mut all, mut one) = (Tally::new(), Tally::new());
        for milliseconds in 1..=100 {
            record(&mut one.first_token, Duration::from_millis(milliseconds));
        }
        one.requests = 10;
        one.tokens = 640;
        one.failed.insert("overloaded".into(), 2);
        all.add(&one);
        all.add(&one);
        let run = all.figures(4, Duration::from_secs(10));
        assert_eq!((run.requests, run.tokens, run.failed["overloaded"]), (20, 1280, 4));
        assert!((run.tokens_per_second - 128.0).abs() < 1e-9 && (run.requests_per_second - 2.0).abs() < 1e-9);
        assert!((run.first_token_ms.p50 - 50.0).abs() < 1.0 && (run.first_token_ms.p99 - 99.0).abs() < 1.0);
        let text = shown(&[run]);
        assert!(text.contains("failed: 4 overloaded"), "{text}");
    }

    #[test]
    fn a_time_beyond_the_scale_counts_as_the_longest() {
        let mut tally = Tally::new();
        record(&mut tally.answer, Duration::from_secs(100_000));
        assert!(percentiles(&tally.answer).max >= 600_000.0);
    }
}
