//! What a simulated step reports when it is done: as much as later steps are bound with.

use pgleap_proto::agent::{Done, Finished, finished};
use pgleap_proto::step::{
    Action, DatabaseSlot, Output, RecoveredOutput, SlotsOutput, StandbyOutput, StoppedOutput, VerifiedOutput,
    action, output,
};

use super::facts::control;

/// Where every slot becomes consistent.
const SLOT_LSN: u64 = 0x100;
/// Of the promoted leader.
pub(super) const TIMELINE: u32 = 2;

/// The outcome of a step of this kind.
pub(super) fn done(action: &Action) -> Finished {
    let kind = match &action.kind {
        Some(action::Kind::CreateSlots(create)) => {
            let slots = create.slots.iter().cloned().map(|slot| DatabaseSlot { lsn: SLOT_LSN, ..slot });
            output::Kind::Slots(SlotsOutput { slots: slots.collect(), timeline: 1 })
        }
        Some(action::Kind::RecoverTo(recover)) => {
            let evidence = "recovery stopped where it was told to".to_owned();
            let (lsn, timeline) = (recover.target_lsn, TIMELINE);
            output::Kind::Recovered(RecoveredOutput { lsn, timeline, evidence })
        }
        Some(action::Kind::StopLeader(_) | action::Kind::StopReplica(_)) => {
            let (control, difference) = (Some(control(TIMELINE)), String::new());
            output::Kind::Stopped(StoppedOutput { control, same_checkpoint: true, difference })
        }
        Some(action::Kind::VerifyRelink(_)) => {
            let verified =
                VerifiedOutput { equal: true, linked_files: 900, copied_files: 90, ..Default::default() };
            output::Kind::Verified(verified)
        }
        _ => output::Kind::Standby(StandbyOutput::default()),
    };
    outcome(Some(Output { kind: Some(kind) }), false)
}

/// A step that reports nothing: one that was taken back.
pub(super) fn undone() -> Finished {
    outcome(None, false)
}

/// The same, as a probe tells it that finds the work done already.
pub(super) fn already(finished: &Finished) -> Finished {
    match &finished.outcome {
        Some(finished::Outcome::Done(done)) => outcome(done.output.clone(), true),
        _ => finished.clone(),
    }
}

fn outcome(output: Option<Output>, already: bool) -> Finished {
    Finished { outcome: Some(finished::Outcome::Done(Done { output, already })) }
}
