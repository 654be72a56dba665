//! Whole answers to bare texts, as any NATS client asks for them: what else answers texts there is asked in the same way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_nats::{Client, HeaderMap, Request};
use protocol::header;

use crate::client;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked, and of whom.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub(super) subject: String,
    pub(super) task: Option<String>,
    pub(super) prompt: String,
}

impl Whole {
    /// How long one answer took.
    pub(super) async fn ask(&self, client: &Client, prompt: String) -> Result<Duration> {
        let mut request = Request::new().payload(prompt.into()).timeout(Some(PATIENCE));
        if let Some(task) = &self.task {
            let mut headers = HeaderMap::new();
            headers.insert(header::TASK, task.as_str());
            request = request.headers(headers);
        }
        let asked = Instant::now();
        let reply = client.send_request(self.subject.clone(), request).await.context("no answer")?;
        let took = asked.elapsed();
        match reply.headers.as_ref().and_then(|headers| headers.get(header::SERVICE_ERROR)) {
            Some(error) => Err(client::refusal(error.as_str(), &reply.payload).into()),
            None => Ok(took),
        }
    }
}
