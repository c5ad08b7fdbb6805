//! The heartbeat: the leader that takes writes says so in its own marker row of every database, each second.
//!
//! Never writes while the leader is fenced: it writes only under the lock of [`crate::side::may_write`], which whoever fences the
//! node takes too.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::node::Node;

use super::lag::Side;
use crate::error::{Doing, Result, StepError};
use crate::pg::sql::{self, Session, ident};

/// Longest time that one beat may hold up a fence.
const LIMIT: Duration = Duration::from_secs(1);

/// What a leader was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It takes writes, and its marker rows were written as far as they could be.
    Writing,
    /// It is fenced, so it follows.
    Fenced,
    /// Neither: it is in recovery.
    Standby,
}

/// Sessions of the heartbeat of one leader.
#[derive(Default)]
pub struct Heart {
    sessions: HashMap<String, Session>,
}

impl Heart {
    /// Writes once, in every database at the same time, if the leader takes writes.
    ///
    /// # Errors
    /// When it cannot be told whether it does: then nothing was written.
    pub(super) async fn beat_if_writing(
        &mut self,
        node: &Node,
        tag: &str,
        side: Side,
        databases: &[String],
    ) -> Result<Found> {
        // Before the lock: connecting takes longer than a fence should wait.
        self.open(node, databases).await;
        let any = databases.iter().find_map(|database| self.sessions.get(database));
        let any =
            any.ok_or_else(|| StepError::new(format!("no database of node {} can be reached", node.name)))?;
        if sql::in_recovery(any).await? {
            return Ok(Found::Standby);
        }
        let Some(_may) = crate::side::may_write(node, any).await? else { return Ok(Found::Fenced) };
        for result in self.write(node, tag, side, databases).await {
            if let Err(error) = result {
                tracing::warn!(node = node.name, reason = error.message, "a marker row is not kept up");
            }
        }
        Ok(Found::Writing)
    }

    /// Writes this side's marker row in every database at the same time, whatever the leader is.
    pub async fn beat(
        &mut self,
        node: &Node,
        tag: &str,
        side: Side,
        databases: &[String],
    ) -> Vec<Result<()>> {
        self.open(node, databases).await;
        self.write(node, tag, side, databases).await
    }

    /// Opens what is not open. What cannot be opened is missing, and said by the write.
    async fn open(&mut self, node: &Node, databases: &[String]) {
        self.sessions.retain(|database, session| !session.is_closed() && databases.contains(database));
        let missing = databases.iter().filter(|database| !self.sessions.contains_key(*database));
        let opened =
            join_all(missing.map(|database| async move { (database, prepared(node, database).await) }));
        let opened = opened.await;
        for (database, session) in opened {
            match session {
                Ok(session) => drop(self.sessions.insert(database.clone(), session)),
                Err(error) => tracing::debug!(reason = error.message, "no session for a heartbeat"),
            }
        }
    }

    async fn write(&mut self, node: &Node, tag: &str, side: Side, databases: &[String]) -> Vec<Result<()>> {
        // clock_timestamp, not now: a time before the transaction began would be too old by its wait for the row.
        let update = format!(
            "UPDATE {}.marker SET at = pg_catalog.clock_timestamp() WHERE side = '{}'",
            ident(tag),
            side.name()
        );
        let (sessions, update) = (&self.sessions, update.as_str());
        let beats = databases.iter().map(|database| async move {
            let doing = || format!("writing the marker of database \"{database}\" of node {}", node.name);
            let Some(session) = sessions.get(database) else {
                return Err(StepError::new(format!("{}: no session can be had", doing())));
            };
            tokio::time::timeout(2 * LIMIT, session.batch_execute(update)).await.doing(doing)?.doing(doing)
        });
        let done = join_all(beats).await;
        if done.iter().any(Result::is_err) {
            // One may be in the middle of an answer that never comes.
            self.sessions.clear();
        }
        // A session there would keep CREATE DATABASE from working.
        self.sessions.remove("template1");
        done
    }
}

async fn prepared(node: &Node, database: &str) -> Result<Session> {
    let session = sql::connect(node, database).await?;
    let limit = LIMIT.as_millis();
    session
        .batch_execute(&format!(
            "SET synchronous_commit = local; SET statement_timeout = {limit}; SET lock_timeout = {limit}"
        ))
        .await
        .doing(|| format!("preparing the heartbeat in database \"{database}\" of node {}", node.name))?;
    Ok(session)
}
