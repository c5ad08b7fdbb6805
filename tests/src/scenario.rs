//! What most scenarios have in common: a fleet with rich databases under load, and the proof at the end.

use std::time::Duration;

use anyhow::{Result, ensure};
use pgleap_proto::fleet::OperationStatus;
use pgleap_proto::step::{ValidatedOutput, VerifiedOutput, output};

use crate::harness::drain::drain;
use crate::harness::postgres::APP;
use crate::harness::{Fleet, FleetOptions, eventually};
use crate::ledger::{self, Ledger, Record, Target, Verdict, verify};
use crate::schema;

/// Longest time a whole upgrade of a small fleet may take.
pub const LIMIT: Duration = Duration::from_secs(600);
/// The tablespace of scenarios that have one.
pub const TABLESPACE: &str = "fast space";

/// What the scenario is like.
#[derive(Debug, Clone)]
pub struct Options {
    /// The fleet.
    pub fleet: FleetOptions,
    /// Orders in each database.
    pub rows: u32,
    /// Transactions a second in each database; 0 for no load.
    pub rate: f64,
    /// Transactions that stay open for this long, started one after another, so that there is always one in flight.
    pub held: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let mut fleet = FleetOptions::default();
        fleet.old.tablespaces = vec![TABLESPACE.to_owned()];
        Options { fleet, rows: 1_000, rate: 60.0, held: None }
    }
}

/// A fleet under load.
#[derive(Debug)]
pub struct Scenario {
    /// The fleet, its fleet file applied.
    pub fleet: Fleet,
    /// Databases with the rich schema.
    pub databases: Vec<String>,
    loads: Vec<Ledger>,
}

/// What came of it.
#[derive(Debug)]
pub struct Proof {
    /// The books: of the load, then of the transactions held open.
    pub records: Vec<Record>,
    /// Verdicts on the new leader, then on each new replica, parallel to the records within each.
    pub verdicts: Vec<(String, Verdict)>,
    /// The operation at its end.
    pub status: OperationStatus,
    /// What the validation found.
    pub validated: ValidatedOutput,
}

