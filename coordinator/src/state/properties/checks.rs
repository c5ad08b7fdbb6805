//! What holds at every entry of a history: before it, after it, and for the command itself.

use super::*;

/// Who asked for something is noted with it, and nothing else is.
pub(super) fn check_audit(before: &State, after: &State, envelope: &Envelope, accepted: bool) {
    let asked = matches!(
        envelope.command,
        Command::ApplyFleet { .. }
            | Command::StartOperation { .. }
            | Command::Cancel { .. }
            | Command::Retry { .. }
            | Command::Abandon { .. }
            | Command::SetReads { .. }
            | Command::BeginSwitchover { .. }
            | Command::Finish { .. }
    );
    if !asked {
        assert_eq!(after.audit, before.audit);
    } else if accepted {
        let entry = after.audit.entries().last().unwrap();
        assert_eq!((entry.index, &entry.by, entry.at), (after.applied, &envelope.by, envelope.at));
        assert_eq!(entry.note.refused, None);
    } else {
        assert_ne!(after.audit, before.audit);
    }
}

pub(super) fn check_start(before: &State, command: &Command, position: Position, reply: &Reply) {
    let Command::StepStarted { operation, step, verb } = command else { return };
    let operation = &before.operations[operation];
    // The fence: the entry's own term, and an attempt that no start of the operation ever had.
    assert_eq!(*reply, Reply::Started { attempt: operation.next_attempt, term: position.term });
    match verb {
        Verb::Do => {
            let after = &operation.plan.step(step).unwrap().after;
            let late = |id: &String| operation.may_be_late(operation.plan.step(id).unwrap());
            assert!(
                after.iter().all(|id| operation.steps[id].state == StepState::Done || late(id)),
                "{step} ran too early"
            );
            if operation.plan.step(step).unwrap().finish == Finish::StopOld {
                assert!(operation.status == Status::Finishing && operation.traffic.writer == Side::New);
                assert!(
                    operation.to_finish().next().is_none(),
                    "{step} ended before the way back was taken away"
                );
            } else if operation.status == Status::AtGate {
                let under_way = matches!(operation.steps[step].state, StepState::Started(_));
                assert!(
                    under_way || operation.may_be_late(operation.plan.step(step).unwrap()),
                    "{step} at the gate"
                );
            } else {
                assert_eq!(operation.status, Status::Running);
            }
        }
        Verb::Undo => {
            let later = operation.plan.steps.iter().skip_while(|s| s.id != *step).skip(1);
            for step in later {
                let record = &operation.steps[&step.id];
                let untouched = record.touched_at.is_none() || record.state == StepState::Undone;
                let stays = operation.status == Status::Finishing && step.finish == Finish::Keep;
                let abandoned = operation.abandoned.contains(&step.host);
                assert!(untouched || stays || abandoned, "{} was still there", step.id);
            }
            assert!(matches!(operation.status, Status::Cancelling | Status::Finishing));
        }
    }
}

/// Who takes writes changes by a decision only, and a decision is what it has to be; or goes back, once for a decision, from one that
/// let nobody in and whose host is given up.
pub(super) fn check_register(before: &State, after: &State, command: &Command, position: Position) {
    for (id, new) in &after.operations {
        let Some(old) = before.operations.get(id) else {
            assert_eq!((new.traffic.writer, new.traffic.count), (Side::Old, 0));
            continue;
        };
        if let Command::TakeBack { attempt, .. } = command
            && old.traffic.writer != new.traffic.writer
        {
            let (was, is) =
                (old.traffic.switchover.as_ref().unwrap(), new.traffic.switchover.as_ref().unwrap());
            assert_eq!(
                (was.stage, is.stage, was.led, is.again),
                (Stage::Decided, Stage::Undoing, false, false)
            );
            assert_eq!((was.ticket.term, was.ticket.attempt), (position.term, *attempt));
            assert_eq!((old.traffic.writer, new.traffic.writer), (was.to, was.to.other()));
            let host = &old.plan.moving().unwrap().leader(was.to).host.clone();
            assert!(old.abandoned.contains(host), "nobody gave up {host}");
            continue;
        }
        if old.traffic.count == new.traffic.count {
            assert_eq!(old.traffic.writer, new.traffic.writer, "the register moved without a decision");
            continue;
        }
        let Command::Decide { attempt, .. } = command else { panic!("{command:?} decided") };
        let (was, is) = (old.traffic.switchover.as_ref().unwrap(), new.traffic.switchover.as_ref().unwrap());
        assert_eq!((was.stage, is.stage), (Stage::Trying, Stage::Decided), "at most one for each switchover");
        assert_eq!((was.ticket.term, was.ticket.attempt), (position.term, *attempt));
        assert_eq!(new.traffic.count, old.traffic.count + 1);
        assert_eq!((old.traffic.writer, new.traffic.writer), (was.to.other(), was.to));
    }
}

pub(super) fn check_attempts(before: &State, after: &State, command: &Command) {
    for (id, old) in &before.operations {
        let Some(new) = after.operations.get(id) else { continue };
        let steps = matches!(command, Command::StepStarted { .. }) && old.steps != new.steps;
        let starts = u64::from(steps || old.traffic.ticket != new.traffic.ticket);
        assert!(old.traffic.ticket <= new.traffic.ticket, "tickets only grow");
        assert_eq!(new.next_attempt, old.next_attempt + starts);
        for record in new.steps.values() {
            if let StepState::Started(run) = &record.state {
                assert!(run.attempt < new.next_attempt);
            }
        }
    }
}

pub(super) fn check_exclusive(state: &State) {
    let mut hosts = std::collections::BTreeSet::new();
    let mut clusters = std::collections::BTreeSet::new();
    for operation in state.active() {
        assert!(clusters.insert(operation.plan.cluster.clone()), "two operations on one cluster");
        for host in operation.hosts() {
            assert!(hosts.insert(host.to_owned()), "two operations on host {host}");
        }
    }
}
