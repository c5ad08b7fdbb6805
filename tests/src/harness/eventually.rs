//! The one place that waits by asking again.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks until there is an answer, or the limit has passed.
///
/// `Ok(None)` and `Err` both mean "not yet"; the last error is told when time is up.
///
/// # Errors
/// Names what was waited for, for how long, and what the last question failed with.
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let started = Instant::now();
    loop {
        let failure = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() > limit {
            match failure {
                Some(error) => return Err(error.context(format!("waited {limit:?} for {what}"))),
                None => bail!("waited {limit:?} for {what}, in vain"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The same where nothing can be awaited: in destructors. True when the condition came to hold.
pub fn eventually_blocking(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        // Nothing notifies of the end of a process that is no child of ours.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(PAUSE);
    }
}
