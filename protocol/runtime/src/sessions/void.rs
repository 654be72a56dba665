//! Open turns whose jobs are gone: the queue lost its store, and Redis kept what it knew of it.

use tracing::warn;

use super::Sessions;
use crate::Error;

/// Finds the `open` key of every session; see `layout.lua`.
const OPEN: &str = "session:{*}:open";
/// Keys that Redis looks at in one step of a search, so that it keeps nobody waiting.
const STEP: u64 = 512;

/// A moment by the clock of Redis, in milliseconds: the same clock that the turns bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

pub(super) async fn moment(sessions: &Sessions) -> Result<Moment, Error> {
    let (seconds, micros): (u64, u64) = sessions.store.query(&redis::cmd("TIME")).await?;
    Ok(Moment(seconds * 1000 + micros / 1000))
}

pub(super) async fn before(sessions: &Sessions, moment: Moment) -> Result<u64, Error> {
    let mut voided = 0;
    let mut cursor = 0;
    loop {
        let (next, found) = step(sessions, cursor).await?;
        for open in found {
            voided += session(sessions, &open, moment).await?;
        }
        if next == 0 {
            return Ok(voided);
        }
        cursor = next;
    }
}

/// Names are bytes: one that is not ours must not end the search.
async fn step(sessions: &Sessions, cursor: u64) -> Result<(u64, Vec<Vec<u8>>), Error> {
    let mut scan = redis::cmd("SCAN");
    scan.arg(cursor).arg("MATCH").arg(OPEN).arg("COUNT").arg(STEP).arg("TYPE").arg("hash");
    sessions.store.query(&scan).await
}

/// A session that cannot be read refuses every use anyway, and must not keep the others waiting.
async fn session(sessions: &Sessions, open: &[u8], moment: Moment) -> Result<u64, Error> {
    let mut call = sessions.scripts.void(&sessions.bounds, open);
    match sessions.store.run(call.arg(moment.0)).await {
        Err(error @ Error::Corrupt(_)) => {
            warn!(%error, "a session whose turns cannot be made void");
            Ok(0)
        }
        voided => voided,
    }
}
