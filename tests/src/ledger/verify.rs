//! Looks for every transaction of the books on a server.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio_postgres::{Client, Config, Row};

use super::effect::Outcome;
use super::expect::{Contents, expect};
use super::record::{DatabaseRecord, Record};
use crate::harness::postgres::connect;

/// What was found of a load on one server.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Verdict {
    /// Commits that were acknowledged.
    pub acknowledged: u64,
    /// Transactions that failed before COMMIT or were refused, or were rolled back as planned.
    pub aborted: u64,
    /// Transactions whose COMMIT got no answer.
    pub unknown: u64,
    /// Of those, how many are there.
    pub unknown_present: u64,
    /// Acknowledged and not there: worker and counter, by database.
    pub lost: Vec<String>,
    /// There more than once.
    pub duplicated: Vec<String>,
    /// There although they were aborted, or never existed.
    pub resurrected: Vec<String>,
    /// Rows that are not what the transactions that are there make them.
    pub wrong_state: Vec<String>,
    /// Where the server contradicted, while the load ran, what it had acknowledged before.
    pub contradictions: Vec<String>,
}

impl Verdict {
    /// Nothing lost, nothing twice, nothing wrong.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty()
            && self.duplicated.is_empty()
            && self.resurrected.is_empty()
            && self.wrong_state.is_empty()
            && self.contradictions.is_empty()
    }

    /// What is wrong, in words.
    pub fn faults(&self) -> String {
        let parts = [
            ("lost", &self.lost),
            ("duplicated", &self.duplicated),
            ("resurrected", &self.resurrected),
            ("wrong state", &self.wrong_state),
            ("contradictions", &self.contradictions),
        ];
        let parts = parts.into_iter().filter(|(_, list)| !list.is_empty());
        let first = |list: &[String]| list.iter().take(12).cloned().collect::<Vec<_>>().join("\n  ");
        parts.map(|(what, list)| format!("{} {what}:\n  {}\n", list.len(), first(list))).collect()
    }

    /// Fails when anything is wrong.
    ///
    /// # Errors
    /// With [`Verdict::faults`].
    pub fn require(&self, place: &str) -> Result<()> {
        anyhow::ensure!(self.is_good(), "on {place}:\n{}", self.faults());
        Ok(())
    }

    fn add(&mut self, other: Verdict) {
        self.acknowledged += other.acknowledged;
        self.aborted += other.aborted;
        self.unknown += other.unknown;
        self.unknown_present += other.unknown_present;
        self.lost.extend(other.lost);
        self.duplicated.extend(other.duplicated);
        self.resurrected.extend(other.resurrected);
        self.wrong_state.extend(other.wrong_state);
        self.contradictions.extend(other.contradictions);
    }
}

/// Verifies all databases of the books on one server; `config` says how to reach each there.
///
/// # Errors
/// When a database cannot be read. What is wrong with the data is in the verdict.
pub async fn verify(record: &Record, config: impl Fn(&str) -> Config) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for database in &record.databases {
        let client = connect(&config(&database.database))
            .await
            .with_context(|| format!("connecting to database {}", database.database))?;
        verdict.add(verify_database(record, database, &client).await?);
    }
    Ok(verdict)
}

/// Verifies one database.
///
/// # Errors
/// When it cannot be read.
pub async fn verify_database(record: &Record, database: &DatabaseRecord, client: &Client) -> Result<Verdict> {
    // One snapshot for all tables.
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
    let there = ledger_rows(record, client).await?;
    let found = read(record, client).await?;
    client.batch_execute("COMMIT").await?;

    let mut verdict = Verdict::default();
    let name = |worker: i32, counter: i64| format!("{}: worker {worker} #{counter}", database.database);
    let mut known = BTreeSet::new();
    for worker in &database.workers {
        verdict.contradictions.extend(worker.contradictions.iter().cloned());
        for logged in &worker.transactions {
            let id = (worker.worker, logged.counter);
            known.insert(id);
            let times = there.get(&id).copied().unwrap_or_default();
            if times > 1 {
                verdict.duplicated.push(format!("{} is there {times} times", name(id.0, id.1)));
            }
            match &logged.outcome {
                Outcome::Acknowledged => {
                    verdict.acknowledged += 1;
                    if times == 0 {
                        verdict.lost.push(format!("{}, acknowledged at {:?}", name(id.0, id.1), logged.at));
                    }
                }
                Outcome::RolledBack | Outcome::Failed(_) => {
                    verdict.aborted += 1;
                    if times > 0 {
                        verdict.resurrected.push(format!("{} ({:?})", name(id.0, id.1), logged.outcome));
                    }
                }
                Outcome::Unknown(_) => {
                    verdict.unknown += 1;
                    verdict.unknown_present += u64::from(times > 0);
                }
            }
        }
    }
    let strangers = there.keys().filter(|id| !known.contains(id));
    verdict.resurrected.extend(strangers.map(|(w, c)| format!("{} was never run", name(*w, *c))));
    let expected = expect(record, database, &there.into_keys().collect());
    let differences = expected.differences(&found).into_iter();
    verdict.wrong_state.extend(differences.map(|text| format!("{}: {text}", database.database)));
    Ok(verdict)
}

fn range(record: &Record) -> String {
    format!("BETWEEN {} AND {}", record.first_worker, record.first_worker + record.workers - 1)
}

/// How often each transaction is in the ledger table.
async fn ledger_rows(record: &Record, client: &Client) -> Result<BTreeMap<(i32, i64), u64>> {
    let workers = range(record);
    let sql = format!(
        "SELECT worker, counter, count(*) FROM load.ledger WHERE worker {workers} GROUP BY worker, counter"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), count(row, 2))).collect())
}

async fn read(record: &Record, client: &Client) -> Result<Contents> {
    let workers = range(record);
    let query = async |sql: &str| client.query(&sql.replace("WORKERS", &workers), &[]).await;
    let mut found = Contents::default();
    for row in query("SELECT id, version, body FROM load.items WHERE worker WORKERS").await? {
        found.items.insert(row.get(0), (row.get(1), row.get(2)));
    }
    let sql = "SELECT item, version, op, count(*) FROM load.item_audit WHERE worker WORKERS GROUP BY 1, 2, 3";
    for row in query(sql).await? {
        found.audit.insert((row.get(0), row.get(1), row.get(2)), count(&row, 3));
    }
    for row in query("SELECT id, balance FROM load.accounts WHERE worker WORKERS").await? {
        found.accounts.insert(row.get(0), row.get(1));
    }
    let sql = "SELECT value FROM load.counters WHERE id = $1";
    found.counter = client.query_one(sql, &[&record.first_worker]).await?.get(0);
    let sql = "SELECT id, version, encode(sha256(convert_to(body, 'UTF8')), 'hex') FROM load.blobs \
               WHERE worker WORKERS";
    for row in query(sql).await? {
        found.blobs.insert(row.get(0), (row.get(1), row.get(2)));
    }
    let sql = "SELECT worker, key, value, count(*) FROM load.plain WHERE worker WORKERS GROUP BY 1, 2, 3";
    for row in query(sql).await? {
        found.plain.insert((row.get(0), row.get(1), row.get(2)), count(&row, 3));
    }
    for row in query("SELECT id, bucket, version FROM load.events WHERE worker WORKERS").await? {
        found.events.insert(row.get(0), (row.get(1), row.get(2)));
    }
    Ok(found)
}

fn count(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(column)).unwrap_or_default()
}
