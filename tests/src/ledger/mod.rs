//! Load whose *client* remembers every commit the server acknowledged, so that each can be looked for afterwards.
//!
//! Workers write through ordinary connections: inserts, updates, deletes, transactions of several statements,
//! sequences, large values, a partitioned table, tables without a key. Every transaction leaves its own number in a
//! table without constraints, together with what it did elsewhere. Afterwards, on any server that should hold the
//! data, [`verify`] proves of each transaction: acknowledged, so there exactly once; rolled back, so not there;
//! unknown (the connection broke during COMMIT), so there at most once and completely, or not at all. What the tables
//! must contain follows from replaying the transactions that are there.
//!
//! It knows nothing of upgrades: through poolers and switchovers it reconnects like any client.

mod effect;
mod expect;
mod light;
mod model;
mod perform;
mod record;
mod tables;
mod verify;
mod worker;

pub use effect::{Effect, Logged, Outcome};
pub use expect::Contents;
pub use record::Record;
pub use tables::create;
pub use verify::{Verdict, verify, verify_database};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::Config;

/// One database to write to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name.
    pub database: String,
    /// How to reach it, now and after every broken connection: worker by worker another one, in turn.
    pub configs: Vec<Config>,
}

impl Target {
    /// A database that every worker reaches in the same way.
    pub fn new(database: &str, config: Config) -> Target {
        Target { database: database.to_owned(), configs: vec![config] }
    }
}

/// How much of what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections to each database.
    pub workers: usize,
    /// Transactions a second over the workers of one database; 0 for as fast as it goes.
    pub rate: f64,
    /// Decides what is written; the same seed gives the same choices.
    pub seed: u64,
    /// Number of the first worker of this ledger: two ledgers in one database need different ones.
    pub first_worker: i32,
    /// Every transaction stays open this long before its COMMIT.
    pub hold: Duration,
    /// Bytes of large values, from and to.
    pub large: (usize, usize),
    /// Mostly transactions of one statement and one round trip, and no large values: many of them.
    pub light: bool,
    /// A statement that takes longer counts as a broken connection.
    pub patience: Duration,
}

impl Options {
    /// A light load, so many transactions a second.
    pub fn light(rate: f64) -> Self {
        Options { rate, light: true, ..Options::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            workers: 4,
            rate: 100.0,
            seed: 1,
            first_worker: 1,
            hold: Duration::ZERO,
            large: (20_000, 160_000),
            light: false,
            patience: Duration::from_secs(60),
        }
    }
}

/// What running workers share.
#[derive(Debug)]
struct Shared {
    options: Options,
    started: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

/// Running load.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    workers: Vec<(usize, JoinHandle<record::WorkerRecord>)>,
    targets: Vec<Target>,
}

impl Ledger {
    /// Adds this ledger's rows to tables that [`create`] made, and starts writing.
    ///
    /// # Errors
    /// When a database cannot be reached or lacks the tables.
    pub async fn start(targets: Vec<Target>, options: Options) -> Result<Ledger> {
        for target in &targets {
            let config = target.configs.first().context("a target without a way to reach it")?;
            tables::prepare(config, &options)
                .await
                .with_context(|| format!("preparing the load in database {}", target.database))?;
        }
        let shared = Arc::new(Shared {
            options,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let mut workers = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            for n in 0..shared.options.workers {
                let worker = shared.options.first_worker + i32::try_from(n)?;
                let config = target.configs[n % target.configs.len()].clone();
                let task = worker::run(shared.clone(), config, worker, index as u64);
                workers.push((index, tokio::spawn(task)));
            }
        }
        Ok(Ledger { shared, workers, targets })
    }

    /// How long it has been running: the clock of its [`Record`].
    pub fn elapsed(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Commits acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Transactions so far that failed without having been asked to.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Ends the load after the transactions under way, and gives the books.
    ///
    /// # Errors
    /// When a worker panicked.
    pub async fn stop(self) -> Result<Record> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut record = Record::new(&self.targets, &self.shared.options);
        for (index, worker) in self.workers {
            record.databases[index].workers.push(worker.await?);
        }
        record.seconds = self.shared.started.elapsed().as_secs_f64();
        Ok(record)
    }
}
