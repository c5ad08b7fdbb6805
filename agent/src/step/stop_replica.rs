//! StopReplica: stops a replica at exactly the checkpoint its leader stopped at, and proves it from the control data.
//!
//! The leader is down already, having sent everything to whoever was connected. A replica that ends elsewhere is no
//! error: it is told, and the replica is cloned again instead of relinked.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::{ControlData, Node};
use pgleap_proto::step::{Output, StopReplica, StoppedOutput, output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result};
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::{control, sql};
use crate::wait::Wait;

/// Longest wait without any replay. What was received is replayed without the leader; what was not never comes.
const NO_PROGRESS: Duration = Duration::from_secs(30);

/// See the module.
pub struct StopReplicaStep(pub StopReplica);

#[async_trait]
impl Step for StopReplicaStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = given(&self.0.node, "node")?;
        Ok(match ctl::manager(cx, node).state().await? {
            ServerState::Stopped => Probe::Done(self.compare().await?),
            ServerState::Running { .. } => Probe::Ready,
        })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        let leader = given(&self.0.leader, "leader")?;
        let session = sql::connect_any(node).await?;
        let doing = || format!("preparing node {} for its stop", node.name);
        let target = Lsn(leader.checkpoint_lsn);
        let mut wait = Wait::of(NO_PROGRESS);
        let mut replayed = Lsn::INVALID;
        loop {
            let state = session
                .query_one(
                    "SELECT pg_catalog.pg_is_in_recovery() AS standby,
                            pg_catalog.pg_last_wal_replay_lsn()::text AS replayed,
                            CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END AS paused",
                    &[],
                )
                .await
                .doing(doing)?;
            if !state.try_get::<_, bool>("standby").doing(doing)? {
                cx.report.log("pgleap", format!("node {} is not a standby", node.name));
                break;
            }
            if state.try_get::<_, bool>("paused").doing(doing)? {
                session.batch_execute("SELECT pg_catalog.pg_wal_replay_resume()").await.doing(doing)?;
            }
            let now = sql::lsn(&state, "replayed")?;
            // The location is where the checkpoint record begins; replay is told as the end of the last record.
            if now > target {
                break;
            }
            if now > replayed {
                replayed = now;
                wait.restart();
                cx.report.progress(now.0, target.0, "bytes", format!("replayed {now} of {target}"));
            }
            if !wait.again().await {
                cx.report.log(
                    "pgleap",
                    format!("node {} stays at {now}, before the leader's checkpoint at {target}", node.name),
                );
                break;
            }
        }
        // On a standby this is a restartpoint: it moves the control file to the last checkpoint record replayed.
        session.batch_execute("CHECKPOINT").await.doing(doing)?;
        drop(session);
        ctl::manager(cx, node).stop(StopMode::Fast).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let output = self.compare().await?;
        if let Some(output::Kind::Stopped(stopped)) = &output.kind
            && !stopped.same_checkpoint
        {
            cx.report.log(
                "pgleap",
                format!("this replica is not at its leader's checkpoint: {}", stopped.difference),
            );
        }
        Ok(output)
    }

    async fn undo(&self, _cx: &Context) -> Result<()> {
        // A stopped new node is what the undo of the earlier steps removes; nothing to take back.
        Ok(())
    }
}

impl StopReplicaStep {
    async fn compare(&self) -> Result<Output> {
        let node = given(&self.0.node, "node")?;
        let leader = given(&self.0.leader, "leader")?;
        let control = control::read(node, Path::new(&node.data_dir)).await?;
        let difference = difference(node, &control, leader);
        let stopped =
            StoppedOutput { same_checkpoint: difference.is_empty(), difference, control: Some(control) };
        Ok(Output { kind: Some(output::Kind::Stopped(stopped)) })
    }
}

/// Why the replica cannot be taken for a copy of its leader; empty when it can.
fn difference(node: &Node, replica: &ControlData, leader: &ControlData) -> String {
    let mut found = Vec::new();
    if replica.system_identifier != leader.system_identifier {
        found.push(format!(
            "system identifier {} instead of {}",
            replica.system_identifier, leader.system_identifier
        ));
    }
    if replica.timeline != leader.timeline {
        found.push(format!("timeline {} instead of {}", replica.timeline, leader.timeline));
    }
    if replica.checkpoint_lsn != leader.checkpoint_lsn {
        let (ours, theirs) = (Lsn(replica.checkpoint_lsn), Lsn(leader.checkpoint_lsn));
        found.push(format!("latest checkpoint {ours} instead of {theirs}"));
    }
    if replica.state != "shut down in recovery" {
        found.push(format!("state \"{}\" instead of \"shut down in recovery\"", replica.state));
    }
    if found.is_empty() {
        return String::new();
    }
    format!("node {} stopped elsewhere than its leader: {}", node.name, found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> ControlData {
        ControlData {
            system_identifier: 7,
            state: "shut down in recovery".into(),
            checkpoint_lsn: 0x2DFA_9538,
            timeline: 2,
            ..Default::default()
        }
    }

    #[test]
    fn equal_only_when_everything_that_decides_is() {
        let node = Node { name: "n2".into(), ..Default::default() };
        let leader = ControlData { state: "shut down".into(), ..control() };
        assert_eq!(difference(&node, &control(), &leader), "");
        for (changed, word) in [
            (ControlData { checkpoint_lsn: 0x2DFA_9410, ..control() }, "0/2DFA9410 instead of 0/2DFA9538"),
            (ControlData { timeline: 1, ..control() }, "timeline 1"),
            (ControlData { system_identifier: 8, ..control() }, "system identifier 8"),
            (ControlData { state: "in archive recovery".into(), ..control() }, "in archive recovery"),
        ] {
            let difference = difference(&node, &changed, &leader);
            assert!(difference.contains(word), "{difference}");
        }
    }
}
