//! The marker table in every database: one row for each side, written by the side that takes writes alone. On the old leader before
//! the slots exist, so that the new side has it physically and subscribes it like any other table; there it is only looked at.

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{CreateMarker, Output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::{self, Session, ident, literal};

/// Says whose the schema is.
const COMMENT: &str = "Made by pgleap: how far one side of an upgrade has followed the other.";

/// See [`CreateMarker`].
pub struct CreateMarkerStep(pub CreateMarker);

/// What goes by the schema's name in a database.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Ours, and whether both rows are there.
    Ours(bool),
    Another,
}

impl CreateMarkerStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    async fn connect(&self, database: &str) -> Result<Session> {
        let session = sql::connect(self.node()?, database).await?;
        // A standby that hangs must not hold this up: the row is looked at again where it has to be.
        let settings =
            "SET lock_timeout = '10s'; SET statement_timeout = '60s'; SET synchronous_commit = local";
        session.batch_execute(settings).await.doing(|| "setting timeouts")?;
        Ok(session)
    }

    async fn check_server(&self, undo: bool) -> Result<()> {
        let node = self.node()?;
        if sql::in_recovery(&sql::connect_any(node).await?).await? {
            return Err(super::not_leading(node, "the marker is made and dropped", undo));
        }
        Ok(())
    }

    async fn found(&self, session: &Session, database: &str) -> Result<Found> {
        let doing = || format!("looking for schema {} in database \"{database}\"", self.0.tag);
        let sql = "SELECT pg_get_userbyid(n.nspowner) = current_user AND obj_description(n.oid, 'pg_namespace') = $2, \
                   to_regclass($3) IS NOT NULL FROM pg_namespace n WHERE n.nspname::text = $1";
        let table = format!("{}.marker", ident(&self.0.tag));
        let row = session.query_opt(sql, &[&self.0.tag, &COMMENT, &table]).await.doing(doing)?;
        let Some(row) = row else { return Ok(Found::Nothing) };
        if row.get::<_, Option<bool>>(0) != Some(true) {
            return Ok(Found::Another);
        }
        if !row.get::<_, bool>(1) {
            return Ok(Found::Ours(false));
        }
        let sql = format!("SELECT count(*) FROM {table} WHERE side IN ('old', 'new')");
        let rows: i64 = session.query_one(&sql, &[]).await.doing(doing)?.get(0);
        Ok(Found::Ours(rows == 2))
    }

    async fn missing(&self) -> Result<Vec<&String>> {
        let mut missing = Vec::new();
        for database in &self.0.databases {
            match self.found(&self.connect(database).await?, database).await? {
                Found::Ours(true) => {}
                Found::Nothing | Found::Ours(false) => missing.push(database),
                Found::Another => {
                    return Err(StepError::new(format!(
                        "database \"{database}\" of node {} has a schema {} that is not pgleap's; drop it, or cancel and \
                         start anew, which takes another name",
                        self.node()?.name,
                        self.0.tag
                    )));
                }
            }
        }
        Ok(missing)
    }

    fn check_none(&self, missing: &[&String]) -> Result<()> {
        match missing.first() {
            None => Ok(()),
            Some(database) if self.0.inherited => Err(StepError::new(format!(
                "database \"{database}\" of node {} has no table {}.marker with both rows, which should have come with \
                 the data; cancel, then start again",
                self.node()?.name,
                self.0.tag
            ))),
            Some(_) => Err(StepError::new(format!("the marker is missing in {missing:?}: retry"))),
        }
    }
}

#[async_trait]
impl Step for CreateMarkerStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        self.check_server(false).await?;
        let missing = self.missing().await?;
        if self.0.inherited {
            self.check_none(&missing)?;
        }
        Ok(if missing.is_empty() { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        if self.0.inherited {
            return Ok(());
        }
        let total = self.0.databases.len() as u64;
        let schema = ident(&self.0.tag);
        for (done, database) in self.0.databases.iter().enumerate() {
            cx.report.progress(done as u64, total, "databases", database);
            let session = self.connect(database).await?;
            let statements = format!(
                "BEGIN; CREATE SCHEMA IF NOT EXISTS {schema}; COMMENT ON SCHEMA {schema} IS {}; \
                 CREATE TABLE IF NOT EXISTS {schema}.marker \
                 (side text PRIMARY KEY, at timestamptz NOT NULL, mark bigint NOT NULL); \
                 INSERT INTO {schema}.marker VALUES ('old', now(), 0), ('new', now(), 0) ON CONFLICT DO NOTHING; COMMIT",
                literal(COMMENT)
            );
            // Another's was refused by the probe.
            if self.found(&session, database).await? != Found::Another {
                let made = session.batch_execute(&statements).await;
                made.doing(|| format!("creating {}.marker in database \"{database}\"", self.0.tag))?;
            }
        }
        cx.report.progress(total, total, "databases", "");
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        self.check_none(&self.missing().await?)?;
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        if super::is_gone(cx, node).await? {
            return Ok(());
        }
        self.check_server(true).await?;
        for database in sql::existing(node, &self.0.databases).await? {
            let session = self.connect(&database).await?;
            if !matches!(self.found(&session, &database).await?, Found::Ours(_)) {
                continue;
            }
            let schema = ident(&self.0.tag);
            let dropped = session
                .batch_execute(&format!("DROP TABLE IF EXISTS {schema}.marker; DROP SCHEMA {schema}"))
                .await;
            dropped.doing(|| format!("dropping schema {} in database \"{database}\"", self.0.tag))?;
            cx.report.log("pgleap", format!("marker dropped in database \"{database}\""));
        }
        Ok(())
    }
}