impl Scenario {
    /// Makes the fleet and its databases, applies the fleet file, starts the load.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn begin(options: Options) -> Result<Scenario> {
        let fleet = Fleet::make(options.fleet.clone()).await?;
        let tablespace = options.fleet.old.tablespaces.first().map(String::as_str);
        let databases = schema::make(fleet.old.primary(), tablespace, options.rows).await?;
        fleet.apply().await?;
        let mut scenario = Scenario { fleet, databases, loads: Vec::new() };
        if options.rate > 0.0 {
            scenario.load(ledger::Options { rate: options.rate, ..ledger::Options::default() }).await?;
        }
        if let Some(hold) = options.held {
            let held =
                ledger::Options { first_worker: 50, workers: 3, hold, rate: 0.0, ..Default::default() };
            scenario.load(held).await?;
        }
        Ok(scenario)
    }

    /// Starts a load on all databases: through the poolers where there are any, else on the old primary.
    ///
    /// # Errors
    /// When a database cannot be reached.
    pub async fn load(&mut self, options: ledger::Options) -> Result<()> {
        let primary = self.fleet.old.primary();
        let target = |name: &String| match self.fleet.pooled(name) {
            none if none.is_empty() => Target::new(name, primary.config_as(APP, name)),
            pooled => Target { database: name.clone(), configs: pooled },
        };
        self.loads.push(Ledger::start(self.databases.iter().map(target).collect(), options).await?);
        Ok(())
    }

    /// How long the first load has been running: the clock of its record.
    pub fn elapsed(&self) -> Duration {
        self.loads.first().map(Ledger::elapsed).unwrap_or_default()
    }

    /// Transactions of all loads that failed so far.
    pub fn failed(&self) -> u64 {
        self.loads.iter().map(Ledger::failed).sum()
    }

    /// Commits acknowledged so far, of all loads.
    pub fn acknowledged(&self) -> u64 {
        self.loads.iter().map(Ledger::acknowledged).sum()
    }

    /// `pgleap start`, and waits until the operation shows in `status`.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn start(&self) -> Result<()> {
        self.fleet.pgleap_ok(&["start", &self.fleet.name, "--accept-warnings"]).await?;
        self.fleet.wait_for("the operation to show", Duration::from_secs(30), |_| true).await.map(drop)
    }

    /// `pgleap cancel`, to its end.
    ///
    /// # Errors
    /// When it is refused, or stops.
    pub async fn cancel(&self) -> Result<()> {
        self.fleet.pgleap_ok(&["cancel", &self.fleet.name, "--yes", "--wait"]).await.map(drop)
    }

    /// `pgleap finish`, to its end.
    ///
    /// # Errors
    /// When it is refused, or stops.
    pub async fn finish(&self) -> Result<()> {
        self.fleet.pgleap_ok(&["finish", &self.fleet.name, "--yes"]).await.map(drop)
    }

    /// Waits for the end of the operation, lets some more be written, stops the load, and proves everything: each
    /// transaction on the new leader and on every new replica, and that the old cluster was not harmed.
    ///
    /// # Errors
    /// When anything is not as it has to be.
    pub async fn prove(&mut self) -> Result<Proof> {
        let proof = self.prove_what_was_written().await?;
        proof.records.iter().try_for_each(Record::none_failed)?;
        Ok(proof)
    }

    /// The same where transactions may have failed, because servers were killed: of what was acknowledged nothing is
    /// missing, of what was refused nothing is there.
    ///
    /// # Errors
    /// When anything is not as it has to be.
    pub async fn prove_what_was_written(&mut self) -> Result<Proof> {
        let status = self.fleet.wait_done(LIMIT).await?;
        let validated = validated(&status);
        ensure!(validated.differing.is_empty(), "validation: {:?}", validated.differing);
        self.write_more(100).await?;
        let records = self.stop_load().await?;
        let primary = self.fleet.old.primary();
        let (leader, replicas) = (self.fleet.new_leader(), &self.fleet.new[1..]);
        drain(primary, leader, replicas, &self.databases, Duration::from_secs(60)).await?;

        let mut verdicts = Vec::new();
        for server in std::iter::once(primary).chain(&self.fleet.new) {
            for record in &records {
                let verdict = verify(record, |database| server.config(database)).await?;
                verdict.require(&server.name)?;
                ensure!(
                    verdict.acknowledged == record.acknowledged(),
                    "not every transaction was looked for"
                );
                if server.name != primary.name {
                    verdicts.push((server.name.clone(), verdict));
                }
            }
        }
        self.new_cluster_is_sound().await?;
        Ok(Proof { records, verdicts, status, validated })
    }

    /// Waits until that many more commits have been acknowledged; does nothing without load.
    ///
    /// # Errors
    /// When the load makes no progress.
    pub async fn write_more(&self, commits: u64) -> Result<()> {
        self.write_more_within(commits, Duration::from_secs(60)).await
    }

    /// The same within a time.
    ///
    /// # Errors
    /// When it has passed.
    pub async fn write_more_within(&self, commits: u64, limit: Duration) -> Result<()> {
        if self.loads.is_empty() {
            return Ok(());
        }
        let goal = self.acknowledged() + commits;
        eventually(&format!("{commits} more commits"), limit, || async {
            Ok((self.acknowledged() >= goal).then_some(()))
        })
        .await
    }

    /// Stops all loads.
    ///
    /// # Errors
    /// When a worker panicked.
    pub async fn stop_load(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for load in self.loads.drain(..) {
            records.push(load.stop().await?);
        }
        Ok(records)
    }

    /// Stops the load that was started first, of those that run.
    ///
    /// # Errors
    /// When there is none, or a worker panicked.
    pub async fn stop_first_load(&mut self) -> Result<Record> {
        ensure!(!self.loads.is_empty(), "no load runs");
        self.loads.remove(0).stop().await
    }

    /// Major, role, settings that come with the data, subscriptions.
    async fn new_cluster_is_sound(&self) -> Result<()> {
        let leader = self.fleet.new_leader();
        let primary = self.fleet.old.primary();
        for (index, node) in self.fleet.new.iter().enumerate() {
            let facts =
                "SELECT current_setting('server_version_num')::int / 10000 || ' ' || pg_is_in_recovery()";
            let facts = node.value("postgres", facts).await?.unwrap_or_default();
            let expected = format!("{} {}", self.fleet.file.new_version, index > 0);
            ensure!(facts == expected, "{}: {facts} instead of {expected}", node.name);
            for name in ["data_checksums", "wal_segment_size", "server_encoding", "lc_messages"] {
                let sql = format!("SHOW {name}");
                let (old, new) =
                    (primary.value("postgres", &sql).await?, node.value("postgres", &sql).await?);
                ensure!(old == new, "{name} is {old:?} on {}, {new:?} on {}", primary.name, node.name);
            }
        }
        // The column of an ICU locale has another name from 17 on.
        let sql = "SELECT string_agg(concat_ws(' ', datname, encoding, datlocprovider, datcollate, datctype, \
            to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'), ', ' ORDER BY datname) FROM pg_database d";
        let (old, new) = (primary.value("postgres", sql).await?, leader.value("postgres", sql).await?);
        ensure!(old == new && old.is_some(), "databases were {old:?}, became {new:?}");
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let streaming = leader.value("postgres", sql).await?.unwrap_or_default();
        ensure!(streaming == (self.fleet.new.len() - 1).to_string(), "{streaming} replicas stream");
        for database in &self.databases {
            let sql = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'";
            ensure!(leader.value(database, sql).await?.as_deref() == Some("0"), "{database}: not ready");
            // What no load writes to must be the same too: a figure over the whole row of each table.
            for table in [
                "shop.orders",
                "shop.customers",
                "shop.notes",
                "shop.measured",
                "shop.animals",
                "shop.bookings",
            ] {
                let sql =
                    format!("SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)) FROM {table} t");
                let (old, new) = (primary.value(database, &sql).await?, leader.value(database, &sql).await?);
                ensure!(old == new && old.is_some(), "{database} {table}: {old:?} became {new:?}");
            }
        }
        Ok(())
    }
}

/// What the comparisons of relinked replicas with the leader found; fails when there was none, or one differs: then it was cloned anew,
/// which would hide a relink that never works.
///
/// # Errors
/// With what was found.
pub fn relinked(status: &OperationStatus) -> Result<()> {
    let outputs = status.steps.iter().filter_map(|step| step.output.as_ref()?.kind.as_ref());
    let found: Vec<&VerifiedOutput> = outputs
        .filter_map(|kind| match kind {
            output::Kind::Verified(found) => Some(found),
            _ => None,
        })
        .collect();
    let good = |found: &&VerifiedOutput| found.equal && found.linked_files > 0 && found.hashed_files > 0;
    ensure!(!found.is_empty() && found.iter().all(good), "{found:?}");
    Ok(())
}

/// What the validation found, as the operation's status tells; empty when it has not run.
pub fn validated(status: &OperationStatus) -> ValidatedOutput {
    let outputs = status.steps.iter().rev().filter_map(|step| step.output.as_ref()?.kind.as_ref());
    let mut found = outputs.filter_map(|kind| match kind {
        output::Kind::Validated(validated) => Some(validated.clone()),
        _ => None,
    });
    found.next().unwrap_or_default()
}
