//! PURE: how long a reader has to wait so that rows read do not exceed a rate. It knows no clock: times are passed in.

use std::time::Duration;

/// Rows a second, with debt: a reading may cost more than was there, and the next one waits until that is paid.
/// A chunk's size is known only after it was read, so the price is paid afterwards.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// 0: no limit.
    rows_per_second: u64,
    /// Since the start: when everything read so far will have been paid.
    paid_at: Duration,
}

impl RateLimit {
    /// A limit; 0 for none.
    pub fn new(rows_per_second: u64) -> RateLimit {
        RateLimit { rows_per_second, paid_at: Duration::ZERO }
    }

    /// How long to wait from `now` (since the start) before reading on.
    pub fn wait(&self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    /// These rows were read. Time in which nothing was read is not saved up: the rate holds in every stretch of time, but for the
    /// last reading.
    pub fn charge(&mut self, now: Duration, rows: u64) {
        if self.rows_per_second > 0 {
            let price = Duration::from_secs_f64(rows as f64 / self.rows_per_second as f64);
            self.paid_at = self.paid_at.max(now).saturating_add(price);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn debt_is_paid_before_the_next_reading() {
        let mut limit = RateLimit::new(1000);
        assert_eq!(limit.wait(Duration::ZERO), Duration::ZERO);
        limit.charge(Duration::ZERO, 2500);
        assert_eq!(limit.wait(Duration::ZERO), SECOND * 5 / 2);
        assert_eq!(limit.wait(SECOND), SECOND * 3 / 2);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut limit = RateLimit::new(1000);
        limit.charge(SECOND * 100, 1000);
        assert_eq!(limit.wait(SECOND * 100), SECOND);
    }

    #[test]
    fn zero_is_no_limit() {
        let mut limit = RateLimit::new(0);
        limit.charge(Duration::ZERO, u64::MAX);
        assert_eq!(limit.wait(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn many_small_readings_keep_the_rate() {
        let mut limit = RateLimit::new(10_000);
        let mut now = Duration::ZERO;
        for _ in 0..50 {
            now += limit.wait(now);
            limit.charge(now, 1000);
        }
        now += limit.wait(now);
        assert_eq!(now, SECOND * 5);
    }
}
