//! What was measured, as it goes into `group.json`.

use serde::Serialize;

use super::disk::Stored;
use super::failover::Failover;
use super::group::Usage;

/// Several measurements of one thing. Percentiles are values that were seen.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// Half of them are not above it.
    pub p50: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values.
    pub fn of(values: &[f64]) -> Spread {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: f64| {
            let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
            sorted.get(rank - 1).copied().unwrap_or_default()
        };
        Spread { count: sorted.len(), p50: at(50.0), p99: at(99.0), max: at(100.0) }
    }
}

/// A coordinator's process.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Cost {
    /// Its number.
    pub member: usize,
    /// It led from beginning to end.
    pub led: bool,
    /// Resident memory before the load, in bytes.
    pub at_rest: u64,
    /// And when every operation stood at its gate.
    pub at_gate: u64,
    /// At its peak.
    pub peak: u64,
    /// Processor time during the load, in seconds.
    pub cpu_seconds: f64,
}

impl Cost {
    /// From what was read before and after.
    pub fn between(member: usize, led: bool, before: Usage, after: Usage) -> Cost {
        Cost {
            member: member + 1,
            led,
            at_rest: before.resident,
            at_gate: after.resident,
            peak: after.peak,
            cpu_seconds: after.cpu - before.cpu,
        }
    }
}

/// All operations at once, nobody killed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Undisturbed {
    /// From the first `start` to the last answer, in seconds.
    pub start_seconds: f64,
    /// From the first `start` to the last gate, in seconds.
    pub seconds: f64,
    /// All steps by that time.
    pub steps_per_second: f64,
    /// From the end of what a step waits for to its beginning on its host, in milliseconds: two commits, one greeting.
    pub turnaround_ms: Spread,
    /// Of a small change, in milliseconds.
    pub commit_ms: Spread,
    /// Of the status of one operation.
    pub status_ms: Spread,
    /// Of the status of all.
    pub status_all_ms: Spread,
    /// Each member's process.
    pub processes: Vec<Cost>,
    /// Each member's file after it has ended.
    pub files: Vec<Stored>,
    /// Whether one member led all the time.
    pub one_leader: bool,
}

/// All operations at once, and the leader killed again and again.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Disturbed {
    /// From the first `start` to the last gate, in seconds.
    pub seconds: f64,
    /// Each death.
    pub failovers: Vec<Failover>,
    /// Starts of steps that met one under way or done: what the next leaders joined.
    pub joined: u64,
    /// Calls that agents refused because their fence was old.
    pub refused: u64,
}

/// One size of fleet.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Simulated agents.
    pub agents: usize,
    /// Operations at once.
    pub operations: usize,
    /// Steps of all of them.
    pub steps: u64,
    /// First run.
    pub undisturbed: Undisturbed,
    /// Second run.
    pub disturbed: Disturbed,
}

/// Everything.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Whole {
    /// Processors of the machine, on which everything ran.
    pub processors: usize,
    /// Of one page written with fdatasync, in milliseconds, while nothing else ran.
    pub disk_sync_ms: Spread,
    /// Mean length of a step in the first run and in the second, in milliseconds.
    pub step_ms: [u64; 2],
    /// By size.
    pub sizes: Vec<Figures>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let spread = Spread::of(&(1..=200).rev().map(f64::from).collect::<Vec<_>>());
        assert_eq!((spread.count, spread.p50, spread.p99, spread.max), (200, 100.0, 198.0, 200.0));
        assert_eq!(Spread::of(&[]).max, 0.0);
    }
}
