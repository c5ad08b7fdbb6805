//! A publication FOR ALL TABLES in every database of the old leader, before the slots: a publication made later is
//! invisible to the transactions that a slot begins with, and decoding them would fail.

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{Output, Publish};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::{self, Session, ident};

/// FOR ALL TABLES locks no table; what these bound is a catalog that something else has locked.
const LIMITS: &str = "SET lock_timeout = '10s'; SET statement_timeout = '60s'";

/// See [`Publish`].
pub struct PublishStep(pub Publish);

/// What goes by the publication's name in a database.
#[derive(PartialEq, Eq)]
enum Found {
    Nothing,
    Ours,
    Another,
}

impl PublishStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    async fn connect(&self, database: &str) -> Result<Session> {
        let session = sql::connect(self.node()?, database).await?;
        session.batch_execute(LIMITS).await.doing(|| "setting timeouts")?;
        Ok(session)
    }

    async fn check_server(&self, undo: bool) -> Result<()> {
        let node = self.node()?;
        let session = sql::connect_any(node).await?;
        if sql::in_recovery(&session).await? {
            return Err(super::not_leading(node, "publications are made and dropped", undo));
        }
        Ok(())
    }

    async fn check_wal_level(&self) -> Result<()> {
        let session = sql::connect_any(self.node()?).await?;
        let row = session.query_one("SELECT current_setting('wal_level')", &[]).await;
        let level: String = row.doing(|| "reading wal_level")?.get(0);
        if level == "logical" {
            return Ok(());
        }
        Err(StepError::new(format!(
            "wal_level of node {} is {level}, but logical replication needs logical; \
             run ALTER SYSTEM SET wal_level = logical (under Patroni: patronictl edit-config), restart it, then retry",
            self.node()?.name
        )))
    }

    async fn found(&self, session: &Session, database: &str) -> Result<Found> {
        let sql = "SELECT puballtables AND pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot \
                   AND pg_get_userbyid(pubowner) = current_user FROM pg_publication WHERE pubname::text = $1";
        let row = session.query_opt(sql, &[&self.0.publication]).await;
        let row = row.doing(|| format!("looking for publications in database \"{database}\""))?;
        Ok(match row.map(|row| row.get(0)) {
            None => Found::Nothing,
            Some(true) => Found::Ours,
            Some(false) => Found::Another,
        })
    }

    /// Whether the publication is there; an error when one of that name is another's.
    async fn is_published(&self, session: &Session, database: &str) -> Result<bool> {
        match self.found(session, database).await? {
            Found::Nothing => Ok(false),
            Found::Ours => Ok(true),
            Found::Another => Err(StepError::new(format!(
                "database \"{database}\" of node {} has another publication named {} already (another owner, or not \
                 FOR ALL TABLES with all actions); drop it, or cancel and start anew, which takes another name",
                self.node()?.name,
                self.0.publication
            ))),
        }
    }

    async fn missing(&self) -> Result<Vec<&String>> {
        let mut missing = Vec::new();
        for database in &self.0.databases {
            if !self.is_published(&self.connect(database).await?, database).await? {
                missing.push(database);
            }
        }
        Ok(missing)
    }
}

#[async_trait]
impl Step for PublishStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        self.check_server(false).await?;
        self.check_wal_level().await?;
        let missing = self.missing().await?;
        Ok(if missing.is_empty() { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let total = self.0.databases.len() as u64;
        for (done, database) in self.0.databases.iter().enumerate() {
            cx.report.progress(done as u64, total, "databases", database);
            let session = self.connect(database).await?;
            if self.is_published(&session, database).await? {
                continue;
            }
            let sql = format!("CREATE PUBLICATION {} FOR ALL TABLES", ident(&self.0.publication));
            session.batch_execute(&sql).await.doing(|| {
                format!("creating publication {} in database \"{database}\"", self.0.publication)
            })?;
        }
        cx.report.progress(total, total, "databases", "");
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let missing = self.missing().await?;
        if missing.is_empty() {
            return Ok(Output::default());
        }
        Err(StepError::new(format!("publication {} is missing in {missing:?}: retry", self.0.publication)))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        if super::is_gone(cx, self.node()?).await? {
            return Ok(());
        }
        self.check_server(true).await?;
        for database in sql::existing(self.node()?, &self.0.databases).await? {
            let session = self.connect(&database).await?;
            // Another's was refused by the probe, and is not ours to drop.
            if self.found(&session, &database).await? != Found::Ours {
                continue;
            }
            let sql = format!("DROP PUBLICATION IF EXISTS {}", ident(&self.0.publication));
            session.batch_execute(&sql).await.doing(|| {
                format!("dropping publication {} in database \"{database}\"", self.0.publication)
            })?;
            cx.report.log("pgleap", format!("publication dropped in database \"{database}\""));
        }
        Ok(())
    }
}
