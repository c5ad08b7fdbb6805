//! PURE: which steps should be running now. The driver makes it so; the state refuses any other start.

use super::command::Verb;
use super::operation::{Operation, Status, StepState};
use crate::plan::PlannedStep;

/// A step that should be running.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepToRun {
    /// Step id.
    pub id: String,
    /// Forward or back.
    pub verb: Verb,
}

/// The steps that should be running now, those that are under way included: a driver that has just become
/// leader starts them again, with a higher attempt.
///
/// Forward, in parallel: every step that is not done, whose `after` are all done or [not waited for](Operation::may_be_late), and that no hold keeps. Back, one by one: the last of the steps that
/// were ever started and are not taken back; a step that was never started is left alone. So also when it
/// finishes, but only those steps that `finish` takes back; after them
/// come, forward, those that end the side that goes away.
pub fn runnable(operation: &Operation) -> Vec<StepToRun> {
    match operation.status {
        Status::Running => {
            let ready = operation.plan.steps.iter().filter(|step| is_ready(operation, step));
            ready.map(|step| StepToRun { id: step.id.clone(), verb: Verb::Do }).collect()
        }
        Status::Cancelling => {
            let last = operation.touched().next_back();
            last.map(|(id, _)| StepToRun { id: id.to_owned(), verb: Verb::Undo }).into_iter().collect()
        }
        Status::Finishing => {
            let step = |id: &str, verb| StepToRun { id: id.to_owned(), verb };
            match operation.to_finish().next_back() {
                Some(last) => vec![step(last, Verb::Undo)],
                None => operation.to_retire().map(|id| step(id, Verb::Do)).collect(),
            }
        }
        // What was not waited for.
        Status::AtGate => {
            let under_way = |step: &PlannedStep| {
                let state = operation.steps.get(&step.id).map(|record| &record.state);
                matches!(state, Some(StepState::Started(run)) if run.verb == Verb::Do)
            };
            let late =
                operation.plan.steps.iter().filter(|step| operation.may_be_late(step) || under_way(step));
            late.map(|step| StepToRun { id: step.id.clone(), verb: Verb::Do }).collect()
        }
        Status::Queued | Status::Stopped(_) | Status::Switching | Status::Cancelled | Status::Finished => {
            Vec::new()
        }
    }
}

fn is_ready(operation: &Operation, step: &PlannedStep) -> bool {
    let state = |id: &str| operation.steps.get(id).map(|record| &record.state);
    let open = !matches!(state(&step.id), None | Some(StepState::Done | StepState::Undone));
    open && !operation.is_held_back(step)
        && step.finish.ends().is_none()
        && step.after.iter().all(|id| {
            let late = || operation.plan.step(id).is_some_and(|step| operation.may_be_late(step));
            state(id) == Some(&StepState::Done) || late()
        })
}
