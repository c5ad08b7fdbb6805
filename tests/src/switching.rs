//! Scenarios whose traffic moves: who takes writes, as an ordinary client sees it, and the proof on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;

use crate::harness::drain::drain;
use crate::harness::pgleap::Ran;
use crate::harness::postgres::{APP, Server, connect};
use crate::harness::{TrafficOptions, eventually};
use crate::ledger::{Record, verify};
use crate::readers::{ReadTarget, Readers};
use crate::scenario::{LIMIT, Options, Scenario};

/// What `switchover` has to be told to accept on the harness's databases.
pub const ACCEPT: &str = "materialized-views";
/// Longest time a switchover may take, with everything before the pause.
pub const SWITCH_LIMIT: Duration = Duration::from_secs(120);

/// One side of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The old cluster.
    Old,
    /// The new one.
    New,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::Old => Side::New,
            Side::New => Side::Old,
        }
    }

    /// The verb that moves writes away from this side.
    pub fn verb(self) -> &'static str {
        match self {
            Side::Old => "switchover",
            Side::New => "reverse",
        }
    }
}

/// A switchover that went through, by the clock of the load.
#[derive(Debug, Clone, Copy)]
pub struct Switched {
    /// Side that takes writes since.
    pub to: Side,
    /// When the verb was typed.
    pub began: Duration,
    /// When it had ended.
    pub ended: Duration,
}

/// A scenario with poolers and a balancer; load and readers are started by the scenario itself.
pub fn options(settings: &[(&str, &str)]) -> Options {
    let mut options = Options { rate: 0.0, ..Options::default() };
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    options.fleet.traffic = Some(TrafficOptions { settings: settings.collect(), ..Default::default() });
    // Four processes of PgBouncer, three entries each.
    options.fleet.old.settings = vec![("max_connections".into(), "150".into())];
    options
}

