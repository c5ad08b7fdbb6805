//! `keep_traffic`: writes down that the agent keeps going what a node needs while traffic can be moved.
//!
//! Changes nothing but that record; [`crate::reads`] sees it and begins, and ends when undo has removed it. Undo also opens a replica
//! that was fenced because it had been promoted, if its side stays, and drops the forward slots that a failover left on an old node
//! that the plan does not name the leader.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{KeepTraffic, Output};
use pgleap_proto::traffic::Side;

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::pg::ctl::{self, ServerState};
use crate::reads::guard::open;
use crate::reads::record::{self, Guarded};
use crate::reads::stale_slots;
use crate::side::hold;

/// See the module.
pub struct KeepTrafficStep(pub KeepTraffic);

impl KeepTrafficStep {
    fn node(&self) -> Result<&Node> {
        given(&self.0.node, "node")
    }

    /// Those of the leader are taken back by the step that made them.
    async fn drop_stale_slots(&self, cx: &Context, node: &Node) -> Result<()> {
        if self.0.leader || self.0.side() != Side::Old {
            return Ok(());
        }
        let cluster = given(&self.0.cluster, "cluster")?;
        if ctl::manager(cx, node).state().await? == ServerState::Stopped {
            if !stale_slots::lie_in(Path::new(&node.data_dir), cluster) {
                return Ok(());
            }
            // Says what to do about a server that is stopped and stays.
            return super::is_gone(cx, node).await.map(drop);
        }
        for slot in stale_slots::drop_stale(node, cluster, true).await? {
            cx.report.log(
                "pgleap",
                format!("slot {slot} dropped, which a failover had left on node {}", node.name),
            );
        }
        Ok(())
    }

    fn is_kept(&self, cx: &Context) -> Result<bool> {
        let kept = record::load::<KeepTraffic>(&cx.config.state_dir, &cx.operation, &self.node()?.name)?;
        Ok(kept.as_ref() == Some(&self.0))
    }
}

#[async_trait]
impl Step for KeepTrafficStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let cluster = given(&self.0.cluster, "cluster")?;
        for leader in [given(&cluster.old_leader, "old_leader")?, given(&cluster.new_leader, "new_leader")?] {
            given(&leader.node, "node of a leader")?;
        }
        crate::reads::side(self.0.side)?;
        Ok(if self.is_kept(cx)? { Probe::Done(Output::default()) } else { Probe::Ready })
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        record::save(&cx.config.state_dir, &cx.operation, &self.node()?.name, &self.0)
    }

    async fn verify(&self, cx: &Context) -> Result<Output> {
        if self.is_kept(cx)? {
            return Ok(Output::default());
        }
        Err(StepError::new(format!(
            "the record of node {} is not in {} after it was written; retry",
            self.node()?.name,
            cx.config.state_dir.display()
        )))
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let node = self.node()?;
        // Excludes the guard, which may be fencing it at this moment.
        let _held = hold(node).await;
        self.drop_stale_slots(cx, node).await?;
        record::remove::<KeepTraffic>(&cx.config.state_dir, &cx.operation, &node.name)?;
        let stays = self.0.stays().max(Side::Old) == self.0.side();
        // A leader's fence is taken back by the step that set it.
        if self.0.leader || !stays || !Path::new(&node.data_dir).join("PG_VERSION").exists() {
            return record::remove::<Guarded>(&cx.config.state_dir, &cx.operation, &node.name);
        }
        for note in open(&cx.config.state_dir, node, &cx.operation).await? {
            cx.report.log("pgleap", note);
        }
        Ok(())
    }
}
