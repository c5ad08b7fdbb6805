//! Fast stop of a standby before the logical slots are made, so that it cannot replay past them.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::{ControlData, Node};
use pgleap_proto::step::{HaltStandby, Output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::pg::ctl::{self, ServerState, StopMode};
use crate::pg::{control, marker, sql, standby};

/// `pg_controldata` of a standby after a clean stop (`dbState`, pg_controldata.c).
const CLEAN: &str = "shut down in recovery";
/// And of one that crashed or runs.
const CRASHED: &str = "in archive recovery";

/// See [`HaltStandby`].
pub struct HaltStandbyStep(pub HaltStandby);

impl HaltStandbyStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    /// `finish --decommission` stops standbys, too, and cannot be cancelled.
    fn not_a_standby(&self, cx: &Context, what: &str) -> Result<StepError> {
        let node = self.node()?;
        let cure = if cx.finishing {
            "make it a standby again (standby.signal in its data directory) and start it, then retry"
        } else {
            "it has taken a history of its own and must be made anew: cancel, then start again"
        };
        Ok(StepError::new(format!("node {} ({}) is not a standby: {what}; {cure}", node.name, node.data_dir)))
    }

    async fn control(&self) -> Result<ControlData> {
        let node = self.node()?;
        control::read(node, Path::new(&node.data_dir)).await
    }

    async fn check_running(&self, cx: &Context) -> Result<()> {
        let session = sql::connect_running(self.node()?).await?;
        if sql::in_recovery(&session).await? {
            Ok(())
        } else {
            Err(self.not_a_standby(cx, "it accepts writes")?)
        }
    }
}

#[async_trait]
impl Step for HaltStandbyStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = self.node()?;
        cx.confine(&node.data_dir)?;
        if ctl::manager(cx, node).state().await? != ServerState::Stopped {
            self.check_running(cx).await?;
            return Ok(Probe::Ready);
        }
        match self.control().await?.state.as_str() {
            CLEAN => Ok(Probe::Done(Output::default())),
            CRASHED => Ok(Probe::Ready),
            other => {
                Err(self.not_a_standby(cx, &format!("it is stopped, and pg_controldata says \"{other}\""))?)
            }
        }
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        let manager = ctl::manager(cx, node);
        if manager.state().await? == ServerState::Stopped {
            if self.control().await?.state == CLEAN {
                return Ok(());
            }
            // Only a clean stop tells how far it replayed. The slots do not exist yet, so replaying more is harmless.
            cx.report.log("pgleap", "the standby was not stopped cleanly: started once more to stop it");
            manager.start(&standby::start_settings()).await?;
        }
        self.check_running(cx).await?;
        manager.stop(StopMode::Fast).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let node = self.node()?;
        if ctl::manager(cx, node).state().await? != ServerState::Stopped {
            return Err(StepError::new(format!(
                "node {} runs again after it was stopped; something else starts it (systemd, Patroni): switch that off, \
                 then retry",
                node.name
            )));
        }
        match self.control().await?.state.as_str() {
            CLEAN => Ok(Output::default()),
            other => Err(self.not_a_standby(cx, &format!("after its stop pg_controldata says \"{other}\""))?),
        }
    }

    /// An adopted standby runs again, as it was found. One that pgleap made goes away with its directory.
    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        let data_dir = Path::new(&node.data_dir);
        let manager = ctl::manager(cx, node);
        if marker::made_by_operation(cx, data_dir)? || manager.state().await? != ServerState::Stopped {
            return Ok(());
        }
        if !data_dir.join("standby.signal").exists() || !data_dir.join("global/pg_control").exists() {
            return Ok(());
        }
        match self.control().await?.state.as_str() {
            CLEAN | CRASHED => manager.launch(&[]).await,
            _ => Ok(()),
        }
    }
}
