//! The books of a load: what every worker did and how long nothing was acknowledged.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::effect::{Effect, Logged, Outcome};
use super::{Options, Target};

/// The books of one worker.
#[derive(Debug, Clone)]
pub struct WorkerRecord {
    /// Its number.
    pub worker: i32,
    /// In the order in which it ran them.
    pub transactions: Vec<Logged>,
    /// Connections it made; more than one when some broke.
    pub connections: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Where the server contradicted what it had acknowledged before.
    pub contradictions: Vec<String>,
}

impl WorkerRecord {
    pub(super) fn new(worker: i32) -> WorkerRecord {
        WorkerRecord {
            worker,
            transactions: Vec::new(),
            connections: 0,
            refused: 0,
            contradictions: Vec::new(),
        }
    }
}

/// The books of one database.
#[derive(Debug, Clone)]
pub struct DatabaseRecord {
    /// Its name.
    pub database: String,
    /// One each.
    pub workers: Vec<WorkerRecord>,
}

/// The books of a whole load.
#[derive(Debug, Clone)]
pub struct Record {
    /// Parallel to the targets.
    pub databases: Vec<DatabaseRecord>,
    /// Number of the first worker.
    pub first_worker: i32,
    /// Workers on each database.
    pub workers: i32,
    /// How long it ran.
    pub seconds: f64,
}

impl Record {
    pub(super) fn new(targets: &[Target], options: &Options) -> Record {
        let database =
            |target: &Target| DatabaseRecord { database: target.database.clone(), workers: Vec::new() };
        Record {
            databases: targets.iter().map(database).collect(),
            first_worker: options.first_worker,
            workers: i32::try_from(options.workers).unwrap_or(i32::MAX),
            seconds: 0.0,
        }
    }

    /// All transactions with the workers that ran them.
    pub fn transactions(&self) -> impl Iterator<Item = (i32, &Logged)> {
        let workers = self.databases.iter().flat_map(|database| &database.workers);
        workers.flat_map(|worker| worker.transactions.iter().map(|logged| (worker.worker, logged)))
    }

    /// Commits that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.transactions().filter(|(_, logged)| logged.outcome == Outcome::Acknowledged).count() as u64
    }

    /// Rows that acknowledged transactions inserted, updated or deleted, those of the ledger table and of triggers
    /// included.
    pub fn rows_written(&self) -> u64 {
        let acknowledged = self.transactions().filter(|(_, logged)| logged.outcome == Outcome::Acknowledged);
        acknowledged.map(|(_, logged)| 1 + logged.effects.iter().map(Effect::rows).sum::<u64>()).sum()
    }

    /// Transactions that failed without having been asked to, those of unknown outcome included.
    pub fn failed(&self) -> u64 {
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_) | Outcome::Unknown(_));
        self.transactions().filter(|(_, logged)| failed(&logged.outcome)).count() as u64
    }

    /// No transaction failed.
    ///
    /// # Errors
    /// With the reasons.
    pub fn none_failed(&self) -> Result<()> {
        ensure!(self.failed() == 0, "transactions failed: {:?}", self.failures());
        Ok(())
    }

    /// Different reasons of failures, for messages.
    pub fn failures(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self
            .transactions()
            .filter_map(|(_, logged)| match &logged.outcome {
                Outcome::Failed(why) | Outcome::Unknown(why) => Some(why.clone()),
                _ => None,
            })
            .collect();
        reasons.sort();
        reasons.dedup();
        reasons
    }

    /// Longest time in which no worker on any database got a commit acknowledged.
    pub fn longest_gap(&self) -> Duration {
        let mut times: Vec<Duration> = self.acknowledged_at(|_| true);
        times.sort_unstable();
        longest(&times)
    }

    /// Longest time in which some one worker got no commit acknowledged.
    pub fn longest_worker_gap(&self) -> Duration {
        let workers = self.databases.iter().flat_map(|database| &database.workers);
        workers
            .map(|worker| {
                let acknowledged = worker.transactions.iter();
                let acknowledged = acknowledged.filter(|logged| logged.outcome == Outcome::Acknowledged);
                longest(&acknowledged.map(|logged| logged.at).collect::<Vec<_>>())
            })
            .max()
            .unwrap_or_default()
    }

    /// Times in which no worker on any database got a commit acknowledged, longer than `least`: when, and how long.
    pub fn stalls(&self, least: Duration) -> Vec<(Duration, Duration)> {
        let mut times: Vec<Duration> = self.acknowledged_at(|_| true);
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| (pair[0], pair[1].saturating_sub(pair[0])));
        gaps.filter(|(_, gap)| *gap > least).collect()
    }

    /// Longest time in which no worker on any database got a commit acknowledged, of those that touch the time from
    /// `from` to `to`: the stall of what happened in between.
    pub fn stall(&self, from: Duration, to: Duration) -> Duration {
        let mut times: Vec<Duration> = self.acknowledged_at(|_| true);
        times.sort_unstable();
        let gaps = times.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
        gaps.map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }

    /// Connections that were refused, and those made again after one broke.
    pub fn reconnections(&self) -> u64 {
        let workers = self.databases.iter().flat_map(|database| &database.workers);
        workers.map(|worker| worker.refused + worker.connections.saturating_sub(1)).sum()
    }

    fn acknowledged_at(&self, counts: impl Fn(i32) -> bool) -> Vec<Duration> {
        let all = self
            .transactions()
            .filter(|(worker, logged)| counts(*worker) && logged.outcome == Outcome::Acknowledged);
        all.map(|(_, logged)| logged.at).collect()
    }
}

fn longest(times: &[Duration]) -> Duration {
    times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
}
