//! Fills the fields that only the outputs of earlier steps can tell. Called when a step is started, on every start:
//! the same outputs give the same action.

use std::collections::BTreeMap;

use pgleap_proto::node::ControlData;
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::output::Kind as OutputKind;
use pgleap_proto::step::{Action, DatabaseSlot, Output, StoppedOutput};

use super::table::{Each, Row};
use super::traffic::Side;
use super::types::{Phase, Plan, PlannedStep};

/// A step cannot be started because an earlier one has not told what it needs. In a plan of this planner that is a fault
/// of the driver or of an agent, not of the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {step} needs what step {source_step} found out: {reason}; install the same version of pgleap everywhere, cancel, then \
     start again; if it comes back, report it"
)]
pub struct BindError {
    /// The step to be started.
    pub step: String,
    /// The step that should have told.
    pub source_step: String,
    /// What is wrong with what it told.
    pub reason: String,
}

/// The action of a step with everything filled in. `outputs` are those of the steps that are done, by step id.
///
/// # Errors
/// When an output is missing, of another kind, or makes no sense.
pub fn bind(
    plan: &Plan,
    step: &PlannedStep,
    outputs: &BTreeMap<String, Output>,
) -> Result<Action, BindError> {
    let sources = Sources { plan, step, outputs };
    let mut action = step.action.clone();
    match &mut action.kind {
        Some(Kind::CheckUpgrade(check)) => check.rehearsed = sources.rehearsed()?,
        Some(Kind::RecoverTo(recover)) => recover.target_lsn = sources.target_lsn()?,
        // Replicas follow the promoted leader; in the seed phase there is no timeline to insist on.
        Some(Kind::StartStandby(start)) if step.phase == Phase::Convert => {
            start.timeline = sources.timeline()?
        }
        Some(Kind::StopReplica(stop)) => stop.leader = Some(sources.leader_control()?),
        Some(Kind::Relink(relink)) => relink.same_checkpoint = sources.stopped_replica()?.same_checkpoint,
        Some(Kind::VerifyRelink(verify)) => {
            verify.same_checkpoint = sources.stopped_replica()?.same_checkpoint
        }
        Some(Kind::CloneNode(clone)) if clone.only_if_unverified => clone.verified = sources.verified()?,
        // In a move nothing is relinked, so there is nothing to compare.
        Some(Kind::StartReplica(start)) if start.moved.is_none() => start.verified = sources.verified()?,
        Some(Kind::Subscribe(subscribe)) => {
            subscribe.target_lsn = sources.target_lsn()?;
            subscribe.slots = sources.slots()?;
        }
        Some(Kind::EnableSubscriptions(enable)) => {
            enable.target_lsn = sources.target_lsn()?;
            enable.slots = sources.slots()?;
        }
        Some(Kind::CatchUp(catch_up)) => catch_up.slots = sources.slots()?,
        Some(Kind::Validate(validate)) => validate.slots = sources.slots()?,
        _ => {}
    }
    Ok(action)
}

/// The same for a step that `finish` takes back: what serves the side that stays goes on serving it.
pub fn for_finish(action: Action, writer: Side) -> Action {
    let mut action = action;
    match &mut action.kind {
        Some(Kind::StagePooler(stage)) => stage.stays = writer.message(),
        Some(Kind::KeepTraffic(keep)) => keep.stays = writer.message(),
        Some(Kind::ProtectFromPatroni(protect)) => protect.stays = writer.message(),
        Some(Kind::StageBalancer(stage)) => stage.weights_stay = true,
        _ => {}
    }
    action
}

struct Sources<'a> {
    plan: &'a Plan,
    step: &'a PlannedStep,
    outputs: &'a BTreeMap<String, Output>,
}

