//! Clients that only read, and know how old it is what they read.
//!
//! A writer counts up a row in each database and notes when each count was acknowledged. A reader notes when it asked. If
//! it is given a count whose successor had been acknowledged before it asked, what it read was out of date for the time
//! in between; exactly, by one clock, and pauses of the writer do not count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config};

use crate::harness::eventually;
use crate::harness::postgres::connect;

/// Connections that have to find the row one after another: HAProxy deals them out in turn, so that every replica is among them.
const LOOKS: usize = 8;

/// Waits until whoever is asked has the row: replicas may still be replaying how its database was made.
async fn arrived(read: &Config) -> Result<()> {
    eventually("the row that is read on every replica", Duration::from_secs(60), || async {
        for _ in 0..LOOKS {
            let client = connect(read).await?;
            client.query_one("SELECT n FROM load.beats WHERE id = 1", &[]).await?;
        }
        Ok(Some(()))
    })
    .await
}

/// One database: how its row is written, and how it is read.
#[derive(Debug, Clone)]
pub struct ReadTarget {
    /// Its name.
    pub database: String,
    /// Of the side that takes writes.
    pub write: Config,
    /// Through the balancer.
    pub read: Config,
}

/// How many of what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Readers of each database.
    pub readers: usize,
    /// Queries on one connection, before the reader makes another.
    pub queries: u32,
    /// Pause after a query.
    pub pause: Duration,
    /// Pause after a count.
    pub beat: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let (pause, beat) = (Duration::from_millis(10), Duration::from_millis(20));
        Options { readers: 2, queries: 50, pause, beat }
    }
}

/// What readers saw.
#[derive(Debug, Default, Clone)]
pub struct Reads {
    /// Answers.
    pub answered: u64,
    /// What failed, with the time since the start; connections that were refused included.
    pub failures: Vec<(Duration, String)>,
    /// The most out of date that anything read was; when, and on the server of which TCP port.
    pub oldest: (Duration, Duration, i32),
    /// Connections by TCP port of the server they came to.
    pub connections: BTreeMap<i32, u64>,
    /// Counts that were acknowledged.
    pub beats: u64,
}

impl Reads {
    fn add(&mut self, other: Reads) {
        self.answered += other.answered;
        self.failures.extend(other.failures);
        self.oldest = self.oldest.max(other.oldest);
        for (port, times) in other.connections {
            *self.connections.entry(port).or_default() += times;
        }
    }
}

#[derive(Debug)]
struct Shared {
    options: Options,
    started: Instant,
    stop: AtomicBool,
    seen: Mutex<Reads>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn see(&self, reads: Reads) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).add(reads);
    }
}

/// When each count of one database was acknowledged; the first is 0 and there from the start.
type Beats = Arc<Mutex<Vec<Instant>>>;

/// Running readers.
#[derive(Debug)]
pub struct Readers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    beats: Vec<Beats>,
}

impl Readers {
    /// Starts counting and, once the row has arrived where it is read, reading.
    ///
    /// # Errors
    /// When the row cannot be made.
    pub async fn start(targets: Vec<ReadTarget>, options: Options) -> Result<Readers> {
        let shared = Arc::new(Shared {
            options,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            seen: Mutex::default(),
        });
        let mut readers = Readers { shared: shared.clone(), tasks: Vec::new(), beats: Vec::new() };
        for target in targets {
            let client = connect(&target.write).await.context("connecting to make the row that is read")?;
            client.batch_execute("INSERT INTO load.beats VALUES (1, 0)").await?;
            arrived(&target.read).await?;
            let beats = Beats::new(Mutex::new(vec![Instant::now()]));
            let write = beat(shared.clone(), client, target.write.clone(), beats.clone());
            readers.tasks.push(tokio::spawn(write));
            for _ in 0..shared.options.readers {
                readers.tasks.push(tokio::spawn(read(shared.clone(), target.read.clone(), beats.clone())));
            }
            readers.beats.push(beats);
        }
        Ok(readers)
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Reads {
        std::mem::take(&mut *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends them, and gives what was seen since the last [`Readers::take`].
    ///
    /// # Errors
    /// When one panicked.
    pub async fn stop(self) -> Result<Reads> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        let mut reads = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let count = |beats: &Beats| beats.lock().unwrap_or_else(PoisonError::into_inner).len() as u64 - 1;
        reads.beats = self.beats.iter().map(count).sum();
        Ok(reads)
    }
}

/// Counts up until told to stop; a count that failed is tried again.
async fn beat(shared: Arc<Shared>, first: Client, config: Config, beats: Beats) {
    let mut client = Some(first);
    while !shared.stopped() {
        tokio::time::sleep(shared.options.beat).await;
        let open = match client.take().filter(|client| !client.is_closed()) {
            Some(open) => open,
            None => match connect(&config).await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        let next = beats.lock().unwrap_or_else(PoisonError::into_inner).len() as i64;
        let sql = "UPDATE load.beats SET n = $1 WHERE id = 1";
        let written = open.execute_typed(sql, &[(&next, Type::INT8)]).await;
        if matches!(written, Ok(1)) {
            beats.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        }
        client = Some(open);
    }
}

async fn read(shared: Arc<Shared>, config: Config, beats: Beats) {
    while !shared.stopped() {
        let mut seen = Reads::default();
        if let Err(why) = read_once(&shared, &config, &beats, &mut seen).await {
            seen.failures.push((shared.started.elapsed(), why));
            tokio::time::sleep(shared.options.pause).await;
        }
        shared.see(seen);
    }
}

/// One connection's queries.
async fn read_once(
    shared: &Shared,
    config: &Config,
    beats: &Beats,
    seen: &mut Reads,
) -> std::result::Result<(), String> {
    let failed = |error: tokio_postgres::Error| match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => error.to_string(),
    };
    let client = connect(config).await.map_err(failed)?;
    for query in 0..shared.options.queries {
        if shared.stopped() {
            break;
        }
        let asked = Instant::now();
        let sql = "SELECT n, inet_server_port() FROM load.beats WHERE id = 1";
        let row = client.query_typed_opt(sql, &[]).await.map_err(failed)?;
        // The row is made shortly before the readers start, and may not have arrived.
        let Some(row) = row else { continue };
        let (count, port): (i64, i32) = (row.get(0), row.get(1));
        if query == 0 {
            *seen.connections.entry(port).or_default() += 1;
        }
        let next = usize::try_from(count + 1).unwrap_or_default();
        let next = beats.lock().unwrap_or_else(PoisonError::into_inner).get(next).copied();
        let age = next.map(|next| asked.saturating_duration_since(next)).unwrap_or_default();
        seen.answered += 1;
        seen.oldest = seen.oldest.max((age, shared.started.elapsed(), port));
        tokio::time::sleep(shared.options.pause).await;
    }
    Ok(())
}
