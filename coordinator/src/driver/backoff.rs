//! How long to wait before asking again.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

/// Doubles from `first` up to `longest`.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, next: first, longest }
    }

    /// The next delay.
    pub(super) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        delay
    }

    /// Waits for the next delay.
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }

    /// Something worked: begin small again.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Between half and one and a half of it, as the salt has it: without chance, so that a simulation can be repeated.
pub(super) fn jittered(delay: Duration, salt: impl Hash) -> Duration {
    let mut hasher = DefaultHasher::new();
    salt.hash(&mut hasher);
    delay.mul_f64(0.5 + (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_salt_spreads_delays_within_their_bounds() {
        let delays: Vec<u128> =
            (0..100).map(|n| jittered(Duration::from_secs(1), ("o", n)).as_millis()).collect();
        assert!(delays.iter().all(|ms| (500..=1500).contains(ms)), "{delays:?}");
        assert!(delays.iter().any(|ms| *ms < 700) && delays.iter().any(|ms| *ms > 1300), "{delays:?}");
    }

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let delays: Vec<u64> = (0..5).map(|_| backoff.delay().as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.delay().as_secs(), 1);
    }
}
