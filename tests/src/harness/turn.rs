//! How many fleets run at once on this machine, over all test processes.

use std::fs::File;
use std::time::Duration;

use anyhow::Result;

use super::eventually::eventually;
use super::ports::shared_dir;

/// Held while a fleet runs; the kernel gives it back when the process ends in whatever way.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits for one of `PGLEAP_TEST_FLEETS` places (the number of processors when unset).
    ///
    /// # Errors
    /// When none came free within half an hour.
    pub async fn take() -> Result<Turn> {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let places =
            std::env::var("PGLEAP_TEST_FLEETS").ok().and_then(|n| n.parse().ok()).unwrap_or(processors);
        let directory = shared_dir("turns")?;
        eventually("a turn to run a fleet", Duration::from_secs(1800), || async {
            for place in 0..places.max(1) {
                let lock = File::create(directory.join(place.to_string()))?;
                if lock.try_lock().is_ok() {
                    return Ok(Some(Turn { _lock: lock }));
                }
            }
            Ok(None)
        })
        .await
    }
}
