//! `keep_traffic`: writes down that the agent keeps going what a node needs while traffic can be moved.
//!
//! Changes nothing but that record; [`crate::reads`] sees it and begins, and ends when undo has removed it.

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{KeepTraffic, Output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::reads::record;

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
        record::remove::<KeepTraffic>(&cx.config.state_dir, &cx.operation, &self.node()?.name)
    }
}
