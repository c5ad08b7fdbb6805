//! PURE: whether the agent that answers for a host is the one known, restarted at most; and what its operation does when it
//! is not. Greeting agents is the driver's; telling whether a point lies in an agent's past is the agent's own.

use pgleap_proto::agent::AgentIdentity;

use super::command::Verb;
use super::operation::{Operation, Status, StepState, Stop};
use super::switchover;
use super::traffic::Side;
use super::transition::{Occasion, enter, note};

/// What an answer to a greeting says about the agent of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// None was seen before.
    First,
    /// The one known, or that one started again: nothing is missing from its memory.
    Known,
    /// Its journal is another one: disk or state directory were lost or replaced.
    OtherJournal,
    /// Its journal lacks what the coordinators know that it wrote: restored from an older image, or another copy of it.
    Forked,
}

/// `remembers`: the agent says that `known` is a point of its own past or present.
pub fn judge(known: Option<&AgentIdentity>, seen: &AgentIdentity, remembers: bool) -> Verdict {
    match known {
        None => Verdict::First,
        Some(known) if known.journal != seen.journal => Verdict::OtherJournal,
        Some(_) if remembers => Verdict::Known,
        Some(_) => Verdict::Forked,
    }
}

/// Why nothing goes on with an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    /// Kind of the event.
    pub(super) kind: &'static str,
    /// What happened, without what to do.
    what: String,
    evidence: Vec<String>,
}

impl Doubt {
    /// None when there is nothing to doubt.
    pub(super) fn of(
        host: &str,
        known: Option<&AgentIdentity>,
        seen: &AgentIdentity,
        remembers: bool,
    ) -> Option<Doubt> {
        let (kind, what) = match judge(known, seen, remembers) {
            Verdict::First | Verdict::Known => return None,
            Verdict::OtherJournal => (
                "journal-lost",
                format!(
                    "the agent of host {host} has a new journal: its state directory was lost or replaced while the \
                     operation had begun work there"
                ),
            ),
            Verdict::Forked => (
                "agent-forked",
                format!(
                    "the agent of host {host} has lost a part of what it had recorded: host or state directory were restored \
                     from an older image, or a second copy of the host answers at its address"
                ),
            ),
        };
        let line = |said: &str, agent: &AgentIdentity| {
            let AgentIdentity { journal, incarnation, generation } = agent;
            format!("{said}: journal {journal}, start {incarnation}, record {generation}")
        };
        let mut evidence: Vec<String> = known.iter().map(|known| line("known until now", known)).collect();
        evidence.push(line("answers now", seen));
        Some(Doubt { kind, what, evidence })
    }

    /// With the next command.
    fn reason(&self, operation: &Operation, cancelling: bool, finishing: bool) -> String {
        let id = &operation.id;
        let back = if cancelling || finishing || operation.traffic.writer == Side::New {
            String::new()
        } else {
            format!(
                "; if its PostgreSQL went back in time, too, `pgleap cancel {id}` and start again, because what a slot has \
                 sent is not sent twice"
            )
        };
        format!(
            "{}; make sure that exactly one such host runs and look at its servers, then `pgleap retry {id}` goes on with the \
             agent as it is now{back}",
            self.what
        )
    }
}

/// Stops the operation, whatever it is doing; a switchover under way comes to an end by the register first, because clients
/// wait.
pub(super) fn doubted(operation: &mut Operation, occasion: Occasion<'_>, host: &str, doubt: &Doubt) {
    let (cancelling, finishing) = match &operation.status {
        Status::Stopped(stop) => (stop.cancelling, stop.finishing),
        status => (*status == Status::Cancelling, *status == Status::Finishing),
    };
    let reason = doubt.reason(operation, cancelling, finishing);
    note(operation, occasion, "", doubt.kind, &reason);
    let stop = Stop {
        step: None,
        reason: reason.clone(),
        evidence: doubt.evidence.clone(),
        cancelling,
        finishing,
        failover: false,
    };
    match &mut operation.status {
        Status::Stopped(stopped) => {
            // Who stopped it first is what has to be cured first; this is read with it.
            stopped.evidence.push(reason.clone());
            stopped.evidence.extend(doubt.evidence.iter().cloned());
        }
        Status::Switching => {
            operation.doubted = Some(stop);
            switchover::doubted(operation, occasion, &reason, &doubt.evidence);
            return;
        }
        Status::Running | Status::AtGate | Status::Cancelling | Status::Finishing => {
            enter(operation, occasion, Status::Stopped(stop));
        }
        // One that is queued has begun nothing anywhere.
        Status::Queued | Status::Cancelled | Status::Finished => return,
    }
    // What ran there is asked again by a later start only.
    let plan = operation.plan.clone();
    for step in plan.steps.iter().filter(|step| step.host == host) {
        if let Some(record) = operation.steps.get_mut(&step.id)
            && let StepState::Started(run) = &record.state
        {
            let verb: Verb = run.verb;
            record.state = StepState::Failed { verb, message: reason.clone() };
            record.finished_at = Some(occasion.at);
        }
    }
}

/// At the end of a switchover, what was put off until then.
pub(super) fn settle(operation: &mut Operation, occasion: Occasion<'_>) {
    if operation.status == Status::AtGate
        && let Some(stop) = operation.doubted.take()
    {
        enter(operation, occasion, Status::Stopped(stop));
    }
}
