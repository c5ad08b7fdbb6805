//! Lets an upstream keep no more WAL for a standby that has left it: a slot nobody reads would fill the disk of the
//! old cluster.

use async_trait::async_trait;
use pgleap_proto::step::{CreatePhysicalSlot, DropPhysicalSlot, Output};

use super::create_physical_slot::CreatePhysicalSlotStep;
use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Result, StepError};
use crate::pg::{slots, sql};

/// See [`DropPhysicalSlot`].
pub struct DropPhysicalSlotStep(pub DropPhysicalSlot);

impl DropPhysicalSlotStep {
    async fn is_there(&self) -> Result<bool> {
        let node = super::given(&self.0.node, "node")?;
        Ok(slots::find(&sql::connect_any(node).await?, &self.0.slot).await?.is_some())
    }
}

#[async_trait]
impl Step for DropPhysicalSlotStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        Ok(if self.is_there().await? { Probe::Ready } else { Probe::Done(Output::default()) })
    }

    /// The same as taking the slot's creation back.
    async fn act(&self, cx: &Context) -> Result<()> {
        let created = CreatePhysicalSlot { node: self.0.node.clone(), slot: self.0.slot.clone() };
        CreatePhysicalSlotStep(created).undo(cx).await
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        if self.is_there().await? {
            return Err(StepError::new(format!(
                "replication slot {} is still there and would keep WAL for ever; drop it by hand: \
                 SELECT pg_drop_replication_slot('{}')",
                self.0.slot, self.0.slot
            )));
        }
        Ok(Output::default())
    }

    /// Nothing: the standby it was kept for is gone.
    async fn undo(&self, _cx: &Context) -> Result<()> {
        Ok(())
    }
}
