//! HandOverReplica: a new replica that streams gets its own Patroni, which takes it as it is, clones nothing, and makes it stream by a
//! slot of its own.
//!
//! It is stopped before, unlike the leader: of a standby that runs Patroni learns a part of the settings only (those of its own file, not
//! of the member's), and looks for it on another socket. Until it streams again, pgleap's slot keeps its WAL.

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{HandOverReplica, Output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::patroni::{Daemon, Role, Seen};
use crate::pg::ctl::{self, StopMode};
use crate::pg::sql;

/// See the module.
pub struct HandOverReplicaStep(pub HandOverReplica);

#[async_trait]
impl Role for HandOverReplicaStep {
    /// It streams, and no longer by pgleap's slot.
    async fn is_played(&self, seen: &Seen) -> Result<bool> {
        // "streaming" since Patroni 3.1, "running" before.
        if seen.member.role == "leader" || !matches!(seen.member.state.as_str(), "streaming" | "running") {
            return Ok(false);
        }
        let node = given(&self.0.node, "node")?;
        let session = sql::connect_any(node).await?;
        let sql =
            "SELECT coalesce(slot_name, '') FROM pg_catalog.pg_stat_wal_receiver WHERE status = 'streaming'";
        let rows =
            session.query(sql, &[]).await.doing(|| format!("looking at the stream of node {}", node.name))?;
        Ok(rows.first().is_some_and(|row| row.get::<_, &str>(0) != self.0.slot))
    }
}

#[async_trait]
impl Step for HandOverReplicaStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let there = Daemon::given(cx, &self.0.node)?.has_it_already(self).await?;
        Ok(if there { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let daemon = Daemon::given(cx, &self.0.node)?;
        if !daemon.is_running().await? {
            daemon.check_file()?;
            // Until Patroni runs it, it is pgleap's.
            let node = given(&self.0.node, "node")?;
            ctl::manager(cx, &Node { patroni: None, ..node.clone() }).stop(StopMode::Fast).await?;
        }
        daemon.take_over(cx, self).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let node = given(&self.0.node, "node")?;
        if !Daemon::given(cx, &self.0.node)?.has_taken_over(self).await? {
            return Err(StepError::new(format!(
                "replica {} stopped streaming again right after its Patroni had taken it over; see its log, then retry",
                node.name
            )));
        }
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        Daemon::given(cx, &self.0.node)?.stop(cx).await
    }
}
