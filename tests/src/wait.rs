//! Waiting for a sign instead of for luck.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a sign is looked for.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks for a sign until it is there.
///
/// # Panics
/// When it is not there `within` that time.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut sign: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = sign().await {
            return found;
        }
        assert!(start.elapsed() < within, "waited {within:?} for {what}");
        tokio::time::sleep(INTERVAL).await;
    }
}