impl Sources<'_> {
    /// The slots with the positions at which they became consistent.
    fn slots(&self) -> Result<Vec<DatabaseSlot>, BindError> {
        // The way back has its own slots, made on the other leader.
        let phase = if self.step.phase == Phase::Route { Phase::Route } else { Phase::Convert };
        let source = self.id(phase, "create_slots", Each::Leader)?;
        let Some(OutputKind::Slots(output)) = self.output(&source)? else {
            return Err(self.wrong(&source, "it told of no slots"));
        };
        let asked = self.plan.step(&source).and_then(|step| match &step.action.kind {
            Some(Kind::CreateSlots(create)) => Some(&create.slots),
            _ => None,
        });
        let found = |wanted: &DatabaseSlot| output.slots.iter().find(|slot| slot.slot == wanted.slot);
        let mut slots = Vec::new();
        for wanted in asked.into_iter().flatten() {
            match found(wanted) {
                Some(slot) if slot.lsn > 0 && slot.database == wanted.database => slots.push(slot.clone()),
                _ => {
                    let reason =
                        format!("no position of slot {} in database \"{}\"", wanted.slot, wanted.database);
                    return Err(self.wrong(&source, &reason));
                }
            }
        }
        Ok(slots)
    }

    /// The highest position of the slots: recovery to it leaves nothing to any slot that it has not sent.
    fn target_lsn(&self) -> Result<u64, BindError> {
        Ok(self.slots()?.iter().map(|slot| slot.lsn).max().unwrap_or_default())
    }

    /// Fingerprint of the rehearsed schema; empty when the rehearsal told none.
    fn rehearsed(&self) -> Result<String, BindError> {
        let source = self.id(Phase::Check, "rehearse", Each::Leader)?;
        Ok(match self.outputs.get(&source).and_then(|output| output.kind.as_ref()) {
            Some(OutputKind::Rehearsed(output)) => output.fingerprint.clone(),
            _ => String::new(),
        })
    }

    fn timeline(&self) -> Result<u32, BindError> {
        let source = self.id(Phase::Convert, "recover_to", Each::Leader)?;
        match self.output(&source)? {
            Some(OutputKind::Recovered(output)) if output.timeline > 0 => Ok(output.timeline),
            _ => Err(self.wrong(&source, "it told of no timeline")),
        }
    }

    fn leader_control(&self) -> Result<ControlData, BindError> {
        let source = self.id(Phase::Upgrade, "stop_leader", Each::Leader)?;
        match self.output(&source)? {
            Some(OutputKind::Stopped(StoppedOutput { control: Some(control), .. })) => Ok(control.clone()),
            _ => Err(self.wrong(&source, "it told of no control data")),
        }
    }

    fn stopped_replica(&self) -> Result<&StoppedOutput, BindError> {
        let source = self.id(Phase::Upgrade, "stop_replica", Each::Replica)?;
        match self.output(&source)? {
            Some(OutputKind::Stopped(stopped)) => Ok(stopped),
            _ => Err(self.wrong(&source, "it told of no control data")),
        }
    }

    fn verified(&self) -> Result<bool, BindError> {
        let source = self.id(Phase::Upgrade, "verify_relink", Each::Replica)?;
        match self.output(&source)? {
            Some(OutputKind::Verified(verified)) => Ok(verified.equal),
            _ => Err(self.wrong(&source, "it told of no comparison")),
        }
    }

    /// Id of the step of this name for the same node.
    fn id(&self, phase: Phase, name: &str, each: Each) -> Result<String, BindError> {
        let node = self.step.id.rsplit_once('/').map_or("", |(_, node)| node);
        let id = Row::find(phase, name, each).map(|row| row.id(node)).unwrap_or_default();
        if self.plan.step(&id).is_some() {
            return Ok(id);
        }
        Err(self.wrong(&format!("{phase}.{name}"), "the plan has no such step"))
    }

    fn output(&self, source: &str) -> Result<Option<&OutputKind>, BindError> {
        let output = self.outputs.get(source).ok_or_else(|| self.wrong(source, "it has no output yet"))?;
        Ok(output.kind.as_ref())
    }

    fn wrong(&self, source: &str, reason: &str) -> BindError {
        BindError { step: self.step.id.clone(), source_step: source.to_owned(), reason: reason.to_owned() }
    }
}
