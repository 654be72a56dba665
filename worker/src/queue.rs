//! Waiting for the queue: NATS may not answer yet, and a dispatcher makes the lanes.

use std::time::{Duration, Instant};

use async_nats::jetstream::context::ConsumerInfoErrorKind;
use protocol::stream::JOBS;
use runtime::clock::Seldom;
use runtime::{Bus, clock};

use crate::error::Error;
use crate::pull::Source;

/// Bounds of the pause between two looks.
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// See [`LOOK_FIRST`].
const LOOK_MOST: Duration = Duration::from_secs(1);

/// Which of a worker's lanes there are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lanes {
    All,
    /// These are missing.
    Some(Vec<String>),
    None,
}

/// Returns when there is something to pull from. A lane that a dispatcher does not make is not waited for beside others
/// that it does.
pub async fn lanes(bus: &Bus, sources: &[Source]) -> Result<(), Error> {
    let (mut last, mut seldom) = (Ok(Lanes::All), Seldom::default());
    for attempt in 0_u32.. {
        let found = match look(bus, sources).await {
            Err(error @ runtime::Error::Nats(_)) => Err(error.to_string()),
            found => Ok(found?),
        };
        match &found {
            Ok(Lanes::All) => return Ok(()),
            Ok(Lanes::Some(missing)) if found == last => {
                let missing = missing.join(", ");
                tracing::warn!(missing, "no dispatcher has made these lanes: does its catalogue have the same models?");
                return Ok(());
            }
            Ok(Lanes::None) if found != last => {
                tracing::info!("there are no lanes yet: waiting for a dispatcher to make them");
            }
            Ok(_) => {}
            Err(error) if seldom.due(Instant::now()) => {
                tracing::warn!(error, "JetStream does not answer yet; trying on")
            }
            Err(_) => {}
        }
        last = found;
        tokio::time::sleep(clock::backoff(attempt, LOOK_FIRST, LOOK_MOST)).await;
    }
    Ok(())
}

async fn look(bus: &Bus, sources: &[Source]) -> Result<Lanes, runtime::Error> {
    bus.check_version().await?;
    let nats = |error: &dyn std::fmt::Display| runtime::Error::Nats(error.to_string());
    let jobs = bus.js.get_stream_no_info(JOBS).await.map_err(|error| nats(&error))?;
    let mut missing = Vec::new();
    for source in sources {
        match jobs.consumer_info(&source.consumer).await {
            Ok(_) => {}
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => {
                    missing.push(source.consumer.clone());
                }
                _ => return Err(nats(&error)),
            },
        }
    }
    Ok(match missing.len() {
        0 => Lanes::All,
        all if all == sources.len() => Lanes::None,
        _ => Lanes::Some(missing),
    })
}
