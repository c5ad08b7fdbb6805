//! On the promoted leader, before its upgrade: what it inherited from the old leader and must not keep. Prepared
//! transactions are rolled back, subscriptions, logical slots and the copied publication dropped. The old leader keeps
//! all of them: nothing done here reaches it or its publishers.

use std::path::PathBuf;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{CleanPromoted, CleanedOutput, Output, output};
use serde::{Deserialize, Serialize};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::{self, Session, ident, literal};
use crate::pg::{marker, slots};

/// Keeps the list of what was dropped for the report, should the agent be killed in between.
const RECORD: &str = "pgleap.cleaned";

/// A connection string that parses and leads nowhere. See [`CleanPromotedStep::drop_subscription`].
const NOWHERE: &str = "host=/pgleap-nowhere port=1 dbname=none user=none password=none connect_timeout=2";

/// See [`CleanPromoted`].
pub struct CleanPromotedStep(pub CleanPromoted);

/// What is there to clean: names with their database.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Inherited {
    prepared: Vec<(String, String)>,
    subscriptions: Vec<(String, String)>,
    slots: Vec<String>,
    publications: Vec<String>,
}

impl Inherited {
    fn is_empty(&self) -> bool {
        *self == Inherited::default()
    }

    fn merge(&mut self, other: &Inherited) {
        fn add<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
            for item in from {
                if !to.contains(item) {
                    to.push(item.clone());
                }
            }
        }
        add(&mut self.prepared, &other.prepared);
        add(&mut self.subscriptions, &other.subscriptions);
        add(&mut self.slots, &other.slots);
        add(&mut self.publications, &other.publications);
    }
}

impl CleanPromotedStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    fn record_path(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(&self.node()?.data_dir).join(RECORD))
    }

    async fn connect(&self, database: &str) -> Result<Session> {
        let session = sql::connect(self.node()?, database).await?;
        // Nobody could confirm a commit here (see RecoverTo), whatever a role's or database's settings say.
        session
            .batch_execute("SET synchronous_commit = local")
            .await
            .doing(|| "setting synchronous_commit")?;
        Ok(session)
    }

    async fn inherited(&self) -> Result<Inherited> {
        let node = self.node()?;
        let session = sql::connect_any(node).await?;
        if sql::in_recovery(&session).await? {
            return Err(StepError::new(format!(
                "node {} is in recovery, so nothing can be cleaned on it; it was promoted before: cancel, then start again",
                node.name
            )));
        }
        let doing = || "listing what the new leader inherited";
        let sql = "SELECT gid, database::text FROM pg_prepared_xacts ORDER BY 1";
        let prepared = session.query(sql, &[]).await.doing(doing)?;
        let sql = "SELECT s.subname::text, d.datname::text FROM pg_subscription s \
                   JOIN pg_database d ON d.oid = s.subdbid ORDER BY 2, 1";
        let subscriptions = session.query(sql, &[]).await.doing(doing)?;
        let sql = "SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1";
        let databases = session.query(sql, &[]).await.doing(doing)?;
        let mut publications = Vec::new();
        for row in &databases {
            let database: String = row.get(0);
            let session = sql::connect(node, &database).await?;
            let sql = "SELECT 1 FROM pg_publication WHERE pubname::text = $1";
            if session.query_opt(sql, &[&self.0.publication]).await.doing(doing)?.is_some() {
                publications.push(database);
            }
        }
        Ok(Inherited {
            prepared: prepared.iter().map(|row| (row.get(0), row.get(1))).collect(),
            subscriptions: subscriptions.iter().map(|row| (row.get(0), row.get(1))).collect(),
            slots: slots::logical(&session).await?.into_iter().map(|slot| slot.name).collect(),
            publications,
        })
    }

    /// Drops a subscription without a word to its publisher, whose slots belong to the old leader's subscription of the
    /// same name and oid.
    ///
    /// The slot's name is taken away first. That is not enough while tables are still being copied: then DROP
    /// SUBSCRIPTION connects to the publisher to drop their slots, which are the old leader's too
    /// (subscriptioncmds.c, `DropSubscription`); it gives up quietly when it cannot connect. So it is pointed nowhere.
    async fn drop_subscription(&self, name: &str, database: &str) -> Result<()> {
        let session = self.connect(database).await?;
        let sub = ident(name);
        let statements = format!(
            "BEGIN; ALTER SUBSCRIPTION {sub} CONNECTION {}; ALTER SUBSCRIPTION {sub} DISABLE; \
             ALTER SUBSCRIPTION {sub} SET (slot_name = NONE); DROP SUBSCRIPTION {sub}; COMMIT",
            literal(NOWHERE)
        );
        let dropped = session.batch_execute(&statements).await;
        dropped.doing(|| format!("dropping the inherited subscription {name} in database \"{database}\""))
    }

    fn output(&self, cleaned: Inherited) -> Output {
        let named = |(name, database): (String, String)| format!("{name} (database \"{database}\")");
        let cleaned = CleanedOutput {
            prepared_rolled_back: cleaned.prepared.into_iter().map(named).collect(),
            subscriptions_dropped: cleaned.subscriptions.into_iter().map(named).collect(),
            slots_dropped: cleaned.slots,
        };
        Output { kind: Some(output::Kind::Cleaned(cleaned)) }
    }

    fn recorded(&self) -> Result<Inherited> {
        Ok(marker::read_file(&self.record_path()?)?.unwrap_or_default())
    }
}