impl Scenario {
    /// Adds what `pgleap status` says to an error.
    ///
    /// # Errors
    /// The one given.
    pub async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let ran = self.fleet.pgleap(&["status", &self.fleet.name]).await;
                Err(error.context(ran.map(|ran| ran.text()).unwrap_or_default()))
            }
        }
    }

    /// The leader of a side.
    pub fn leader(&self, side: Side) -> &Server {
        match side {
            Side::Old => self.fleet.old.primary(),
            Side::New => self.fleet.new_leader(),
        }
    }

    /// `pgleap start`, and waits at the gate: everything is made that a switchover needs.
    ///
    /// # Errors
    /// When the operation stops or takes too long.
    pub async fn to_the_gate(&self) -> Result<()> {
        self.start().await?;
        self.fleet.wait_done(LIMIT).await.map(drop)
    }

    /// Sides to which an ordinary client can write, around any pooler, over TCP or over the socket.
    pub async fn open_sides(&self) -> Vec<Side> {
        let mut open = Vec::new();
        for side in [Side::Old, Side::New] {
            let leader = self.leader(side);
            let mut ways = Vec::new();
            for database in &self.databases {
                ways.extend([leader.direct(database), leader.config_as(APP, database)]);
            }
            for way in ways {
                if takes_writes(&way).await {
                    open.push(side);
                    break;
                }
            }
        }
        open
    }

    /// Waits until an ordinary client cannot write on a server.
    ///
    /// # Errors
    /// When one can all the time.
    pub async fn keeps_clients_out(&self, server: &Server, limit: Duration) -> Result<()> {
        let way = server.direct(&self.databases[0]);
        eventually(&format!("{} to keep clients out", server.name), limit, || async {
            Ok((!takes_writes(&way).await).then_some(()))
        })
        .await
    }

    /// Waits until exactly one side is open, and gives it.
    ///
    /// # Errors
    /// When none or both are open all the time.
    pub async fn writer(&self, limit: Duration) -> Result<Side> {
        eventually("exactly one side to take writes", limit, || async {
            let open = self.open_sides().await;
            ensure!(open.len() == 1, "open to clients: {open:?}");
            Ok(open.first().copied())
        })
        .await
    }

    /// Moves writes to the other side by the verb for it, which has to succeed.
    ///
    /// # Errors
    /// When it is taken back, or writes are not on the other side afterwards.
    pub async fn switch(&self) -> Result<Switched> {
        let from = self.writer(Duration::from_secs(10)).await?;
        let began = self.elapsed();
        let ran = self.try_switch(from).await?;
        let ended = self.elapsed();
        ensure!(ran.code == 0, "pgleap {} ended with {}: {}", from.verb(), ran.code, ran.text());
        let to = self.writer(Duration::from_secs(10)).await?;
        ensure!(to == from.other(), "after {} clients can write to {to:?}: {}", from.verb(), ran.text());
        self.poolers_point_to(to).await?;
        Ok(Switched { to, began, ended })
    }

    /// The verb that moves writes away from a side, whatever comes of it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn try_switch(&self, from: Side) -> Result<Ran> {
        self.fleet.begin(&[from.verb(), &self.fleet.name, "--accept", ACCEPT]).end(SWITCH_LIMIT).await
    }

    /// Every entry of every pooler reaches that side's leader, and none is paused.
    ///
    /// # Errors
    /// When one does not within half a minute.
    pub async fn poolers_point_to(&self, side: Side) -> Result<()> {
        let psql = self.leader(side).bin_dir.join("psql");
        let port = self.leader(side).port;
        for pooler in self.fleet.pooler_processes() {
            let what = format!("{} to reach the {side:?} side", pooler.name);
            eventually(&what, Duration::from_secs(30), || async {
                let ports = pooler.points_to(&self.fleet.base, &psql).await?;
                ensure!(ports.iter().all(|p| *p == port), "{ports:?} instead of {port}");
                let paused = pooler.paused(&self.fleet.base, &psql).await?;
                ensure!(paused.is_empty(), "paused: {paused:?}");
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// The leader of a side follows the other one, in every database, and the other one does not follow it.
    ///
    /// # Errors
    /// When it is otherwise.
    pub async fn follows(&self, side: Side) -> Result<()> {
        for database in &self.databases {
            let sql = "SELECT string_agg(subenabled::text, ' ') FROM pg_subscription \
                       WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
            let follower = self.leader(side).value(database, sql).await?;
            let writer = self.leader(side.other()).value(database, sql).await?;
            ensure!(
                follower.as_deref() == Some("true") && writer.as_deref() == Some("false"),
                "{database}: subscriptions of the follower are enabled {follower:?}, the writer's {writer:?}"
            );
        }
        Ok(())
    }

    /// Starts clients that read through the balancer.
    ///
    /// # Errors
    /// When the row they read cannot be made.
    pub async fn readers(&self) -> Result<Readers> {
        let balancer = self.fleet.balancer.as_ref().context("no balancer")?;
        // It has checked its servers before anything answered for them, and checks again in a moment.
        eventually("a server for reads", Duration::from_secs(30), || async {
            let states = balancer.servers().await?;
            Ok(states.iter().any(|(_, weight, state)| *weight > 0 && state == "UP").then_some(()))
        })
        .await?;
        let targets: Option<Vec<ReadTarget>> = self
            .databases
            .iter()
            .map(|database| {
                let write = self.fleet.pooled(database).into_iter().next()?;
                Some(ReadTarget { database: database.clone(), write, read: balancer.config(database) })
            })
            .collect();
        Readers::start(targets.context("a database that no pooler has")?, Default::default()).await
    }

    /// Waits until everything written has arrived everywhere, and proves every transaction of the books on both leaders
    /// and on all replicas. Nothing may be written meanwhile.
    ///
    /// # Errors
    /// When something does not arrive or is not as it has to be.
    pub async fn prove_both_sides(&self, writer: Side, records: &[Record]) -> Result<()> {
        self.drain(writer).await?;
        let servers: Vec<&Server> = self.fleet.old.nodes.iter().chain(&self.fleet.new).collect();
        self.prove_on(&servers, records).await
    }

    /// Waits until everything written on a side has arrived on the other one and on all replicas.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn drain(&self, writer: Side) -> Result<()> {
        let replicas: Vec<Server> =
            self.fleet.old.nodes[1..].iter().chain(&self.fleet.new[1..]).cloned().collect();
        let (from, to) = (self.leader(writer), self.leader(writer.other()));
        drain(from, to, &replicas, &self.databases, Duration::from_secs(60)).await
    }

    /// Proves every transaction of the books on these servers.
    ///
    /// # Errors
    /// When something is not as it has to be.
    pub async fn prove_on(&self, servers: &[&Server], records: &[Record]) -> Result<()> {
        for server in servers {
            for record in records {
                let verdict = verify(record, |database| server.config(database)).await?;
                verdict.require(&server.name)?;
                ensure!(
                    verdict.acknowledged == record.acknowledged(),
                    "not every transaction was looked for"
                );
            }
        }
        Ok(())
    }

    /// Watches until it is ended that never both sides are open at once.
    pub fn watch_sides(&self) -> SideWatch {
        let database = self.databases.first().cloned().unwrap_or_default();
        let ways = [Side::Old, Side::New].map(|side| self.leader(side).config_as(APP, &database));
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(watch(ways, stop.clone(), rounds.clone()));
        SideWatch { stop, rounds, task }
    }
}

/// Whether a client can begin to write. Nothing is left of it.
pub async fn takes_writes(way: &tokio_postgres::Config) -> bool {
    let Ok(client) = connect(way).await else { return false };
    let sql = "BEGIN; INSERT INTO load.marks VALUES (gen_random_uuid()); ROLLBACK";
    client.batch_execute(sql).await.is_ok()
}

/// A running watch over both sides.
#[derive(Debug)]
pub struct SideWatch {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    task: JoinHandle<u64>,
}

impl SideWatch {
    /// Ends it.
    ///
    /// # Errors
    /// When both sides were open at once, or it never looked.
    pub async fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let both = self.task.await?;
        ensure!(both == 0, "{both} times both sides were open to clients at once");
        ensure!(self.rounds.load(Ordering::Relaxed) > 0, "nobody looked at the two sides");
        Ok(())
    }
}

/// Counts how often the old side was open both before and after the new one was found open.
async fn watch(ways: [tokio_postgres::Config; 2], stop: Arc<AtomicBool>, rounds: Arc<AtomicU64>) -> u64 {
    let [old, new] = &ways;
    let mut both = 0;
    while !stop.load(Ordering::Relaxed) {
        if takes_writes(old).await && takes_writes(new).await && takes_writes(old).await {
            both += 1;
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    both
}
