//! Who waits for a job's record hears of it as it is stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::header::HeaderName;
use futures::StreamExt;
use protocol::record::{Ended, Record};
use protocol::subject;
use protocol::token::Token;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::{Bus, Error, clock};

/// Most waiters of a process: what a dispatcher may have in hand, with room.
const WAITERS_MAX: usize = 65_536;
/// How often a waiter looks into RESULTS: what is republished is lost while the connection is.
const LOOK: Duration = Duration::from_secs(2);

type Key = (Token, Token);
type Waiters = HashMap<Key, Waiting>;
/// Those who wait for the same job, by their numbers.
type Waiting = Vec<(u64, oneshot::Sender<Record>)>;

/// Watches records as they are stored; cheap to clone.
#[derive(Clone, Debug)]
pub struct Done {
    bus: Bus,
    table: Arc<Mutex<Table>>,
    /// Ends the watch with its last owner.
    _watch: Arc<Watch>,
}

#[derive(Debug, Default)]
struct Table {
    waiters: Waiters,
    count: usize,
    next: u64,
}

#[derive(Debug)]
struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Subscribes to every result as it is stored.
pub async fn watch_done(bus: &Bus) -> Result<Done, Error> {
    watch_done_with(bus, |_| {}).await
}

/// The same, and tells `observe`, which must not block, of every end.
pub async fn watch_done_with(bus: &Bus, observe: impl Fn(&Ended) + Send + Sync + 'static) -> Result<Done, Error> {
    let nats = |error: &dyn std::fmt::Display| Error::Nats(format!("watching {}: {error}", subject::DONE_ALL));
    let mut ends = bus.client.subscribe(subject::DONE_ALL).await.map_err(|error| nats(&error))?;
    // The server has the subscription before anybody waits on it.
    bus.client.flush().await.map_err(|error| nats(&error))?;
    let table = Arc::new(Mutex::new(Table::default()));
    let (told, reader) = (Arc::clone(&table), bus.clone());
    let watch = tokio::spawn(async move {
        while let Some(message) = ends.next().await {
            let Some(key) = subject::done_job(&message.subject) else {
                tracing::warn!(subject = %message.subject, "an end of no job");
                continue;
            };
            if let Some(waiting) = take(&told, &key) {
                tokio::spawn(tell(reader.clone(), key.clone(), waiting));
            }
            let headers = message.headers.as_ref();
            observe(&Ended::read(key, |name| Some(headers?.get(HeaderName::from_static(name))?.as_str())));
        }
    });
    Ok(Done { bus: bus.clone(), table, _watch: Arc::new(Watch(watch)) })
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // Nothing panics while it is held; if it did, the table would still be whole.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those who wait for a job, which nobody does any more then.
fn take(table: &Mutex<Table>, key: &Key) -> Option<Waiting> {
    let mut table = lock(table);
    let waiting = table.waiters.remove(key)?;
    table.count -= waiting.len();
    Some(waiting)
}

/// Reads the record once for all who wait. Where it cannot be read now, each of them looks for himself.
async fn tell(bus: Bus, (tenant, job): Key, waiting: Waiting) {
    match super::result_told(&bus, &tenant, &job).await {
        Ok(Some(record)) => {
            for (_, waiter) in waiting {
                // Whoever is gone needs no record.
                let _ = waiter.send(record.clone());
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%tenant, %job, %error, "a result that cannot be read"),
    }
}

impl Done {
    /// Registers interest in a job. Register first, look for the record then: nothing is missed between.
    pub fn wait(&self, tenant: &Token, job: &Token) -> Result<Waiter, Error> {
        let (sender, told) = oneshot::channel();
        let key = (tenant.clone(), job.clone());
        let mut table = lock(&self.table);
        if table.count >= WAITERS_MAX {
            return Err(Error::Full(format!("{WAITERS_MAX} wait for results")));
        }
        let number = table.next;
        table.next += 1;
        table.count += 1;
        table.waiters.entry(key.clone()).or_default().push((number, sender));
        drop(table);
        let table = Arc::downgrade(&self.table);
        Ok(Waiter { bus: self.bus.clone(), key, number, told: Some(told), look: next_look(), table })
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.table).count
    }
}

fn next_look() -> Instant {
    Instant::now() + LOOK + clock::jitter(LOOK)
}

/// Interest in one job, given up on drop.
#[derive(Debug)]
pub struct Waiter {
    bus: Bus,
    key: Key,
    number: u64,
    /// `None` once it has told, or never will.
    told: Option<oneshot::Receiver<Record>>,
    /// When it looks into RESULTS next; outlives a dropped wait.
    look: Instant,
    table: Weak<Mutex<Table>>,
}

impl Waiter {
    /// The record, whenever it comes. Safe to drop and call again. Looks into RESULTS now and then, so that a lost
    /// connection loses nothing.
    pub async fn record(&mut self) -> Record {
        loop {
            let look = tokio::time::sleep_until(self.look);
            if let Some(told) = &mut self.told {
                tokio::select! {
                    heard = told => {
                        self.told = None;
                        if let Ok(record) = heard {
                            return record;
                        }
                    }
                    () = look => {}
                }
            } else {
                look.await;
            }
            self.look = next_look();
            if let Ok(Some(record)) = super::result(&self.bus, &self.key.0, &self.key.1).await {
                return record;
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut table = lock(&table);
        let Some(waiters) = table.waiters.get_mut(&self.key) else { return };
        let before = waiters.len();
        waiters.retain(|(number, _)| *number != self.number);
        let gone = before - waiters.len();
        if waiters.is_empty() {
            table.waiters.remove(&self.key);
        }
        table.count -= gone;
    }
}
