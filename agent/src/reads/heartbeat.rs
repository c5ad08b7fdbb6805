//! The heartbeat: the leader that takes writes says so in its own marker row of every database, each second.
//!
//! Never writes while the leader is fenced: whoever fences it takes [`side::hold`] first, and the heartbeat looks at the fence
//! only under the same lock.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use pgleap_proto::agent::LeadershipRequest;
use pgleap_proto::node::Node;

use super::lag::Side;
use crate::error::{Doing, Result};
use crate::pg::sql::{self, Session, ident};
use crate::side;

/// Longest time that one beat may hold up a fence.
const LIMIT: Duration = Duration::from_secs(1);

/// Whether a leader takes writes now; none when that cannot be told.
pub(super) async fn takes_writes(node: &Node) -> Option<bool> {
    let reply = side::leadership(LeadershipRequest { node: Some(node.clone()) }).await.ok()?;
    Some(reply.running && !reply.in_recovery && !reply.fenced)
}

/// Sessions of the heartbeat of one leader.
#[derive(Default)]
pub struct Heart {
    sessions: HashMap<String, Session>,
}

impl Heart {
    /// Writes once, in every database at the same time, if the leader takes writes. Tells whether it does.
    pub(super) async fn beat_if_writing(
        &mut self,
        node: &Node,
        tag: &str,
        side: Side,
        databases: &[String],
    ) -> bool {
        let _quiet = side::hold(node).await;
        if takes_writes(node).await != Some(true) {
            return false;
        }
        for result in self.beat(node, tag, side, databases).await {
            if let Err(error) = result {
                tracing::warn!(node = node.name, reason = error.message, "a marker row is not kept up");
            }
        }
        true
    }

    /// Writes this side's marker row in every database at the same time.
    pub async fn beat(
        &mut self,
        node: &Node,
        tag: &str,
        side: Side,
        databases: &[String],
    ) -> Vec<Result<()>> {
        let mut open = Vec::new();
        for database in databases {
            let kept = self.sessions.remove(database).filter(|session| !session.is_closed());
            open.push((database, kept));
        }
        let beats = open.into_iter().map(|(database, kept)| async move {
            let doing = || format!("writing the marker of database \"{database}\" of node {}", node.name);
            let beat = async {
                let session = match kept {
                    Some(session) => session,
                    None => prepared(node, database).await?,
                };
                // clock_timestamp, not now: a time before the transaction began would be too old by its wait for the row.
                let update = format!(
                    "UPDATE {}.marker SET at = pg_catalog.clock_timestamp() WHERE side = '{}'",
                    ident(tag),
                    side.name()
                );
                session.batch_execute(&update).await.doing(doing)?;
                Ok((database.clone(), session))
            };
            tokio::time::timeout(LIMIT + LIMIT, beat).await.doing(doing)?
        });
        let done = join_all(beats).await;
        let mut results = Vec::new();
        for beat in done {
            results.push(beat.map(|(database, session)| {
                // A session in template1 would keep CREATE DATABASE from working.
                if database != "template1" {
                    self.sessions.insert(database, session);
                }
            }));
        }
        results
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
