//! How long clients waited: the longest time without an acknowledged commit around each switchover.

use std::fmt;
use std::time::Duration;

use crate::ledger::Record;

/// Stalls of several switchovers, in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Stalls {
    /// In the order in which they happened.
    pub ms: Vec<f64>,
}

impl Stalls {
    /// Of each of these times, by the clock of the record.
    pub fn of(record: &Record, windows: &[(Duration, Duration)]) -> Stalls {
        let stall = |(from, to): &(Duration, Duration)| record.stall(*from, *to).as_secs_f64() * 1000.0;
        Stalls { ms: windows.iter().map(stall).collect() }
    }

    /// The smallest one that is not exceeded by this share of them; 0 when there are none.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.ms.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).or(sorted.last()).copied().unwrap_or_default()
    }

    /// The longest.
    pub fn max(&self) -> f64 {
        self.percentile(100.0)
    }
}

impl fmt::Display for Stalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = (self.percentile(50.0), self.percentile(99.0), self.max());
        write!(f, "{} of p50 {p50:.0} ms, p99 {p99:.0} ms, max {max:.0} ms", self.ms.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let stalls = Stalls { ms: (1..=200).rev().map(f64::from).collect() };
        assert_eq!([50.0, 99.0, 100.0].map(|p| stalls.percentile(p)), [100.0, 198.0, 200.0]);
        assert_eq!(Stalls { ms: vec![7.0] }.percentile(50.0), 7.0);
        assert_eq!(Stalls::default().max(), 0.0);
    }
}
