//! Waits until the new side has applied everything the old side had seen.
//!
//! The measure is the slot's confirmed position on the old side: the subscriber confirms only what it has committed and
//! flushed. The origin's `remote_lsn` on the new side stops at the last transaction that held published changes and never
//! reaches a mark of an idle database. A mark taken at the insert position can lie beyond anything that will be confirmed
//! (it skips page headers), so waiting writes a tiny message, past which the slot then moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pgleap_proto::Lsn;
use pgleap_proto::agent::SlotPosition;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::side::Side;
use crate::error::{Result, StepError};
use crate::wait::Wait;

/// Waits for one database's subscription.
#[async_trait]
pub trait Applied: Send + Sync {
    /// Returns when the new side has applied everything before `lsn` of the old side.
    async fn reached(&self, database: &str, lsn: Lsn) -> Result<()>;
}

/// Between two messages.
const NUDGE: Duration = Duration::from_secs(2);
/// A slot that stands still this long, and is seen without a reader meanwhile, is on its way to be given up. An apply worker
/// that fails on a row is restarted every 5 seconds, so its slot is seen both ways. While something reads the slot all the
/// time, a large transaction may take as long as it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many times in a row, and it is given up: one lost connection during a large transaction is no failure.
const STRIKES: u32 = 3;

/// Waits by the old side's slots.
pub struct BySlots {
    old: Arc<Side>,
    /// database -> (slot, last confirmed position). One waiter asks at a time; the others find its answer.
    slots: BTreeMap<String, (String, Mutex<Lsn>)>,
}

impl BySlots {
    /// For these (database, slot).
    pub fn new(old: Arc<Side>, slots: impl IntoIterator<Item = (String, String)>) -> BySlots {
        let slots =
            slots.into_iter().map(|(database, slot)| (database, (slot, Mutex::new(Lsn::INVALID)))).collect();
        BySlots { old, slots }
    }
}

#[async_trait]
impl Applied for BySlots {
    async fn reached(&self, database: &str, lsn: Lsn) -> Result<()> {
        let (slot, confirmed) = self
            .slots
            .get(database)
            .ok_or_else(|| StepError::new(format!("no slot is known for database \"{database}\"")))?;
        let mut confirmed = confirmed.lock().await;
        let mut still = Wait::of(PATIENCE);
        let (mut unread, mut strikes) = (false, 0);
        let mut nudged: Option<Instant> = None;
        while *confirmed < lsn {
            let nudge = nudged.is_none_or(|at| at.elapsed() >= NUDGE);
            let reply = self.old.slot_positions(vec![slot.clone()], nudge).await?;
            if nudge {
                nudged = Some(Instant::now());
            }
            let position =
                usable(reply.slots.into_iter().find(|p| p.slot == *slot), slot, &self.old.node.name)?;
            let now = Lsn(position.confirmed_lsn);
            if now > *confirmed {
                (*confirmed, unread, strikes) = (now, false, 0);
                still.restart();
            }
            if now >= lsn {
                break;
            }
            unread |= !position.active;
            if still.again().await {
                continue;
            }
            strikes = if unread { strikes + 1 } else { 0 };
            still.restart();
            unread = false;
            if strikes == STRIKES {
                return Err(StepError::new(format!(
                    "the subscription of database \"{database}\" has not moved for {} s: slot {slot} of node {} stands at {now} and \
                     has to reach {lsn}, and was seen without a reader; look into the new leader's log for the apply worker's error, \
                     repair that and retry",
                    STRIKES * PATIENCE.as_secs() as u32,
                    self.old.node.name
                )));
            }
        }
        Ok(())
    }
}

fn usable(position: Option<SlotPosition>, slot: &str, node: &str) -> Result<SlotPosition> {
    match position {
        None => Err(StepError::new(format!(
            "slot {slot} is gone from node {node}: changes since then cannot reach the new leader; cancel, then start again"
        ))),
        Some(position) if position.wal_status == "lost" => Err(StepError::new(format!(
            "slot {slot} of node {node} has lost WAL it needs (max_slot_wal_keep_size): changes cannot reach the new leader; \
             cancel, then start again"
        ))),
        Some(position) => Ok(position),
    }
}

/// For sides that do not change: nothing to wait for.
pub struct AtOnce;

#[async_trait]
impl Applied for AtOnce {
    async fn reached(&self, _: &str, _: Lsn) -> Result<()> {
        Ok(())
    }
}
