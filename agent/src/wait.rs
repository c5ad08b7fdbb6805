//! Polling with a deadline, for conditions that nothing notifies: another server's catalogs, a process, a log file.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often a condition is looked at.
const TICK: Duration = Duration::from_millis(100);

/// A wait that ends. The loop around it looks at the condition itself.
#[derive(Debug, Clone, Copy)]
pub struct Wait {
    since: Instant,
    limit: Duration,
}

impl Wait {
    /// A wait of at most this long, beginning now.
    pub fn of(limit: Duration) -> Wait {
        Wait { since: Instant::now(), limit }
    }

    /// Sleeps for a moment; false when the time was over before.
    pub async fn again(&self) -> bool {
        if self.is_over() {
            return false;
        }
        sleep(TICK).await;
        true
    }

    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        self.since.elapsed() >= self.limit
    }

    /// Begins anew: something moved.
    pub fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// Time since it began.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}
