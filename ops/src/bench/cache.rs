//! What the response cache is worth: the same questions asked twice, one client, the second time a hit.

use std::time::Instant;

use anyhow::{Result, ensure};
use async_nats::Client;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::{DIGITS, MICROSECONDS_MAX, Percentiles, percentiles, record};
use crate::client::{self, Answers, Heard, Input, Question};

/// Questions, each asked twice.
const QUESTIONS: usize = 50;

/// Times from question to end of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Worth {
    questions: usize,
    miss_ms: Percentiles,
    hit_ms: Percentiles,
    /// Median of hits as a share of the median of misses.
    hit_share: f64,
}

impl Worth {
    pub(super) fn line(&self) -> String {
        format!(
            "cache: {} questions twice, miss p50 {:.1} ms, hit p50 {:.2} ms: 1/{:.0}",
            self.questions,
            self.miss_ms.p50,
            self.hit_ms.p50,
            1.0 / self.hit_share
        )
    }
}

/// Asks every question twice, and makes sure that the cache answered the second time only.
pub(super) async fn measure(client: &Client, question: &Question) -> Result<Worth> {
    let empty = || Histogram::new_with_max(MICROSECONDS_MAX, DIGITS).expect("fixed bounds");
    let (mut misses, mut hits) = (empty(), empty());
    let run = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    for number in 0..QUESTIONS {
        let Input::Text(asked) = &question.input else { unreachable!("a bench asks in words") };
        let input = Input::Text(format!("{asked} ({run}-{number})"));
        let question = Question { input, cache: "use", ..question.clone() };
        for (expected, times) in [("miss", &mut misses), ("hit", &mut hits)] {
            let start = Instant::now();
            let cache = ask(client, &question).await?;
            record(times, start.elapsed());
            ensure!(cache == expected, "question {number} was a {cache}, not a {expected}: is the cache up?");
        }
    }
    let (miss_ms, hit_ms) = (percentiles(&misses), percentiles(&hits));
    Ok(Worth { questions: QUESTIONS, miss_ms, hit_ms, hit_share: hit_ms.p50 / miss_ms.p50 })
}

/// Hears an answer out; hit or miss.
async fn ask(client: &Client, question: &Question) -> Result<String> {
    let mut answer = client::ask(client, question, Answers::Text).await?;
    loop {
        if let Heard::End(summary) = answer.next().await? {
            return Ok(summary.cache);
        }
    }
}
