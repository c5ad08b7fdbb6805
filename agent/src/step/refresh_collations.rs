//! RefreshCollations: rebuilds the indexes whose collations sort otherwise on this host than where their files come from, and only
//! then records the versions of here.
//!
//! Files come from the old cluster as they are, physically and through `pg_upgrade --link`, and an index that another glibc or
//! ICU has sorted misses rows and lets duplicates in. What the catalogs here have recorded does not tell it all: `initdb` of the
//! new major records the versions of *this* host for system collations, and before 15 nothing is recorded for a
//! database. So the old leader was asked what it has recorded and what it has.
//!
//! Nobody writes here yet: subscriptions come later and clients are kept out, so a plain REINDEX is in nobody's way. Cut off, all of it is
//! done again, because versions are recorded last.

mod indexes;

use std::path::PathBuf;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use pgleap_proto::node::Node;
use pgleap_proto::step::{CollationsOutput, Output, RefreshCollations, output};
use serde::{Deserialize, Serialize};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::collations::{self, Collation, DEFAULT};
use crate::pg::marker::{self, Marker};
use crate::pg::sql::{self, Session, ident};

/// Says in the data directory that what the old leader told has been dealt with: that, no catalog can tell.
const RECORD: &str = "pgleap.collations";

/// See the module.
pub struct RefreshCollationsStep(pub RefreshCollations);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    marker: Marker,
    done: CollationsOutput,
}

/// A database in which some collations sort otherwise than before.
#[derive(Debug)]
struct Affected {
    database: String,
    /// With the versions that have passed.
    collations: Vec<(Collation, String)>,
}

impl Affected {
    fn oids(&self) -> Vec<u32> {
        self.collations.iter().map(|(collation, _)| collation.oid).collect()
    }

    /// Of those in use: a server knows hundreds that nobody sorts by.
    fn words(&self) -> impl Iterator<Item = String> + '_ {
        self.collations.iter().filter(|(collation, _)| collation.used).map(|(collation, passed)| {
            let what = match collation.oid {
                DEFAULT => "the default collation".to_owned(),
                _ => format!("collation {}.{}", collation.schema, collation.name),
            };
            format!("{what} of database \"{}\": {passed} became {}", self.database, collation.actual)
        })
    }
}

fn output(done: CollationsOutput) -> Output {
    Output { kind: Some(output::Kind::Collations(done)) }
}

#[async_trait]
impl Step for RefreshCollationsStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        cx.confine(&self.node()?.data_dir)?;
        let settled = self.settled(cx)?;
        let unrecorded = self.unrecorded_databases().await?;
        if self.affected(settled.is_none()).await?.is_empty() && unrecorded.is_empty() {
            return Ok(Probe::Done(output(settled.unwrap_or_default())));
        }
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        let settled = self.settled(cx)?;
        let affected = self.affected(settled.is_none()).await?;
        let mut done = settled.unwrap_or_default();
        let mut stale: Vec<(String, String)> = Vec::new();
        for one in &affected {
            one.words().for_each(|line| cx.report.log("pgleap", line));
            done.changed.extend(one.words());
            let session = sql::connect(node, &one.database).await?;
            let found = indexes::of(&session, &one.oids()).await?;
            stale.extend(found.into_iter().map(|index| (one.database.clone(), index)));
            for table in indexes::partitioned(&session, &one.oids()).await? {
                let told = format!(
                    "{table} in database \"{}\" is partitioned by ranges that sort otherwise now: see that each row lies in its \
                     partition",
                    one.database
                );
                cx.report.log("pgleap", told.clone());
                done.left.push(told);
            }
        }
        self.rebuild(cx, &stale).await?;
        done.rebuilt += stale.len() as u64;
        for one in &affected {
            self.record_collations(one).await?;
        }
        for database in self.unrecorded_databases().await? {
            let statement = format!("ALTER DATABASE {} REFRESH COLLATION VERSION", ident(&database));
            sql::connect_any(node).await?.batch_execute(&statement).await.doing(|| statement.clone())?;
        }
        done.changed.sort();
        done.changed.dedup();
        cx.report.log(
            "pgleap",
            format!("{} indexes rebuilt because of {} collations", stale.len(), done.changed.len()),
        );
        marker::write_file(&self.record()?, &Record { marker: Marker::of(cx), done })
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        match self.probe(cx).await? {
            Probe::Done(output) => Ok(output),
            other => Err(StepError::new(format!(
                "collations of node {} still have other versions than its host ({other:?}): retry",
                self.node()?.name
            ))),
        }
    }

    async fn undo(&self, _cx: &Context) -> Result<()> {
        // It goes with the new cluster.
        Ok(())
    }
}

impl RefreshCollationsStep {
    fn node(&self) -> Result<&Node> {
        given(&self.0.node, "node")
    }

