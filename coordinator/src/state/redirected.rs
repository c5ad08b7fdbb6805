//! PURE: the plan gets another old leader, because the old cluster has failed over to a node that has every slot. What has to be done
//! again for that is pending from then on. Whether the operation survives the failover was decided before, by
//! [`crate::plan::survival`].

use std::sync::Arc;

use pgleap_proto::step::action::Kind;

use super::Reply;
use super::operation::{Operation, Status, StepRecord, StepState};
use super::rejection::Rejection;
use super::switchover::{new_ticket, refused};
use super::traffic::Side;
use super::transition::{Occasion, enter, note};
use crate::plan::{Phase, Plan, PlannedStep};

/// Whether a step has to be done again with another old leader: its request names that leader, and something goes on by it.
fn is_again(step: &PlannedStep) -> bool {
    match &step.action.kind {
        Some(Kind::Subscribe(_)) => step.phase == Phase::Replicate,
        // Names nobody, but stands between the two around it.
        Some(Kind::EnableSubscriptions(_)) => true,
        Some(Kind::CatchUp(_) | Kind::KeepTraffic(_) | Kind::StagePooler(_) | Kind::StageBalancer(_)) => true,
        _ => false,
    }
}

impl Operation {
    /// A step that is to be done again and is not waited for: what an old node that does not lead is told, which knew what the operation
    /// needs before. Its host may be the one whose loss was the failover.
    pub fn may_be_late(&self, step: &PlannedStep) -> bool {
        let follows = matches!(&step.action.kind, Some(Kind::KeepTraffic(keep)) if !keep.leader && keep.side == Side::Old.message());
        let again = |record: &StepRecord| record.state == StepState::Pending && record.touched_at.is_some();
        follows && self.steps.get(&step.id).is_some_and(again)
    }
}

/// Replaces the plan, and lets the steps run again that follow from it.
pub(super) fn redirected(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    plan: &Arc<Plan>,
    (timeline, reason, evidence): (u32, &str, &[String]),
) -> Result<Reply, Rejection> {
    if operation.traffic.writer != Side::Old {
        return Err(refused(operation, "the new cluster takes the writes, so nothing follows the old one"));
    }
    let same =
        |(a, b): (&PlannedStep, &PlannedStep)| (&a.id, a.phase, &a.after) == (&b.id, b.phase, &b.after);
    let known = &operation.plan;
    let is_same = known.cluster == plan.cluster
        && known.tag == plan.tag
        && known.steps.len() == plan.steps.len()
        && known.steps.iter().zip(&plan.steps).all(same);
    if !is_same {
        return Err(Rejection::BadPlan("it is not the plan of the operation with another old leader".into()));
    }
    let state = |step: &PlannedStep| operation.steps.get(&step.id).map(|record| &record.state);
    if let Some(step) = known.steps.iter().find(|step| matches!(state(step), Some(StepState::Started(_)))) {
        return Err(refused(operation, &format!("step {} is under way", step.id)));
    }
    let recovers = |step: &&PlannedStep| matches!(step.action.kind, Some(Kind::RecoverTo(_)));
    if !known.steps.iter().filter(recovers).all(|step| state(step) == Some(&StepState::Done)) {
        return Err(refused(
            operation,
            "the new cluster is not promoted yet, and needs the leader that it streams from",
        ));
    }
    operation.plan = plan.clone();
    for step in plan.steps.iter().filter(|step| is_again(step)) {
        if let Some(record) = operation.steps.get_mut(&step.id)
            && record.state == StepState::Done
        {
            record.state = StepState::Pending;
        }
    }
    operation.traffic.timeline = timeline;
    // Staged anew, a balancer sends no reads to the new side. The ticket makes void what is on its way.
    operation.traffic.reads = 0;
    new_ticket(operation, occasion);
    operation.place.gate_since = None;
    enter(operation, occasion, Status::Running);
    note(operation, occasion, "", "redirected", &[&[reason.to_owned()], evidence].concat().join("; "));
    Ok(Reply::Operation { id: operation.id.clone() })
}
