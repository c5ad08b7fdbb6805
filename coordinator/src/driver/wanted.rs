//! PURE: which runs an operation should have, given what the replicated state says of it.

use jiff::Timestamp;

use crate::state::{Operation, State, Status, StepState, StepToRun, Verb, runnable};

/// What a run is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Job {
    /// Its turn has come: look at its cluster, check it, plan it.
    Admit,
    Step(StepToRun),
    /// The writes to the other side.
    Switchover,
    /// The reads where they are wanted.
    Reads,
    /// Whether both leaders are what they were.
    Watch,
}

/// The runs an operation should have, and when its window opens if that keeps some of them.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) jobs: Vec<Job>,
    /// Some wait for the window, which opens then; far away when it never does.
    pub(super) opens: Option<Timestamp>,
}

/// `turn`: the queued operation may be admitted.
pub(super) fn wanted(state: &State, operation: &Operation, turn: bool, now: Timestamp) -> Wanted {
    let mut wanted = Wanted::default();
    for step in runnable(operation) {
        match state.window_before(operation, &step, now) {
            None => wanted.jobs.push(Job::Step(step)),
            Some(opening) => wanted.opens = Some(opening.at.unwrap_or(Timestamp::MAX)),
        }
    }
    match operation.status {
        Status::Queued if turn => wanted.jobs.push(Job::Admit),
        Status::Switching => wanted.jobs.push(Job::Switchover),
        Status::AtGate => {
            let moving = operation.plan.moving();
            wanted.jobs.extend(moving.as_ref().map(|_| Job::Watch));
            wanted.jobs.extend(moving.filter(|moving| !moving.balancers.is_empty()).map(|_| Job::Reads));
        }
        _ => {}
    }
    wanted
}

/// A stopped operation starts nothing, but what it had started is watched to its end.
pub(super) fn is_watching(operation: &Operation, job: &Job) -> bool {
    let Job::Step(StepToRun { id, verb }) = job else { return false };
    let under_way = |verb: Verb| {
        let record = operation.steps.get(id).map(|record| &record.state);
        matches!(record, Some(StepState::Started(run)) if run.verb == verb)
    };
    matches!(operation.status, Status::Stopped(_)) && under_way(*verb)
}