    fn record(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(&self.node()?.data_dir).join(RECORD))
    }

    /// What was done about all that the old leader told; none when this operation has not come so far.
    fn settled(&self, cx: &Context) -> Result<Option<CollationsOutput>> {
        let record = marker::read_file::<Record>(&self.record()?)?;
        Ok(record.filter(|record| record.marker == Marker::of(cx)).map(|record| record.done))
    }

    /// Databases in which something sorts otherwise now: than recorded here, and with `old` than on the old leader.
    async fn affected(&self, old: bool) -> Result<Vec<Affected>> {
        let node = self.node()?;
        let session = sql::connect_any(node).await?;
        let names = "SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1";
        let rows = session
            .query(names, &[])
            .await
            .doing(|| format!("reading the databases of node {}", node.name))?;
        let mut all = Vec::new();
        for row in rows {
            let database: String = row.get(0);
            let session = sql::connect(node, &database).await?;
            let found = collations::read(&session).await?;
            let passed = |collation: Collation| {
                let elsewhere = if old { self.elsewhere(&database, &collation) } else { Vec::new() };
                collation.passed(&elsewhere).map(|passed| (collation, passed))
            };
            let collations: Vec<_> = found.into_iter().filter_map(passed).collect();
            if !collations.is_empty() {
                all.push(Affected { database, collations });
            }
        }
        Ok(all)
    }

    /// The versions of the same collation on the old leader.
    fn elsewhere(&self, database: &str, here: &Collation) -> Vec<&str> {
        let databases = self.0.old.iter().filter(|old| old.database == database);
        let same = databases
            .flat_map(|old| &old.collations)
            .filter(|old| old.schema == here.schema && old.name == here.name);
        same.flat_map(|old| [old.recorded.as_str(), old.actual.as_str()]).collect()
    }

    async fn rebuild(&self, cx: &Context, stale: &[(String, String)]) -> Result<()> {
        let total = stale.len() as u64;
        let rebuilding = stale.iter().cloned().map(|(database, index)| async move {
            self.reindex(&database, &index).await?;
            Ok::<_, StepError>((database, index))
        });
        let at_once = usize::try_from(self.0.jobs).unwrap_or(1).max(1);
        let mut rebuilt = futures::stream::iter(rebuilding).buffer_unordered(at_once);
        let mut done = 0;
        while let Some((database, index)) = rebuilt.try_next().await? {
            done += 1;
            cx.report.progress(done, total, "indexes", format!("{index} in database \"{database}\""));
        }
        Ok(())
    }

    async fn reindex(&self, database: &str, index: &str) -> Result<()> {
        let node = self.node()?;
        let session = writing(node, database).await?;
        let rebuilt = session.batch_execute(&format!("REINDEX INDEX {index}")).await;
        rebuilt.doing(|| format!("rebuilding index {index} in database \"{database}\" of node {}", node.name)).map_err(
            |error| {
                StepError::new(format!(
                    "{}; free what it lacks (space, memory) and retry; if rows are duplicates, they are so on the old cluster, too: \
                     cancel, remove them there (without its index: SET enable_indexscan = off), start again",
                    error.message
                ))
                .with_evidence(error.evidence)
            },
        )
    }

    /// A version can only be replaced where one was recorded (collationcmds.c, AlterCollation).
    async fn record_collations(&self, affected: &Affected) -> Result<()> {
        let collations = affected.collations.iter().map(|(collation, _)| collation);
        let old = collations.filter(|c| c.oid != DEFAULT && !c.recorded.is_empty() && c.recorded != c.actual);
        let statements: Vec<String> = old
            .map(|c| format!("ALTER COLLATION {}.{} REFRESH VERSION", ident(&c.schema), ident(&c.name)))
            .collect();
        let session = writing(self.node()?, &affected.database).await?;
        let recorded = session.batch_execute(&statements.join("; ")).await;
        recorded.doing(|| format!("recording collation versions in database \"{}\"", affected.database))
    }

    /// Databases whose own recorded version is not that of here, the ones nobody can connect to among them: from a template with
    /// an old version no database can be made. They record one since 15.
    async fn unrecorded_databases(&self) -> Result<Vec<String>> {
        let node = self.node()?;
        if node.major < 15 {
            return Ok(Vec::new());
        }
        let sql = "SELECT datname::text FROM pg_database \
                   WHERE datcollversion <> pg_database_collation_actual_version(oid) ORDER BY 1";
        let rows = sql::connect_any(node).await?.query(sql, &[]).await;
        let rows = rows.doing(|| format!("reading the collation versions of node {}", node.name))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

/// A session whose commits are on disk when they are answered, and wait for no standby: the record comes after them.
async fn writing(node: &Node, database: &str) -> Result<Session> {
    let session = sql::connect(node, database).await?;
    session.batch_execute("SET synchronous_commit = local").await.doing(|| "setting synchronous_commit")?;
    Ok(session)
}
