//! One steady clock for everything that ages are told by: it begins as the host's clock and never jumps.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static START: LazyLock<(Instant, i64)> = LazyLock::new(|| {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
});

/// Microseconds since 1970, as the host's clock said when the agent started.
pub fn now_us() -> i64 {
    START.1.saturating_add(i64::try_from(START.0.elapsed().as_micros()).unwrap_or(i64::MAX))
}
