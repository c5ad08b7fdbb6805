//! StartReplica: starts a replica of the new leader, relinked, cloned again or moved, and waits until it streams.
//!
//! A relinked replica is started only when it was proven equal to the leader; otherwise only a re-clone is. Which of
//! the two a directory is, its mark says: those of a relink and of the leader itself have another form than a clone's.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{Output, StandbyOutput, StartReplica, output};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::fence;
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::server_log::ServerLog;
use crate::pg::sql::{self, Session};
use crate::pg::standby::{self, Goal, Receiver};
use crate::pg::upstream::{self, Identity};
use crate::pg::{control, marker, primary_limits, settings};
use crate::upgrade::moved;

/// See the module.
pub struct StartReplicaStep(pub StartReplica);

impl StartReplicaStep {
    fn node(&self) -> Result<&Node> {
        given(&self.0.node, "node")
    }

    fn upstream(&self) -> Result<&Conninfo> {
        given(&self.0.upstream, "upstream")
    }

    async fn identify(&self) -> Result<Identity> {
        upstream::identify(self.node()?, self.upstream()?).await
    }

    /// The session, when it is one with the replica, of the right major.
    async fn known(&self, session: Session) -> Result<Session> {
        let node = self.node()?;
        let query = "SELECT pg_catalog.pg_is_in_recovery(),
                            pg_catalog.current_setting('server_version_num')::int / 10000";
        let row =
            session.query_one(query, &[]).await.doing(|| format!("looking at replica {}", node.name))?;
        let (standby, major): (bool, i32) = (row.get(0), row.get(1));
        if standby && u32::try_from(major).ok() == Some(node.major) {
            return Ok(session);
        }
        Err(StepError::new(format!(
            "what answers on port {} in {} on host {} is not replica {}: its major is {major}, in recovery: {standby}; stop \
             it, then retry",
            node.port, node.socket_dir, node.host, node.name
        )))
    }
}

fn output(receiver: &Receiver) -> Output {
    let standby = StandbyOutput { timeline: receiver.timeline, replay_lsn: receiver.replayed.0 };
    Output { kind: Some(output::Kind::Standby(standby)) }
}

#[async_trait]
impl Step for StartReplicaStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = self.node()?;
        let data_dir = cx.confine(&node.data_dir)?;
        let mark = marker::read_file(&data_dir.join(marker::FILE))?;
        // In a move it is the standby that followed the leader through its promotion, and maybe an adopted one.
        if self.0.moved.is_none() {
            may_start(node, &cx.operation, self.0.verified, mark.as_ref())?;
        }
        let leader = self.identify().await?;
        if ctl::manager(cx, node).state().await? == ServerState::Stopped {
            settings::check_data_directory(node).await?;
            let own = control::read(node, data_dir).await?.system_identifier;
            if own != leader.system_identifier {
                return Err(StepError::new(format!(
                    "replica {} on host {} is of another cluster than its leader {}: system identifier {own} instead of {}; \
                     it must be made anew: cancel, then start again",
                    node.name,
                    node.host,
                    upstream::place(self.upstream()?),
                    leader.system_identifier
                )));
            }
            return Ok(Probe::Ready);
        }
        // An agent that was killed while it started the replica finds it so; the act waits, and tells from the log what is wrong.
        let Ok(session) = sql::connect_any(node).await else { return Ok(Probe::Ready) };
        let receiver = standby::receiver(&self.known(session).await?).await?;
        let there = Goal::all_of(&leader, leader.timeline).reached(&receiver);
        Ok(if there { Probe::Done(output(&receiver)) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (node, upstream) = (self.node()?, self.upstream()?);
        let server = ctl::manager(cx, node);
        let log = ServerLog::from_now(cx, node);
        if server.state().await? == ServerState::Stopped {
            for note in fence::open_clone(node).await? {
                cx.report.log("pgleap", note);
            }
            standby::write_identity(node)?;
            if let Some(moved) = &self.0.moved {
                moved::write(cx, node, moved).await?;
            }
            standby::write_upstream(node, upstream, &self.0.slot)?;
            // A leader that its Patroni has restarted may have more than this configuration, which was made before.
            let missing = primary_limits::missing_for(node, upstream).await?;
            let limits: Vec<(&str, String)> =
                missing.iter().map(|(name, n)| (*name, n.to_string())).collect();
            let limits: Vec<(&str, &str)> = limits.iter().map(|(name, n)| (*name, n.as_str())).collect();
            server.launch(&limits).await?;
        }
        let leader = self.identify().await?;
        let goal = Goal::all_of(&leader, leader.timeline);
        standby::wait_for(cx, node, upstream, goal, &log).await.map(|_| ())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let session = sql::connect_any(self.node()?).await?;
        let receiver = standby::receiver(&self.known(session).await?).await?;
        let timeline = self.identify().await?.timeline;
        // Not "caught up with now": there is always a little more.
        if (Goal { lsn: Lsn::INVALID, timeline }).reached(&receiver) {
            return Ok(output(&receiver));
        }
        Err(StepError::new(format!(
            "replica {} stopped streaming again right after it had caught up: {receiver:?}; retry",
            self.node()?.name
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        if self.0.moved.is_some() || marker::made_by_operation(cx, Path::new(&node.data_dir))? {
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
        }
        Ok(())
    }
}

/// A mark of any step, as far as it tells a clone: only a clone's names the directories it filled.
#[derive(Debug, Deserialize)]
struct Mark {
    operation: String,
    #[serde(default)]
    filled: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    undoing: bool,
}

/// Refuses a directory that is neither proven equal to the leader's nor a clone of it.
fn may_start(node: &Node, operation: &str, verified: bool, mark: Option<&Mark>) -> Result<()> {
    let place = format!("{} of replica {} on host {}", node.data_dir, node.name, node.host);
    let Some(mark) = mark.filter(|mark| mark.operation == operation) else {
        return Err(StepError::new(format!(
            "{place} was not made by this operation, so it is not started: cancel, then start again"
        )));
    };
    if verified || mark.filled.is_some() && !mark.undoing {
        return Ok(());
    }
    Err(StepError::new(format!(
        "{place} was relinked but not proven equal to the leader's, and was not cloned again, so it is not started: \
         cancel, then start again"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::marker::{Marker, Stage};

    fn mark(text: &str) -> Option<Mark> {
        Some(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn only_the_verified_or_the_cloned_is_started() {
        let node = Node::default();
        let start = |verified, mark: Option<Mark>| may_start(&node, "o", verified, mark.as_ref()).is_ok();
        let staged = |stage| {
            let marker = Marker {
                operation: "o".into(),
                step: "s".into(),
                made: vec![],
                initdb: vec![],
                stage: Some(stage),
            };
            serde_json::to_string(&marker).unwrap()
        };
        let relinked = staged(Stage::Relinked);
        assert!(start(true, mark(&relinked)));
        assert!(!start(false, mark(&relinked)));
        // The leader's own mark, brought along by a base backup that nobody finished.
        assert!(!start(false, mark(&staged(Stage::Started))));
        let clone = r#"{"operation":"o","step":"c","filled":[{"path":"/d","existed":false}],"aside":[],"bytes":1,"undoing":false}"#;
        assert!(start(false, mark(clone)));
        assert!(!start(false, mark(&clone.replace("false}", "true}"))), "half undone");
        assert!(!start(true, mark(&clone.replace("\"o\"", "\"other\""))));
        assert!(!start(true, None));
    }
}
