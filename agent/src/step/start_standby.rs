//! Starts a physical standby and waits until it streams and has replayed what its upstream had when asked.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{Output, StandbyOutput, StartStandby, output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::server_log::ServerLog;
use crate::pg::sql::{self, Session};
use crate::pg::standby::{self, Goal, Receiver};
use crate::pg::{marker, settings, upstream};

/// See [`StartStandby`].
pub struct StartStandbyStep(pub StartStandby);

impl StartStandbyStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    fn upstream(&self) -> Result<&Conninfo> {
        super::given(&self.0.upstream, "upstream")
    }

    /// Before the conversion an adopted standby keeps the configuration it was found with.
    fn is_left_as_found(&self, cx: &Context) -> Result<bool> {
        let ours = marker::made_by_operation(cx, Path::new(&self.node()?.data_dir))?;
        Ok(!ours && self.0.timeline == 0)
    }

    async fn session(&self) -> Result<Session> {
        let session = sql::connect_running(self.node()?).await?;
        if sql::in_recovery(&session).await? {
            return Ok(session);
        }
        Err(StepError::new(format!(
            "node {} accepts writes, so it is no standby any more and cannot follow {}; it must be made anew: \
             cancel, then start again",
            self.node()?.name,
            upstream::place(self.upstream()?)
        )))
    }

    /// Whether a running server was started with the upstream and slot asked for now.
    async fn is_pointed_right(&self, cx: &Context, session: &Session) -> Result<bool> {
        if self.is_left_as_found(cx)? {
            return Ok(true);
        }
        let sql = "SELECT current_setting('primary_conninfo'), current_setting('primary_slot_name')";
        let row = session.query_one(sql, &[]).await.doing(|| "reading primary_conninfo")?;
        let wanted = standby::primary_conninfo(self.node()?, self.upstream()?);
        Ok(row.get::<_, &str>(0) == wanted && row.get::<_, &str>(1) == self.0.slot)
    }

    fn output(receiver: &Receiver) -> Output {
        let standby = StandbyOutput { timeline: receiver.timeline, replay_lsn: receiver.replayed.0 };
        Output { kind: Some(output::Kind::Standby(standby)) }
    }
}

#[async_trait]
impl Step for StartStandbyStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = self.node()?;
        let data_dir = cx.confine(&node.data_dir)?;
        if ctl::manager(cx, node).state().await? == ServerState::Stopped {
            if !data_dir.join("standby.signal").exists() {
                return Err(StepError::new(format!(
                    "node {} ({}) is stopped and has no standby.signal: started now it would be a second primary; \
                     it must be made anew: cancel, then start again",
                    node.name, node.data_dir
                )));
            }
            settings::check_data_directory(node).await?;
            upstream::identify(node, self.upstream()?).await?;
            return Ok(Probe::Ready);
        }
        let session = self.session().await?;
        let upstream = upstream::identify(node, self.upstream()?).await?;
        let receiver = standby::receiver(&session).await?;
        let there = Goal::all_of(&upstream, self.0.timeline).reached(&receiver);
        if there && self.is_pointed_right(cx, &session).await? {
            return Ok(Probe::Done(Self::output(&receiver)));
        }
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (node, upstream) = (self.node()?, self.upstream()?);
        let manager = ctl::manager(cx, node);
        let log = ServerLog::from_now(cx, node);
        if manager.state().await? != ServerState::Stopped {
            let session = self.session().await?;
            if !self.is_pointed_right(cx, &session).await? {
                manager.stop(StopMode::Fast).await?;
            }
        }
        if manager.state().await? == ServerState::Stopped {
            let as_found = self.is_left_as_found(cx)?;
            if !as_found {
                standby::write_upstream(node, upstream, &self.0.slot)?;
            }
            let settings = if as_found { Vec::new() } else { standby::start_settings() };
            manager.launch(&settings).await?;
        }
        let goal = Goal::all_of(&upstream::identify(node, upstream).await?, self.0.timeline);
        cx.report.log("pgleap", format!("{} has WAL up to {}", upstream::place(upstream), goal.lsn));
        standby::wait_for(cx, node, upstream, goal, &log).await.map(|_| ())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        let receiver = standby::receiver(&self.session().await?).await?;
        // Not "caught up with now": under load a standby is always a little behind.
        if !(Goal { lsn: Lsn::INVALID, timeline: self.0.timeline }).reached(&receiver) {
            return Err(StepError::new(format!(
                "the standby {} stopped streaming again right after it had caught up: {receiver:?}; its log says why, repair that and retry",
                self.node()?.name
            )));
        }
        Ok(Self::output(&receiver))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        if marker::made_by_operation(cx, Path::new(&node.data_dir))? {
            ctl::manager(cx, node).stop(StopMode::Fast).await?;
        }
        Ok(())
    }
}
