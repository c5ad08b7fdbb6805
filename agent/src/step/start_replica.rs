//! StartReplica: starts a relinked or re-cloned replica of the upgraded leader and waits until it streams.
//!
//! A relinked replica is started only when it was proven equal to the leader; otherwise only a re-clone is, which is
//! recognised by its mark: a relink's has a stage, a base backup brings the leader's along (with its stage), and the
//! clone step replaces either by its own.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{Output, StandbyOutput, StartReplica, output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::server_log::ServerLog;
use crate::pg::{auto_conf, conninfo, sql};
use crate::upgrade::marker::Marker;
use crate::wait::Wait;

/// Longest wait for the replica to stream, once it accepts connections.
const STREAMING: Duration = Duration::from_secs(120);

/// See the module.
pub struct StartReplicaStep(pub StartReplica);

#[async_trait]
impl Step for StartReplicaStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = given(&self.0.node, "node")?;
        let marker = Marker::own(cx.confine(&node.data_dir)?, &cx.operation)?;
        may_start(node, self.0.verified, &marker)?;
        if ctl::manager(cx, node).state().await? == ServerState::Stopped {
            return Ok(Probe::Ready);
        }
        Ok(match streaming(node).await? {
            Streaming::Yes(standby) => Probe::Done(output_of(standby)),
            Streaming::NotYet(_) => Probe::Ready,
        })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        let upstream = given(&self.0.upstream, "upstream")?;
        let server = ctl::manager(cx, node);
        let log = ServerLog::from_now(cx, node);
        if server.state().await? == ServerState::Stopped {
            let data_dir = cx.confine(&node.data_dir)?;
            let conninfo = conninfo(upstream, None, &node.name);
            let port = node.port.to_string();
            let settings = [
                ("port", port.as_str()),
                ("unix_socket_directories", &node.socket_dir),
                ("cluster_name", &node.name),
                ("primary_conninfo", &conninfo),
                ("primary_slot_name", &self.0.slot),
            ];
            auto_conf::edit(data_dir, &settings.map(|(name, value)| (name, Some(value))))?;
            crate::durable::write(&data_dir.join("standby.signal"), b"")
                .doing(|| format!("making {} a standby", node.data_dir))?;
            server.start(&[]).await?;
        }
        let wait = Wait::of(STREAMING);
        loop {
            let reason = match streaming(node).await? {
                Streaming::Yes(_) => return Ok(()),
                Streaming::NotYet(reason) => reason,
            };
            if !wait.again().await {
                return Err(StepError::new(format!(
                    "replica {} on host {} does not stream from {}:{} after {} s: {reason}; look at its log below, then retry",
                    node.name,
                    node.host,
                    upstream.host,
                    upstream.port,
                    STREAMING.as_secs()
                ))
                .with_evidence(log.evidence(20)));
            }
        }
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let node = given(&self.0.node, "node")?;
        match streaming(node).await? {
            Streaming::Yes(standby) => Ok(output_of(standby)),
            Streaming::NotYet(reason) => Err(StepError::new(format!(
                "replica {} on host {} stopped streaming again: {reason}; retry",
                node.name, node.host
            ))),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        if !Path::new(&node.data_dir).exists() {
            return Ok(());
        }
        ctl::manager(cx, node).stop(StopMode::Fast).await
    }
}

fn output_of(standby: StandbyOutput) -> Output {
    Output { kind: Some(output::Kind::Standby(standby)) }
}

/// Refuses a directory that is neither proven equal to the leader's nor a clone of it.
fn may_start(node: &Node, verified: bool, marker: &Marker) -> Result<()> {
    let cloned = marker.stage.is_none();
    if verified || cloned {
        return Ok(());
    }
    Err(StepError::new(format!(
        "replica {} on host {} is not started: its files were relinked but not proven equal to the leader's, and it was not \
         cloned again; run the re-clone step",
        node.name, node.host
    )))
}

enum Streaming {
    Yes(StandbyOutput),
    NotYet(String),
}

/// Whether it streams. The walreceiver itself refuses an upstream of another system identifier, or one that is behind
/// its timeline (walreceiver.c, WalReceiverMain), so streaming proves both.
async fn streaming(node: &Node) -> Result<Streaming> {
    let session = sql::connect(node, "postgres").await?;
    let doing = || format!("looking at replica {}", node.name);
    let row = session
        .query_one(
            "SELECT pg_catalog.pg_is_in_recovery() AS standby,
                    pg_catalog.current_setting('server_version_num')::int / 10000 AS major,
                    pg_catalog.pg_last_wal_replay_lsn()::text AS replayed,
                    (SELECT status FROM pg_catalog.pg_stat_wal_receiver) AS status,
                    (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver) AS timeline,
                    (SELECT latest_end_lsn::text FROM pg_catalog.pg_stat_wal_receiver) AS upstream",
            &[],
        )
        .await
        .doing(doing)?;
    let (standby, major): (bool, i32) =
        (row.try_get("standby").doing(doing)?, row.try_get("major").doing(doing)?);
    if !standby || u32::try_from(major).ok() != Some(node.major) {
        return Err(StepError::new(format!(
            "what answers on port {} in {} on host {} is not replica {}: major {major}, in recovery: {standby}",
            node.port, node.socket_dir, node.host, node.name
        )));
    }
    let status: Option<String> = row.try_get("status").doing(doing)?;
    let timeline: Option<i32> = row.try_get("timeline").doing(doing)?;
    let (replayed, upstream) = (sql::lsn(&row, "replayed")?, sql::lsn(&row, "upstream")?);
    let reason = match status.as_deref() {
        Some("streaming") if replayed >= upstream => {
            let timeline = timeline.and_then(|t| u32::try_from(t).ok()).unwrap_or_default();
            return Ok(Streaming::Yes(StandbyOutput { timeline, replay_lsn: replayed.0 }));
        }
        Some("streaming") => format!("it has replayed {replayed} of {upstream}"),
        Some(status) => format!("its walreceiver is {status}"),
        None => format!("it has no walreceiver; replayed {replayed}"),
    };
    Ok(Streaming::NotYet(reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::marker::Stage;

    #[test]
    fn only_the_verified_or_the_cloned_is_started() {
        let marker =
            |stage| Marker { operation: "o".into(), step: "s".into(), made: vec![], initdb: vec![], stage };
        let node = Node::default();
        assert!(may_start(&node, true, &marker(Some(Stage::Upgraded))).is_ok());
        assert!(may_start(&node, false, &marker(None)).is_ok());
        assert!(may_start(&node, false, &marker(Some(Stage::Upgraded))).is_err());
        assert!(may_start(&node, false, &marker(Some(Stage::Relinked))).is_err());
    }
}
