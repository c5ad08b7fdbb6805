//! A physical slot on the upstream of a new standby, so that its WAL is kept from before it is cloned and while it is
//! stopped. Works on a primary and on a standby.

use std::path::Path;

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{CreatePhysicalSlot, Output};

use super::{Probe, Step};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::ctl::{self, ServerState};
use crate::pg::slots::{self, Slot};
use crate::pg::sql;

/// See [`CreatePhysicalSlot`].
pub struct CreatePhysicalSlotStep(pub CreatePhysicalSlot);

impl CreatePhysicalSlotStep {
    fn node(&self) -> Result<&Node> {
        super::given(&self.0.node, "node")
    }

    async fn found(&self) -> Result<Option<Slot>> {
        let node = self.node()?;
        let found = slots::find(&sql::connect_any(node).await?, &self.0.slot).await?;
        match found {
            Some(slot) if slot.logical || slot.temporary => Err(StepError::new(format!(
                "node {} has another replication slot named {} already ({}); drop it, or cancel and start anew, \
                 which takes another name",
                node.name,
                self.0.slot,
                if slot.logical { "a logical one" } else { "a temporary one" },
            ))),
            found => Ok(found),
        }
    }
}

#[async_trait]
impl Step for CreatePhysicalSlotStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        match self.found().await? {
            Some(slot) if !slot.is_lost() => Ok(Probe::Done(Output::default())),
            Some(_) => Ok(Probe::Ready),
            None => {
                slots::check_free(&sql::connect_any(self.node()?).await?, 1).await?;
                Ok(Probe::Ready)
            }
        }
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let (node, name) = (self.node()?, &self.0.slot);
        let session = sql::connect_any(node).await?;
        if let Some(slot) = self.found().await? {
            if !slot.is_lost() {
                return Ok(());
            }
            // Cut off before it reserved anything, or invalidated since: it keeps nothing for anybody.
            cx.report.log("pgleap", format!("slot {name} keeps no WAL: made anew"));
            slots::drop(&session, name).await?;
        }
        // Reserved at once: from here on nothing is lost, also if the standby first connects much later.
        let sql = "SELECT lsn::text FROM pg_create_physical_replication_slot($1, true)";
        let row = session.query_one(sql, &[name]).await;
        let row = row.doing(|| format!("creating replication slot {name} on node {}", node.name))?;
        cx.report.log("pgleap", format!("slot {name} keeps WAL from {}", row.get::<_, &str>(0)));
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        match self.found().await? {
            Some(slot) if !slot.is_lost() => Ok(Output::default()),
            found => Err(StepError::new(format!(
                "replication slot {} of node {} {}, then retry",
                self.0.slot,
                self.node()?.name,
                match found {
                    Some(slot) => format!(
                        "has lost its WAL already (wal_status {}): raise max_slot_wal_keep_size there",
                        slot.wal_status
                    ),
                    None => "is gone again: end what drops it".to_owned(),
                }
            ))),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        let (node, name) = (self.node()?, &self.0.slot);
        let data_dir = Path::new(&node.data_dir);
        // A slot is a directory (slot.c): a stopped server without it has none.
        let stopped = ctl::manager(cx, node).state().await? == ServerState::Stopped;
        if stopped && !data_dir.join("pg_replslot").join(name).exists() || super::is_gone(cx, node).await? {
            return Ok(());
        }
        let session = sql::connect_any(node).await?;
        match slots::find(&session, name).await? {
            Some(slot) if !slot.logical => slots::drop(&session, name).await,
            _ => Ok(()),
        }
    }
}
