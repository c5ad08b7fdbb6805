//! PURE: the legal transitions of one operation, in one `match`. Everything not listed is refused.

use std::sync::Arc;

use jiff::Timestamp;

use super::Position;
use super::Reply;
use super::abandon;
use super::command::{Outcome, Verb};
use super::events::Event;
use super::identity::{self, Doubt};
use super::next::{StepToRun, runnable};
use super::operation::{Operation, Run, Status, StepRecord, StepState, Stop};
use super::redirected;
use super::rejection::Rejection;
use super::switchover::{self, Move};
use super::take_back;
use super::traffic::Side;
use crate::plan::Plan;

/// What can happen to an operation that exists.
#[derive(Debug, Clone, Copy)]
pub(super) enum Happening<'a> {
    Started { step: &'a str, verb: Verb },
    Finished { step: &'a str, attempt: u64, outcome: &'a Outcome },
    Blocked { step: &'a str, attempt: u64, reason: &'a str },
    Cancel,
    Retry,
    Abandon { host: &'a str },
    Doubted { host: &'a str, doubt: &'a Doubt },
    Traffic(Move<'a>),
    Redirected { plan: &'a Arc<Plan>, timeline: u32, reason: &'a str, evidence: &'a [String] },
}

/// Where and when it happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Occasion<'a> {
    pub position: Position,
    pub at: Timestamp,
    pub by: &'a str,
}

/// Changes the operation, or refuses and changes nothing.
pub(super) fn apply(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    happening: Happening<'_>,
) -> Result<Reply, Rejection> {
    use Happening as H;
    let id = operation.id.clone();
    let reply = match (&operation.status, happening) {
        // At the gate, only what was not waited for is runnable.
        (
            Status::Running | Status::AtGate | Status::Cancelling | Status::Finishing,
            H::Started { step, verb },
        ) => start(operation, occasion, step, verb)?,
        (_, H::Finished { step, attempt, outcome }) if operation.hears_of_steps() => {
            finish(operation, occasion, step, attempt, outcome)?;
            Reply::Accepted
        }
        (_, H::Blocked { step, attempt, reason }) if operation.hears_of_steps() => {
            block(operation, occasion, step, attempt, reason)?;
            Reply::Accepted
        }
        (Status::Queued | Status::Running | Status::AtGate | Status::Stopped(_), H::Cancel)
            if operation.is_on_its_way() && operation.traffic.writer == Side::Old =>
        {
            enter(operation, occasion, Status::Cancelling);
            note(operation, occasion, "", "cancelling", "everything is taken back");
            Reply::Operation { id }
        }
        (Status::Stopped(stop), H::Retry) => {
            let next = match stop {
                Stop { cancelling: true, .. } => Status::Cancelling,
                Stop { finishing: true, .. } => Status::Finishing,
                Stop { .. } if operation.place.queue.is_some() => Status::Queued,
                Stop { .. } => {
                    operation.place.gate_since = None;
                    Status::Running
                }
            };
            enter(operation, occasion, next);
            note(operation, occasion, "", "retry", "the failed steps are tried again");
            Reply::Operation { id }
        }
        (Status::Cancelling | Status::Finishing | Status::Stopped(_), H::Abandon { host })
            if !operation.is_on_its_way() =>
        {
            abandon::abandon(operation, occasion, host)?
        }
        (Status::AtGate | Status::Switching, H::Abandon { host }) if operation.plan.moving().is_some() => {
            abandon::give_up(operation, occasion, host)?
        }
        (_, H::Doubted { host, doubt }) if operation.is_active() => {
            identity::doubted(operation, occasion, host, doubt);
            Reply::Accepted
        }
        (Status::AtGate, H::Traffic(Move::SetReads { percent })) => {
            switchover::set_reads(operation, occasion, percent)?
        }
        (Status::AtGate, H::Traffic(Move::NewTicket)) => switchover::take_ticket(operation, occasion),
        (Status::AtGate, H::Traffic(Move::Begin { to, accepted })) => {
            switchover::begin(operation, occasion, to, accepted)?
        }
        (Status::AtGate, H::Traffic(Move::Finish { decommission })) => {
            switchover::finish(operation, occasion, decommission)?
        }
        // What is left to do is on the side that stays, and finds its leader by itself.
        (Status::Stopped(Stop { failover: true, .. }), H::Traffic(Move::Finish { decommission })) => {
            switchover::finish(operation, occasion, decommission)?
        }
        // The side that goes away never follows: there is no way back, with or without waiting for it.
        (Status::Switching, H::Traffic(Move::Finish { decommission }))
            if operation.traffic.switchover.as_ref().is_some_and(|switchover| switchover.served) =>
        {
            switchover::finish(operation, occasion, decommission)?
        }
        (Status::AtGate, H::Traffic(Move::Disturbed { reason, evidence, failover })) => {
            let (reason, evidence) = (reason.to_owned(), evidence.to_vec());
            note(operation, occasion, "", "disturbed", &reason);
            let stop = Stop { step: None, reason, evidence, cancelling: false, finishing: false, failover };
            enter(operation, occasion, Status::Stopped(stop));
            Reply::Accepted
        }
        (Status::AtGate | Status::Stopped(_), H::Redirected { plan, timeline, reason, evidence })
            if operation.is_on_its_way() && operation.place.queue.is_none() =>
        {
            redirected::redirected(operation, occasion, plan, (timeline, reason, evidence))?
        }
        (Status::Switching, H::Cancel) => switchover::give_up(operation, occasion)?,
        (Status::Switching, H::Traffic(Move::Started)) => switchover::started(operation, occasion)?,
        (Status::Switching, H::Traffic(Move::Decide { attempt, positions })) => {
            switchover::decide(operation, occasion, attempt, positions)?
        }
        (Status::Switching, H::Traffic(Move::Failed { attempt, reason, evidence, again })) => {
            switchover::failed(operation, occasion, attempt, (reason, evidence, again))?
        }
        (Status::Switching, H::Traffic(Move::Undone { attempt })) => {
            switchover::undone(operation, occasion, attempt)?
        }
        (Status::Switching, H::Traffic(Move::Noted { attempt, notes })) => {
            switchover::noted(operation, occasion, attempt, notes)?
        }
        (Status::Switching, H::Traffic(Move::Led { attempt })) => switchover::led(operation, attempt)?,
        (Status::Switching, H::Traffic(Move::TakeBack { attempt, evidence })) => {
            take_back::take_back(operation, occasion, attempt, evidence)?
        }
        (Status::Switching, H::Traffic(Move::Served { attempt })) => {
            switchover::served(operation, occasion, attempt)?
        }
        (Status::Switching, H::Traffic(Move::Done { attempt, pause_us, timings })) => {
            switchover::done(operation, occasion, attempt, (pause_us, timings))?
        }
        (_, happening) => return Err(illegal(operation, happening)),
    };
    settle(operation, occasion);
    Ok(reply)
}

fn start(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    step: &str,
    verb: Verb,
) -> Result<Reply, Rejection> {
    record(operation, step)?;
    if !runnable(operation).contains(&StepToRun { id: step.to_owned(), verb }) {
        return Err(Rejection::Illegal {
            operation: operation.id.clone(),
            status: operation.status_name(),
            why: format!("step {step} is not next"),
        });
    }
    let attempt = operation.next_attempt;
    operation.next_attempt += 1;
    let term = occasion.position.term;
    let record = record(operation, step)?;
    record.touched_at.get_or_insert(occasion.at);
    let again = match &record.state {
        StepState::Started(run) if run.verb == verb => Some(run.clone()),
        _ => None,
    };
    // Asking a blocked agent again is no news.
    let blocked = again.as_ref().and_then(|run| run.blocked.clone());
    // A step started again by a new leader is the same run for the people who watch: keep its clock.
    let at = again.as_ref().map_or(occasion.at, |run| run.at);
    record.started_at = Some(at);
    let silent = blocked.is_some();
    record.state = StepState::Started(Run { verb, attempt, term, at, blocked });
    if !silent {
        let kind = match (verb, &again) {
            (Verb::Do, None) => "started",
            (Verb::Undo, None) => "undoing",
            (_, Some(_)) => "resumed",
        };
        note(operation, occasion, step, kind, "");
    }
    Ok(Reply::Started { attempt, term })
}

fn finish(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    step: &str,
    attempt: u64,
    outcome: &Outcome,
) -> Result<(), Rejection> {
    let record = started(operation, step, attempt)?;
    let verb = record.verb();
    record.finished_at = Some(occasion.at);
    match (outcome, verb) {
        (Outcome::Done { output, already }, Verb::Do) => {
            record.state = StepState::Done;
            record.output = output.as_deref().cloned();
            let remark = match record.remark() {
                remark if remark.is_empty() && *already => "was done already".to_owned(),
                remark => remark,
            };
            note(operation, occasion, step, "done", &remark);
        }
        (Outcome::Done { .. }, Verb::Undo) => {
            record.state = StepState::Undone;
            note(operation, occasion, step, "undone", "");
        }
        (Outcome::Failed { message, evidence }, verb) => {
            record.state = StepState::Failed { verb, message: message.clone() };
            note(operation, occasion, step, "failed", message);
            let stops = matches!(
                (&operation.status, verb),
                (Status::Running, Verb::Do) | (Status::Cancelling, Verb::Undo) | (Status::Finishing, _)
            );
            // A second failure while stopped keeps the first reason; one of a step that is about to be
            // taken back anyway stops nothing.
            if stops {
                let cancelling = operation.status == Status::Cancelling;
                let finishing = operation.status == Status::Finishing;
                let (reason, evidence) = (message.clone(), evidence.clone());
                let step = Some(step.to_owned());
                let stop = Stop { step, reason, evidence, cancelling, finishing, failover: false };
                enter(operation, occasion, Status::Stopped(stop));
            }
        }
    }
    Ok(())
}

fn block(
    operation: &mut Operation,
    occasion: Occasion<'_>,
    step: &str,
    attempt: u64,
    reason: &str,
) -> Result<(), Rejection> {
    let record = started(operation, step, attempt)?;
    if let StepState::Started(run) = &mut record.state {
        let news = run.blocked.as_deref() != Some(reason);
        run.blocked = Some(reason.to_owned());
        if news {
            note(operation, occasion, step, "blocked", reason);
        }
    }
    Ok(())
}

/// What follows by itself: all done is the gate, nothing left to undo is the end.
fn settle(operation: &mut Operation, occasion: Occasion<'_>) {
    if operation.status == Status::Running && operation.all_done() {
        operation.place.gate_since = Some(occasion.at);
        enter(operation, occasion, Status::AtGate);
        note(operation, occasion, "", "waiting", "every step is done; burn-in");
    }
    identity::settle(operation, occasion);
    if operation.status == Status::Cancelling && operation.touched().next().is_none() {
        enter(operation, occasion, Status::Cancelled);
        note(operation, occasion, "", "cancelled", "everything is taken back");
    }
    if operation.status == Status::Finishing
        && operation.to_finish().next().is_none()
        && operation.to_retire().next().is_none()
    {
        enter(operation, occasion, Status::Finished);
        let writer = operation.traffic.writer;
        note(operation, occasion, "", "finished", &format!("the {writer} cluster is the cluster"));
    }
}

pub(super) fn enter(operation: &mut Operation, occasion: Occasion<'_>, status: Status) {
    operation.status = status;
    operation.status_since = occasion.at;
}

pub(super) fn note(operation: &mut Operation, occasion: Occasion<'_>, step: &str, kind: &str, message: &str) {
    operation.events.push(Event {
        index: occasion.position.index,
        at: occasion.at,
        by: occasion.by.to_owned(),
        step: step.to_owned(),
        kind: kind.to_owned(),
        message: message.to_owned(),
    });
}

fn record<'o>(operation: &'o mut Operation, step: &str) -> Result<&'o mut StepRecord, Rejection> {
    let unknown = || Rejection::UnknownStep { operation: operation.id.clone(), step: step.to_owned() };
    let missing = unknown();
    operation.steps.get_mut(step).ok_or(missing)
}