#[async_trait]
impl Step for CleanPromotedStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        cx.confine(&self.node()?.data_dir)?;
        if self.inherited().await?.is_empty() {
            return Ok(Probe::Done(self.output(self.recorded()?)));
        }
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let inherited = self.inherited().await?;
        let mut record = self.recorded()?;
        record.merge(&inherited);
        marker::write_file(&self.record_path()?, &record)?;
        for (gid, database) in &inherited.prepared {
            let session = self.connect(database).await?;
            let rolled_back = session.batch_execute(&format!("ROLLBACK PREPARED {}", literal(gid))).await;
            rolled_back
                .doing(|| format!("rolling back prepared transaction '{gid}' in database \"{database}\""))?;
            cx.report.log(
                "pgleap",
                format!(
                    "prepared transaction '{gid}' in database \"{database}\" rolled back here; it stays prepared on the \
                     old leader, and arrives by replication once it is committed there"
                ),
            );
        }
        for (name, database) in &inherited.subscriptions {
            self.drop_subscription(name, database).await?;
            let told = format!("inherited subscription {name} in database \"{database}\" dropped here");
            cx.report.log("pgleap", told);
        }
        let session = sql::connect_any(self.node()?).await?;
        for slot in &inherited.slots {
            slots::drop(&session, slot).await?;
            cx.report.log("pgleap", format!("inherited logical slot {slot} dropped here"));
        }
        for database in &inherited.publications {
            let session = self.connect(database).await?;
            let sql = format!("DROP PUBLICATION IF EXISTS {}", ident(&self.0.publication));
            session.batch_execute(&sql).await.doing(|| {
                format!("dropping the copied publication {} in \"{database}\"", self.0.publication)
            })?;
        }
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let left = self.inherited().await?;
        if left.is_empty() {
            return Ok(self.output(self.recorded()?));
        }
        Err(StepError::new(format!("node {} still has {left:?}: retry", self.node()?.name)))
    }

    /// Nothing to take back: the node goes away or is made anew with its promotion.
    async fn undo(&self, _cx: &Context) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_grows_and_repeats_nothing() {
        let mut record = Inherited { prepared: vec![("g".into(), "d".into())], ..Default::default() };
        let more = Inherited {
            prepared: vec![("g".into(), "d".into()), ("h".into(), "d".into())],
            slots: vec!["s".into()],
            ..Default::default()
        };
        record.merge(&more);
        record.merge(&more);
        assert_eq!(record.prepared.len(), 2);
        assert_eq!(record.slots, ["s"]);
        assert!(!record.is_empty() && Inherited::default().is_empty());
    }
}
