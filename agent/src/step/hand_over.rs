//! HandOver: the new leader gets its own Patroni, while its server runs behind the fence and nobody depends on it yet.
//!
//! Patroni adopts the running server and leads, without a new timeline; one that was ended meanwhile it starts, and promotes. What it
//! would have written over the fence, `check` and the look at its file have refused; that the fence is in force is looked at once more.

use async_trait::async_trait;
use pgleap_proto::step::{HandOver, Output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::fence;
use crate::patroni::{Daemon, Role, Seen};

/// See the module.
pub struct HandOverStep(pub HandOver);

#[async_trait]
impl Role for HandOverStep {
    async fn is_played(&self, Seen { member, config }: &Seen) -> Result<bool> {
        Ok(member.role == "leader" && member.state == "running" && *config)
    }
}

#[async_trait]
impl Step for HandOverStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let there = Daemon::given(cx, &self.0.node)?.has_it_already(self).await?;
        Ok(if there { Probe::Done(self.verify(cx).await?) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        Daemon::given(cx, &self.0.node)?.take_over(cx, self).await
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        let node = given(&self.0.node, "node")?;
        let state = fence::state(node).await?;
        if state.is_fenced() {
            return Ok(Output::default());
        }
        // Stopped before anybody writes what the old side would never see.
        let daemon = Daemon::given(cx, &self.0.node)?;
        daemon.stop(cx).await?;
        Err(StepError::new(format!(
            "node {} was {} when its Patroni had taken it over, which was stopped again: the configuration of cluster {} in Patroni's store \
             has postgresql.pg_hba; remove its keys ({}), cancel, then start again",
            node.name,
            state.describe(),
            daemon.scope(),
            daemon.removal()
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let daemon = Daemon::given(cx, &self.0.node)?;
        daemon.stop(cx).await?;
        // There is no call for it in the REST API.
        let (scope, cure) = (daemon.scope(), daemon.removal());
        let line =
            format!("Patroni's store keeps the keys of cluster {scope}: before it is used again, {cure}");
        cx.report.log("pgleap", line);
        Ok(())
    }
}