fn started<'o>(
    operation: &'o mut Operation,
    step: &str,
    attempt: u64,
) -> Result<&'o mut StepRecord, Rejection> {
    let record = record(operation, step)?;
    match &record.state {
        StepState::Started(run) if run.attempt == attempt => Ok(record),
        _ => Err(Rejection::StaleAttempt { step: step.to_owned(), attempt }),
    }
}

fn illegal(operation: &Operation, happening: Happening<'_>) -> Rejection {
    use Happening as H;
    let id = &operation.id;
    let why = match (&operation.status, happening) {
        (Status::Cancelled | Status::Finished, _) => "it is over".to_owned(),
        (Status::Stopped(stop), H::Cancel) if stop.cancelling => {
            format!("taking it back failed; remove the cause and `pgleap retry {id}`")
        }
        (Status::Finishing, H::Cancel) => {
            "it is being finished, and there is no way back any more".to_owned()
        }
        (Status::Stopped(stop), H::Cancel) if stop.finishing => {
            format!("finishing it failed; remove the cause and `pgleap retry {id}`")
        }
        (Status::Cancelling, H::Cancel) => "it is being taken back already".to_owned(),
        (_, H::Cancel) if operation.traffic.writer == Side::New => {
            "the new cluster takes the writes: `pgleap reverse` first, or `pgleap finish`".to_owned()
        }
        (_, H::Abandon { .. }) => {
            "a host can be abandoned once the operation is being cancelled or finished, or while a switchover cannot end without it"
                .to_owned()
        }
        (_, H::Retry) => "only a stopped operation can be retried".to_owned(),
        (_, H::Redirected { .. }) => {
            "another leader of the old cluster is taken up at the gate, or when it is stopped".to_owned()
        }
        (_, H::Started { step, .. }) => format!("step {step} cannot be started"),
        (Status::Switching, H::Traffic(Move::Begin { .. })) => "a switchover is under way already".to_owned(),
        (Status::Switching, H::Traffic(Move::SetReads { .. } | Move::Finish { .. })) => {
            "a switchover is under way; wait for its end".to_owned()
        }
        (_, H::Traffic(Move::Begin { .. })) => "writes can be moved when every step is done".to_owned(),
        (_, H::Traffic(Move::SetReads { .. })) => "reads can be moved when every step is done".to_owned(),
        (_, H::Traffic(Move::Finish { .. })) => "it can be finished when every step is done".to_owned(),
        (_, other) => format!("{other:?} is not legal now"),
    };
    Rejection::Illegal { operation: id.clone(), status: operation.status_name(), why }
}

impl StepRecord {
    /// The verb of the run under way; forward when there is none.
    fn verb(&self) -> Verb {
        match &self.state {
            StepState::Started(run) => run.verb,
            _ => Verb::Do,
        }
    }
}
