//! Who waits for a job's record hears of it as it is stored. Nothing is heard of jobs that nobody waits for, so that what
//! a process hears does not grow with the fleet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use protocol::record::Record;
use protocol::subject;
use protocol::token::Token;
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::{Bus, Error, clock};

/// How often a waiter looks into RESULTS: what is republished is lost while the connection is.
const LOOK: Duration = Duration::from_secs(2);

type Key = (Token, Token);
type Ears = Mutex<HashMap<Key, Weak<Ear>>>;

/// Records as they are stored; cheap to clone.
#[derive(Clone, Debug)]
pub struct Done {
    bus: Bus,
    ears: Arc<Ears>,
}

/// What all who wait for one job share: one subscription, and one look at the record.
#[derive(Debug)]
struct Ear {
    key: Key,
    told: watch::Sender<Option<Record>>,
    hears: OnceCell<Hearing>,
    ears: Weak<Ears>,
}

/// Ends with whoever hears.
#[derive(Debug)]
struct Hearing(JoinHandle<()>);

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let Some(ears) = self.ears.upgrade() else { return };
        let mut ears = lock(&ears);
        // Another one may have come in its place.
        if ears.get(&self.key).is_some_and(|ear| ear.strong_count() == 0) {
            ears.remove(&self.key);
        }
    }
}

fn lock(ears: &Ears) -> MutexGuard<'_, HashMap<Key, Weak<Ear>>> {
    // Nothing panics while it is held; if it did, the map would still be whole.
    ears.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Done {
    /// Nobody waits yet.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), ears: Arc::default() }
    }

    /// The record of a job, whenever it comes.
    pub async fn record(&self, tenant: &Token, job: &Token) -> Result<Record, Error> {
        let mut waiter = self.wait(tenant, job).await?;
        // It may have come before there was interest in it.
        match super::result_told(&self.bus, tenant, job).await {
            Ok(Some(record)) => Ok(record),
            Ok(None) | Err(_) => Ok(waiter.record().await),
        }
    }

    /// Registers interest in a job. A server takes what comes over one connection in order, so who looks for the record
    /// after this misses nothing; of a cluster another server may hear of the interest later, and then the waiter's own
    /// looks find the record.
    pub async fn wait(&self, tenant: &Token, job: &Token) -> Result<Waiter, Error> {
        let ear = self.ear((tenant.clone(), job.clone()));
        ear.hears.get_or_try_init(|| hear(&self.bus, &ear)).await?;
        Ok(Waiter { bus: self.bus.clone(), told: ear.told.subscribe(), look: next_look(), ear })
    }

    /// How many jobs are waited for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.ears).len()
    }

    fn ear(&self, key: Key) -> Arc<Ear> {
        let mut ears = lock(&self.ears);
        if let Some(ear) = ears.get(&key).and_then(Weak::upgrade) {
            return ear;
        }
        let ears_of = Arc::downgrade(&self.ears);
        let ear =
            Arc::new(Ear { key: key.clone(), told: watch::channel(None).0, hears: OnceCell::new(), ears: ears_of });
        ears.insert(key, Arc::downgrade(&ear));
        ear
    }
}

async fn hear(bus: &Bus, ear: &Ear) -> Result<Hearing, Error> {
    let ((tenant, job), told, bus) = (ear.key.clone(), ear.told.clone(), bus.clone());
    let subject = subject::done(&tenant, &job);
    let mut ends =
        bus.client.subscribe(subject).await.map_err(|error| Error::Nats(format!("waiting for {job}: {error}")))?;
    Ok(Hearing(tokio::spawn(async move {
        if ends.next().await.is_none() {
            return;
        }
        // Where it cannot be read now, each who waits looks for himself.
        match super::result_told(&bus, &tenant, &job).await {
            Ok(record) => drop(told.send_replace(record)),
            Err(error) => tracing::warn!(%tenant, %job, %error, "a result that cannot be read"),
        }
    })))
}

fn next_look() -> Instant {
    Instant::now() + LOOK + clock::jitter(LOOK)
}

/// Interest in one job, given up on drop.
#[derive(Debug)]
pub struct Waiter {
    bus: Bus,
    told: watch::Receiver<Option<Record>>,
    /// When it looks into RESULTS next; outlives a dropped wait.
    look: Instant,
    ear: Arc<Ear>,
}

impl Waiter {
    /// The record, whenever it comes. Safe to drop and call again. Looks into RESULTS now and then, so that a lost
    /// connection loses nothing.
    pub async fn record(&mut self) -> Record {
        loop {
            let (told, look) = (&mut self.told, self.look);
            let told = async { told.wait_for(Option::is_some).await.ok().and_then(|record| record.clone()) };
            tokio::select! {
                Some(record) = told => return record,
                () = tokio::time::sleep_until(look) => {}
            }
            self.look = next_look();
            let (tenant, job) = &self.ear.key;
            if let Ok(Some(record)) = super::result(&self.bus, tenant, job).await {
                return record;
            }
        }
    }
}
