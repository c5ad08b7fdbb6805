//! How far the subscriptions are behind, asked of the old leader's agent. The answer is kept for a moment, because
//! several people may watch.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgleap_proto::agent::{LagReply, LagRequest};
use pgleap_proto::fleet::LagStatus;
use pgleap_proto::step::{CreateSlots, action};
use tonic::Request;

use super::Api;
use crate::plan::PlannedStep;
use crate::state::{Operation, Status as Stands, StepState};

/// Longest wait for the answer.
const ASK: Duration = Duration::from_secs(2);
/// How long an answer is good.
const KEEP: Duration = Duration::from_millis(1500);

/// Newest answers, by operation.
#[derive(Debug, Default)]
pub(super) struct LagCache(Mutex<HashMap<String, (Instant, Vec<LagStatus>)>>);

impl LagCache {
    fn get(&self, operation: &str) -> Option<Vec<LagStatus>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(operation).filter(|(at, _)| at.elapsed() < KEEP).map(|(_, lag)| lag.clone())
    }

    fn put(&self, operation: &str, lag: Vec<LagStatus>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (at, _)| at.elapsed() < KEEP);
        kept.insert(operation.to_owned(), (Instant::now(), lag));
    }
}

impl Api {
    /// Of each database, from the moment its slot exists.
    pub(super) async fn lag(&self, operation: &Operation) -> Vec<LagStatus> {
        let Some((step, slots)) = slots_of(operation) else { return Vec::new() };
        if let Some(lag) = self.lag.get(&operation.id) {
            return lag;
        }
        let reply = tokio::time::timeout(ASK, self.ask_lag(step, slots)).await;
        let lag = compare(slots, reply.ok().flatten().as_ref());
        self.lag.put(&operation.id, lag.clone());
        lag
    }

    async fn ask_lag(&self, step: &PlannedStep, slots: &CreateSlots) -> Option<LagReply> {
        let mut client = self.agents.client(&step.host, &step.agent).await.ok()?;
        let request = Request::new(LagRequest { node: slots.node.clone() });
        client.lag(request).await.ok().map(tonic::Response::into_inner)
    }
}

/// The step that made the slots, once it is done and until they are taken back.
fn slots_of(operation: &Operation) -> Option<(&PlannedStep, &CreateSlots)> {
    if matches!(operation.status, Stands::Cancelling | Stands::Cancelled) {
        return None;
    }
    operation.plan.steps.iter().find_map(|step| match &step.action.kind {
        Some(action::Kind::CreateSlots(slots)) => {
            let done = operation.steps.get(&step.id).is_some_and(|record| record.state == StepState::Done);
            done.then_some((step, slots))
        }
        _ => None,
    })
}

/// Bytes from each slot's confirmed position to the leader's write position; -1 when unknown.
fn compare(slots: &CreateSlots, reply: Option<&LagReply>) -> Vec<LagStatus> {
    let one = |database: &str, name: &str| {
        let found = reply.and_then(|reply| {
            let slot = reply.slots.iter().find(|slot| slot.slot == name)?;
            let behind = i64::try_from(reply.lsn.saturating_sub(slot.confirmed_lsn)).ok()?;
            Some((behind, slot.active))
        });
        let (bytes, active) = found.unwrap_or((-1, false));
        LagStatus { database: database.to_owned(), bytes, active }
    };
    slots.slots.iter().map(|slot| one(&slot.database, &slot.slot)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgleap_proto::agent::SlotPosition;
    use pgleap_proto::step::DatabaseSlot;

    #[test]
    fn a_slot_that_is_not_told_of_is_unknown() {
        let slot = |name: &str| DatabaseSlot { database: name.into(), slot: name.into(), lsn: 0 };
        let slots = CreateSlots { slots: vec![slot("a"), slot("b")], ..CreateSlots::default() };
        let position =
            SlotPosition { slot: "a".into(), confirmed_lsn: 60, active: true, ..SlotPosition::default() };
        let reply = LagReply { lsn: 100, slots: vec![position], ..LagReply::default() };
        let lag: Vec<(i64, bool)> =
            compare(&slots, Some(&reply)).iter().map(|lag| (lag.bytes, lag.active)).collect();
        assert_eq!(lag, [(40, true), (-1, false)]);
        assert!(compare(&slots, None).iter().all(|lag| lag.bytes == -1));
    }
}
