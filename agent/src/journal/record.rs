//! What the journal keeps of one step, and the rules by which fences and verbs change it. Pure.

use pgleap_proto::agent::{Fence, Finished, Verb, finished};
use serde::{Deserialize, Serialize};

/// How far the newest accepted start of a step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted; its outcome is not known. After a crash: cut off somewhere.
    Running,
    /// The work is done.
    Done,
    /// The act, or the undo, failed.
    Failed,
    /// The probe said "not now"; nothing was changed.
    Blocked,
    /// The work is taken back.
    Undone,
}

/// One step's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The newest accepted fence: its term.
    pub term: u64,
    /// The newest accepted fence: its attempt.
    pub attempt: u64,
    /// What that start asked for: true for undo.
    pub undo: bool,
    /// How far it has come.
    pub state: State,
    /// What it reported, once it has ended.
    pub outcome: Option<Finished>,
}

/// What an accepted start means.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// Run it (or join the run that is under way).
    Run,
    /// This very start has ended already, with this.
    Ended(Box<Finished>),
}

/// Why a start was refused. The messages name the step and say who is newer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A later leader has spoken.
    #[error(
        "step {step} of {operation} was asked for by a coordinator of term {term}, but term {newest} has acted on \
             this host already: this coordinator is no longer the leader"
    )]
    OldTerm {
        /// Operation.
        operation: String,
        /// Step.
        step: String,
        /// The refused term.
        term: u64,
        /// The newest term that has acted on the host.
        newest: u64,
    },
    /// A later start of the same step was accepted.
    #[error(
        "start {attempt} of step {step} of {operation} is older than start {newest}, which was accepted already"
    )]
    OldAttempt {
        /// Operation.
        operation: String,
        /// Step.
        step: String,
        /// The refused attempt.
        attempt: u64,
        /// The newest attempt of the step.
        newest: u64,
    },
    /// One start cannot be both do and undo.
    #[error(
        "start {attempt} of step {step} of {operation} was accepted with another verb; an undo needs a start of \
             its own"
    )]
    OtherVerb {
        /// Operation.
        operation: String,
        /// Step.
        step: String,
        /// The attempt used twice.
        attempt: u64,
    },
}

/// A start as asked for.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// Operation.
    pub operation: &'a str,
    /// Step, unique within the operation.
    pub step: &'a str,
    /// Its fence.
    pub fence: Fence,
    /// Undo instead of do.
    pub undo: bool,
}

/// The entry to write for this start, and what it means; nothing to write when it has ended already.
pub(super) fn decide(
    start: Start<'_>,
    newest_term: u64,
    record: Option<StepRecord>,
) -> Result<(StepRecord, Accepted), Refused> {
    let (operation, step) = (start.operation.to_owned(), start.step.to_owned());
    let Fence { term, attempt } = start.fence;
    if term < newest_term {
        return Err(Refused::OldTerm { operation, step, term, newest: newest_term });
    }
    let fresh = StepRecord { term, attempt, undo: start.undo, state: State::Running, outcome: None };
    let Some(record) = record else { return Ok((fresh, Accepted::Run)) };
    if attempt < record.attempt {
        return Err(Refused::OldAttempt { operation, step, attempt, newest: record.attempt });
    }
    if attempt == record.attempt && start.undo != record.undo {
        return Err(Refused::OtherVerb { operation, step, attempt });
    }
    let same = (term, attempt) == (record.term, record.attempt);
    match (same, record.state, &record.outcome) {
        // "Not now" is worth asking again, and changed nothing.
        (true, State::Done | State::Failed | State::Undone, Some(outcome)) => {
            let ended = Accepted::Ended(Box::new(outcome.clone()));
            Ok((record, ended))
        }
        _ => Ok((fresh, Accepted::Run)),
    }
}

/// The state that an outcome leads to.
pub(super) fn state_after(undo: bool, outcome: &Finished) -> State {
    match &outcome.outcome {
        Some(finished::Outcome::Done(_)) if undo => State::Undone,
        Some(finished::Outcome::Done(_)) => State::Done,
        Some(finished::Outcome::Blocked(_)) => State::Blocked,
        Some(finished::Outcome::Failed(_)) | None => State::Failed,
    }
}

/// Whether a request's verb is undo; none when it is neither.
pub fn is_undo(verb: i32) -> Option<bool> {
    match Verb::try_from(verb) {
        Ok(Verb::Do) => Some(false),
        Ok(Verb::Undo) => Some(true),
        Ok(Verb::Unspecified) | Err(_) => None,
    }
}
