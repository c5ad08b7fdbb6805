//! `keep_traffic`: writes down that the agent keeps going what a node needs while traffic can be moved.
//!
//! Changes nothing but that record; [`crate::reads`] sees it and begins, and ends when undo has removed it. Undo also opens a replica
//! that was fenced because it had been promoted, if its side stays.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{KeepTraffic, Output};
use pgleap_proto::traffic::Side;

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::reads::guard::open;
use crate::reads::record::{self, Guarded};
use crate::side::hold;

/// See the module.
pub struct KeepTrafficStep(pub KeepTraffic);

impl KeepTrafficStep {
    fn node(&self) -> Result<&Node> {
        given(&self.0.node, "node")
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
