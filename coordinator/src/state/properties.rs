//! Properties of the state machine, over random histories.
//!
//! | property | where |
//! | --- | --- |
//! | a step starts only when all its `after` are done | `check_start` |
//! | attempts only grow | `check_attempts` |
//! | a refused command changes nothing but the audit log | `history` |
//! | what an operator asked for is in the audit log, accepted or refused | `check_audit` |
//! | snapshot and rest of the log give the same state as the whole log | `a_snapshot_anywhere_changes_nothing` |
//! | cancel takes every started step back, last first | `cancel_takes_back_in_reverse` |
//! | the register moves by a decision only, at most one for each switchover, in the term of its try | `check_register` |
//! | what was taken back is never decided | `the_register_moves_by_rightful_decisions_only` |
//! | finish takes back what the plan says, last first, and nothing else | `finish_takes_back_what_is_marked` |
//! | whatever happened, retry and honest agents bring it to the gate | `it_can_always_be_finished` |

use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;

use super::samples::{movable, plan, plan_of_masks, step};
use super::*;
use crate::plan::Finish;

/// What a random scheduler, agents and operators may try, legal or not.
#[derive(Debug, Clone)]
enum Try {
    Start {
        op: usize,
        step: usize,
        undo: bool,
    },
    StartRunnable {
        op: usize,
        pick: usize,
    },
    Finish {
        op: usize,
        step: usize,
        stale: bool,
        ok: bool,
    },
    Block {
        op: usize,
        step: usize,
    },
    Cancel {
        op: usize,
    },
    Retry {
        op: usize,
    },
    Seen {
        host: usize,
        journal: u8,
        remembers: bool,
    },
    Fleet {
        good: bool,
    },
    Begin {
        op: usize,
    },
    Traffic {
        op: usize,
        what: Kind,
        stale: bool,
    },
    /// Makes and answers everything up to the gate.
    ToGate {
        op: usize,
    },
}

/// What may be asked of traffic, or come of it.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Reads,
    Ticket,
    Begin(Side),
    Started,
    Decide,
    Failed(bool),
    Undone,
    Done,
    Finish,
    Disturbed,
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        1 => Just(Kind::Reads),
        1 => Just(Kind::Ticket),
        2 => any::<bool>().prop_map(|new| Kind::Begin(if new { Side::New } else { Side::Old })),
        4 => Just(Kind::Started),
        3 => Just(Kind::Decide),
        2 => any::<bool>().prop_map(Kind::Failed),
        2 => Just(Kind::Undone),
        2 => Just(Kind::Done),
        1 => Just(Kind::Finish),
        1 => Just(Kind::Disturbed),
    ]
}

const HOSTS: [[&str; 2]; 3] = [["h1", "h2"], ["h3", "h4"], ["h2", "h5"]];

fn any_try() -> impl Strategy<Value = Try> {
    let op = 0..3usize;
    prop_oneof![
        1 => (op.clone(), 0..8usize, any::<bool>()).prop_map(|(op, step, undo)| Try::Start { op, step, undo }),
        8 => (op.clone(), any::<prop::sample::Index>()).prop_map(|(op, i)| Try::StartRunnable { op, pick: i.index(8) }),
        8 => (op.clone(), 0..8usize, prop::bool::weighted(0.1), prop::bool::weighted(0.85))
            .prop_map(|(op, step, stale, ok)| Try::Finish { op, step, stale, ok }),
        1 => (op.clone(), 0..8usize).prop_map(|(op, step)| Try::Block { op, step }),
        1 => op.clone().prop_map(|op| Try::Cancel { op }),
        2 => op.clone().prop_map(|op| Try::Retry { op }),
        1 => (0..5usize, 0..2u8, any::<bool>())
            .prop_map(|(host, journal, remembers)| Try::Seen { host, journal, remembers }),
        1 => any::<bool>().prop_map(|good| Try::Fleet { good }),
        10 => (op.clone(), any_kind(), prop::bool::weighted(0.1))
            .prop_map(|(op, what, stale)| Try::Traffic { op, what, stale }),
        2 => op.clone().prop_map(|op| Try::ToGate { op }),
        2 => op.prop_map(|op| Try::Begin { op }),
    ]
}

fn id(op: usize) -> String {
    format!("c{op}-000000")
}

fn command(state: &State, masks: &[u16], attempt: &Try) -> Option<Command> {
    let operation = |op: usize| state.operations.get(&id(op));
    Some(match attempt {
        Try::Start { op, step, undo } => {
            let verb = if *undo { Verb::Undo } else { Verb::Do };
            Command::StepStarted { operation: id(*op), step: format!("s{step}"), verb }
        }
        Try::StartRunnable { op, pick } => {
            let next = runnable(operation(*op)?);
            let StepToRun { id: step, verb } = next.get(pick % next.len().max(1))?.clone();
            Command::StepStarted { operation: id(*op), step, verb }
        }
        Try::Finish { op, step, stale, ok } => {
            let step = format!("s{step}");
            let StepState::Started(run) = &operation(*op)?.steps.get(&step)?.state else { return None };
            let attempt = if *stale { run.attempt - 1 } else { run.attempt };
            let outcome = match ok {
                true => Outcome::Done { output: None, already: false },
                false => Outcome::Failed { message: "broken".into(), evidence: vec!["line".into()] },
            };
            Command::StepFinished { operation: id(*op), step, attempt, outcome, agent: None }
        }
        Try::Block { op, step } => {
            let step = format!("s{step}");
            let StepState::Started(run) = &operation(*op)?.steps.get(&step)?.state else { return None };
            Command::StepBlocked { operation: id(*op), step, attempt: run.attempt, reason: "busy".into() }
        }
        Try::Cancel { op } => Command::Cancel { operation: id(*op) },
        Try::Retry { op } => Command::Retry { operation: id(*op) },
        Try::Seen { host, journal, remembers } => {
            let host = format!("h{}", host + 1);
            let known = state.agents.get(&host).cloned();
            let (journal, incarnation) = (journal.to_string(), remembers.to_string());
            let seen = AgentIdentity { journal, incarnation, generation: 1 };
            Command::AgentSeen { host, known, seen, remembers: *remembers }
        }
        Try::Fleet { good } => Command::ApplyFleet {
            toml: String::new(),
            generation: state.generation() + u64::from(*good),
            keeps: vec!["c0".into(), "c1".into(), "c2".into()],
            policy: Policy::default(),
        },
        Try::Traffic { op, what, stale } => {
            let attempt = operation(*op)?.traffic.ticket.attempt.saturating_sub(u64::from(*stale));
            traffic(id(*op), *what, attempt)
        }
        Try::ToGate { op } => {
            let operation = operation(*op)?;
            let started = |(id, record): (&String, &StepRecord)| match &record.state {
                StepState::Started(run) => Some((id.clone(), run.attempt)),
                _ => None,
            };
            if let Some((step, attempt)) = operation.steps.iter().find_map(started) {
                let outcome = Outcome::Done { output: None, already: false };
                Command::StepFinished { operation: id(*op), step, attempt, outcome, agent: None }
            } else {
                let StepToRun { id: step, verb } = runnable(operation).into_iter().next()?;
                Command::StepStarted { operation: id(*op), step, verb }
            }
        }
        Try::Begin { op } => Command::StartOperation {
            id: id(*op),
            plan: plan_of_masks(&format!("c{op}"), HOSTS[*op], masks),
            generation: state.generation(),
        },
    })
}

fn traffic(operation: String, what: Kind, attempt: u64) -> Command {
    match what {
        Kind::Reads => Command::SetReads { operation, percent: 50 },
        Kind::Ticket => Command::TakeTicket { operation },
        Kind::Begin(to) => Command::BeginSwitchover { operation, to, accepted: Vec::new() },
        Kind::Started => Command::SwitchoverStarted { operation },
        Kind::Decide => Command::Decide { operation, attempt, positions: Vec::new() },
        Kind::Failed(again) => {
            let (reason, evidence) = ("it broke".into(), Vec::new());
            Command::SwitchoverFailed { operation, attempt, reason, evidence, again }
        }
        Kind::Undone => Command::SwitchoverUndone { operation, attempt },
        Kind::Done => Command::SwitchoverDone { operation, attempt, pause_us: Some(1), timings: Vec::new() },
        Kind::Finish => Command::Finish { operation, decommission: attempt % 2 == 1 },
        Kind::Disturbed => {
            Command::Disturbed { operation, reason: "it failed over".into(), evidence: Vec::new() }
        }
    }
}

fn envelope(index: u64, command: Command) -> Envelope {
    let at = Timestamp::from_second(i64::try_from(index).unwrap()).unwrap();
    Envelope { version: COMMAND_VERSION, at, by: "test".into(), request_id: None, command }
}

/// The log of a random history, with the invariants checked at every entry.
fn history(masks: &[u16], tries: &[Try]) -> (Vec<Envelope>, State) {
    let mut state = State::default();
    let mut log = Vec::new();
    let often = |attempt: &Try| if matches!(attempt, Try::ToGate { .. }) { 2 * masks.len() } else { 1 };
    let tries = tries.iter().flat_map(|attempt| std::iter::repeat_n(attempt, often(attempt)));
    for attempt in tries {
        let Some(command) = command(&state, masks, attempt) else { continue };
        let index = log.len() as u64 + 1;
        let envelope = envelope(index, command);
        let before = state.clone();
        let result = state.apply(position(index), &envelope);
        log.push(envelope.clone());
        match &result {
            Err(_) => assert_eq!(unchanged(&state, &before), before),
            Ok(reply) => check_start(&before, &envelope.command, position(index), reply),
        }
        check_audit(&before, &state, &envelope, result.is_ok());
        check_attempts(&before, &state, &envelope.command);
        check_register(&before, &state, &envelope.command, position(index));
        check_exclusive(&state);
    }
    (log, state)
}

/// The state after a refusal, but for what a refusal may change.
fn unchanged(after: &State, before: &State) -> State {
    State { applied: before.applied, audit: before.audit.clone(), ..after.clone() }
}

/// Who asked for something is noted with it, and nothing else is.
fn check_audit(before: &State, after: &State, envelope: &Envelope, accepted: bool) {
    let asked = matches!(
        envelope.command,
        Command::ApplyFleet { .. }
            | Command::StartOperation { .. }
            | Command::Cancel { .. }
            | Command::Retry { .. }
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

fn position(index: u64) -> Position {
    Position { index, term: 1 + index / 10 }
}

fn check_start(before: &State, command: &Command, position: Position, reply: &Reply) {
    let Command::StepStarted { operation, step, verb } = command else { return };
    let operation = &before.operations[operation];
    // The fence: the entry's own term, and an attempt that no start of the operation ever had.
    assert_eq!(*reply, Reply::Started { attempt: operation.next_attempt, term: position.term });
    match verb {
        Verb::Do => {
            let after = &operation.plan.step(step).unwrap().after;
            assert!(
                after.iter().all(|id| operation.steps[id].state == StepState::Done),
                "{step} ran too early"
            );
            if operation.plan.step(step).unwrap().finish == Finish::StopOld {
                assert!(operation.status == Status::Finishing && operation.traffic.writer == Side::New);
                assert!(
                    operation.to_finish().next().is_none(),
                    "{step} ended before the way back was taken away"
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
                assert!(untouched || stays, "{} was still there", step.id);
            }
            assert!(matches!(operation.status, Status::Cancelling | Status::Finishing));
        }
    }
}

/// Who takes writes changes by a decision only, and a decision is what it has to be.
fn check_register(before: &State, after: &State, command: &Command, position: Position) {
    for (id, new) in &after.operations {
        let Some(old) = before.operations.get(id) else {
            assert_eq!((new.traffic.writer, new.traffic.count), (Side::Old, 0));
            continue;
        };
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

fn check_attempts(before: &State, after: &State, command: &Command) {
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

fn check_exclusive(state: &State) {
    let mut hosts = std::collections::BTreeSet::new();
    let mut clusters = std::collections::BTreeSet::new();
    for operation in state.active() {
        assert!(clusters.insert(operation.plan.cluster.clone()), "two operations on one cluster");
        for host in operation.hosts() {
            assert!(hosts.insert(host.to_owned()), "two operations on host {host}");
        }
    }
}

/// Plays an honest driver and honest agents until nothing is runnable; returns the undone steps in order.
fn run_to_rest(state: &mut State, operation: &str) -> Vec<String> {
    let mut undone = Vec::new();
    let mut index = state.applied;
    let mut apply = |state: &mut State, command| {
        index += 1;
        state.apply(position(index), &envelope(index, command))
    };
    while let Some(StepToRun { id: step, verb }) = runnable(&state.operations[operation]).into_iter().next() {
        let started = Command::StepStarted { operation: operation.into(), step: step.clone(), verb };
        let Ok(Reply::Started { attempt, .. }) = apply(state, started) else {
            panic!("runnable but refused")
        };
        if verb == Verb::Undo {
            undone.push(step.clone());
        }
        let outcome = Outcome::Done { output: None, already: false };
        apply(
            state,
            Command::StepFinished { operation: operation.into(), step, attempt, outcome, agent: None },
        )
        .unwrap();
    }
    undone
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_anywhere_changes_nothing(
        masks in prop::collection::vec(any::<u16>(), 1..8),
        tries in prop::collection::vec(any_try(), 0..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let (log, whole) = history(&masks, &tries);
        let cut = cut.index(log.len() + 1);
        let mut replayed = State::default();
        for (i, entry) in log.iter().enumerate() {
            if i == cut {
                replayed = State::restore(&replayed.snapshot().unwrap()).unwrap();
            }
            let bytes = entry.encode().unwrap();
            let _ = replayed.apply(position(i as u64 + 1), &Envelope::decode(&bytes).unwrap());
        }
        prop_assert_eq!(replayed, whole);
    }

    #[test]
    fn cancel_takes_back_in_reverse(
        masks in prop::collection::vec(any::<u16>(), 1..8),
        tries in prop::collection::vec(any_try(), 0..80),
    ) {
        let (_, mut state) = history(&masks, &tries);
        let ids: Vec<String> = state.active().map(|operation| operation.id.clone()).collect();
        for operation in ids {
            if !can_be_cancelled(&mut state, &operation) {
                continue;
            }
            let mut expected: Vec<String> =
                state.operations[&operation].touched().map(|(id, _)| id.to_owned()).collect();
            expected.reverse();
            let index = state.applied + 1;
            let command = match &state.operations[&operation].status {
                Status::Cancelling => None,
                Status::Stopped(stop) if stop.cancelling => Some(Command::Retry { operation: operation.clone() }),
                _ => Some(Command::Cancel { operation: operation.clone() }),
            };
            if let Some(command) = command {
                state.apply(position(index), &envelope(index, command)).unwrap();
            }
            prop_assert_eq!(run_to_rest(&mut state, &operation), expected);
            prop_assert_eq!(&state.operations[&operation].status, &Status::Cancelled);
        }
    }

    /// From the gate, where it matters: any order of what coordinators of changing terms may try.
    #[test]
    fn the_register_moves_by_rightful_decisions_only(
        tries in prop::collection::vec((any_kind(), prop::bool::weighted(0.1), prop::bool::weighted(0.15)), 0..60),
    ) {
        let mut gate = Gate::new();
        let mut term = 5;
        let mut ruled_out = std::collections::BTreeSet::new();
        for (what, stale, elected) in tries {
            term += u64::from(elected);
            if matches!(what, Kind::Finish | Kind::Disturbed) {
                continue;
            }
            let before = gate.0.clone();
            let attempt = before.operations["c-1"].traffic.ticket.attempt.saturating_sub(u64::from(stale));
            let command = traffic("c-1".into(), what, attempt);
            let index = before.applied + 1;
            let done = gate.tell(term, command.clone()).is_ok();
            check_register(&before, &gate.0, &command, Position { index, term });
            match what {
                Kind::Failed(_) if done => prop_assert!(ruled_out.insert(attempt)),
                Kind::Decide if done => prop_assert!(!ruled_out.contains(&attempt), "{attempt} was ruled out"),
                _ if !done => prop_assert_eq!(&unchanged(&gate.0, &before), &before),
                _ => {}
            }
        }
    }

    #[test]
    fn finish_takes_back_what_is_marked(
        masks in prop::collection::vec(any::<u16>(), 3..8),
        tries in prop::collection::vec(any_try(), 0..80),
    ) {
        let (_, mut state) = history(&masks, &tries);
        let ids: Vec<String> = state.active().map(|operation| operation.id.clone()).collect();
        for operation in ids {
            end_switchover(&mut state, &operation);
            if state.operations[&operation].status != Status::AtGate {
                continue;
            }
            let plan = state.operations[&operation].plan.clone();
            let marked = plan.steps.iter().rev().filter(|step| step.finish == Finish::TakeBack);
            let expected: Vec<String> = marked.map(|step| step.id.clone()).collect();
            let index = state.applied + 1;
            let finish = Command::Finish { operation: operation.clone(), decommission: false };
            state.apply(position(index), &envelope(index, finish)).unwrap();
            prop_assert_eq!(run_to_rest(&mut state, &operation), expected);
            prop_assert_eq!(&state.operations[&operation].status, &Status::Finished);
            prop_assert!(!state.operations[&operation].is_active());
        }
    }

    #[test]
    fn it_can_always_be_finished(
        masks in prop::collection::vec(any::<u16>(), 1..8),
        tries in prop::collection::vec(any_try(), 0..80),
    ) {
        let (_, mut state) = history(&masks, &tries);
        let ids: Vec<String> = state.active().map(|operation| operation.id.clone()).collect();
        for operation in ids {
            if let Status::Stopped(_) = &state.operations[&operation].status {
                let index = state.applied + 1;
                let retry = Command::Retry { operation: operation.clone() };
                state.apply(position(index), &envelope(index, retry)).unwrap();
            }
            run_to_rest(&mut state, &operation);
            end_switchover(&mut state, &operation);
            let status = &state.operations[&operation].status;
            prop_assert!(matches!(status, Status::AtGate | Status::Cancelled | Status::Finished), "{:?}", status);
        }
    }
}

/// Plays an honest coordinator until no switchover is under way.
fn end_switchover(state: &mut State, operation: &str) {
    let tell = |state: &mut State, command: Command| {
        let index = state.applied + 1;
        state.apply(position(index), &envelope(index, command)).unwrap()
    };
    while let Some(switchover) = state.operations[operation].traffic.switchover.clone() {
        let started = Command::SwitchoverStarted { operation: operation.into() };
        let Reply::Started { attempt, .. } = tell(state, started) else { panic!() };
        let what = match state.operations[operation].traffic.switchover.as_ref().unwrap().stage {
            Stage::Trying => Kind::Failed(switchover.tries % 2 == 0),
            Stage::Undoing => Kind::Undone,
            Stage::Decided => Kind::Done,
            Stage::Waiting => panic!("started and waiting"),
        };
        tell(state, traffic(operation.into(), what, attempt));
    }
}

/// Ends a switchover first; false when the new side takes the writes, or it is being finished: then cancel is refused.
fn can_be_cancelled(state: &mut State, operation: &str) -> bool {
    end_switchover(state, operation);
    let known = state.operations[operation].clone();
    let finishing = match &known.status {
        Status::Finishing => true,
        Status::Stopped(stop) => stop.finishing,
        _ => false,
    };
    if known.traffic.writer == Side::Old && !finishing {
        return true;
    }
    let index = state.applied + 1;
    let refused =
        state.apply(position(index), &envelope(index, Command::Cancel { operation: operation.into() }));
    assert!(matches!(refused, Err(Rejection::Illegal { .. })), "{refused:?}");
    assert_eq!(state.operations[operation], known);
    false
}

fn started(steps: Vec<crate::plan::PlannedStep>) -> State {
    let mut state = State::default();
    let start = Command::StartOperation { id: "c-1".into(), plan: plan("c", steps), generation: 0 };
    state.apply(position(1), &envelope(1, start)).unwrap();
    state
}

#[test]
fn a_repeated_request_is_one_request() {
    let mut state = State::default();
    let plan = plan("c", vec![step("a", "h", "x:1", &[])]);
    for (index, id) in [(1, "c-1"), (2, "c-2")] {
        let start = Command::StartOperation { id: id.into(), plan: Arc::clone(&plan), generation: 0 };
        let envelope = Envelope { request_id: Some("r".into()), ..envelope(index, start) };
        let reply = state.apply(position(index), &envelope).unwrap();
        assert_eq!(reply, Reply::Operation { id: "c-1".into() });
    }
    assert_eq!(state.operations.len(), 1);
}

#[test]
fn a_plan_that_points_forward_is_refused() {
    let mut state = State::default();
    let plan = plan("c", vec![step("a", "h", "x:1", &["b"]), step("b", "h", "x:1", &[])]);
    let start = Command::StartOperation { id: "c-1".into(), plan, generation: 0 };
    assert!(matches!(state.apply(position(1), &envelope(1, start)), Err(Rejection::BadPlan(_))));
}

#[test]
fn asking_a_blocked_agent_again_makes_no_events() {
    let mut state = started(vec![step("a", "h", "x:1", &[])]);
    let mut index = 1;
    for attempt in 1..5 {
        for command in [
            Command::StepStarted { operation: "c-1".into(), step: "a".into(), verb: Verb::Do },
            Command::StepBlocked {
                operation: "c-1".into(),
                step: "a".into(),
                attempt,
                reason: "busy".into(),
            },
        ] {
            index += 1;
            state.apply(position(index), &envelope(index, command)).unwrap();
        }
    }
    let kinds: Vec<&str> = state.operations["c-1"].events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["operation-started", "started", "blocked"]);
}

/// An operation at the gate whose traffic can be moved, and a way to tell it things in a term.
struct Gate(State);

impl Gate {
    fn new() -> Gate {
        let steps = [("o", Some(Side::Old)), ("n", Some(Side::New)), ("b", None)];
        let steps = steps.map(|(id, side)| movable(step(id, "h", "x:1", &[]), side)).into();
        let mut state = started(steps);
        run_to_rest(&mut state, "c-1");
        assert_eq!(state.operations["c-1"].status, Status::AtGate);
        Gate(state)
    }

    fn tell(&mut self, term: u64, command: Command) -> Result<Reply, Rejection> {
        let index = self.0.applied + 1;
        self.0.apply(Position { index, term }, &envelope(index, command))
    }

    fn traffic(&mut self, term: u64, what: Kind, attempt: u64) -> Result<Reply, Rejection> {
        self.tell(term, traffic("c-1".into(), what, attempt))
    }

    fn begin(&mut self, term: u64, to: Side) -> u64 {
        self.traffic(term, Kind::Begin(to), 0).unwrap();
        self.start(term)
    }

    fn start(&mut self, term: u64) -> u64 {
        let Ok(Reply::Started { attempt, .. }) = self.traffic(term, Kind::Started, 0) else { panic!() };
        attempt
    }

    fn refused(&mut self, term: u64, what: Kind, attempt: u64) -> String {
        self.traffic(term, what, attempt).unwrap_err().to_string()
    }

    fn operation(&self) -> &Operation {
        &self.0.operations["c-1"]
    }

    fn cancel(&mut self) -> Result<Reply, Rejection> {
        self.tell(9, Command::Cancel { operation: "c-1".into() })
    }
}

#[test]
fn a_decision_after_the_failure_of_its_try_is_refused() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Failed(true), attempt).unwrap();
    let refused = gate.refused(5, Kind::Decide, attempt);
    assert!(refused.contains("is not trying: attempt"), "{refused}");
    gate.traffic(5, Kind::Undone, attempt).unwrap();
    assert_eq!(gate.operation().traffic.switchover.as_ref().unwrap().stage, Stage::Waiting);
    let next = gate.start(5);
    gate.refused(5, Kind::Decide, attempt);
    gate.traffic(5, Kind::Decide, next).unwrap();
    gate.refused(5, Kind::Decide, next);
    assert_eq!((gate.operation().traffic.writer, gate.operation().traffic.count), (Side::New, 1));
}

#[test]
fn a_decision_of_another_term_is_refused() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    // Proposed by the coordinator of term 5, and committed after all by that of term 6.
    let refused = gate.refused(6, Kind::Decide, attempt);
    assert!(refused.contains("the try began in term 5, and this is term 6"), "{refused}");
    // Whoever takes over finds an undecided try and takes it back.
    let taken = gate.start(6);
    gate.refused(6, Kind::Decide, attempt);
    gate.refused(6, Kind::Decide, taken);
    gate.traffic(6, Kind::Undone, taken).unwrap();
    let traffic = &gate.operation().traffic;
    assert_eq!(
        (traffic.writer, traffic.reads, gate.operation().status.clone()),
        (Side::Old, 0, Status::AtGate)
    );
    assert!(!traffic.last.as_ref().unwrap().decided);
}

#[test]
fn a_decision_outlives_its_coordinator() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Decide, attempt).unwrap();
    let taken = gate.start(6);
    gate.refused(6, Kind::Done, attempt);
    gate.refused(6, Kind::Failed(false), taken);
    assert!(gate.cancel().unwrap_err().to_string().contains("`pgleap reverse` leads back"));
    gate.traffic(6, Kind::Done, taken).unwrap();
    assert_eq!((gate.operation().traffic.writer, gate.operation().traffic.reads), (Side::New, 100));
    assert!(gate.refused(6, Kind::Begin(Side::New), 0).contains("takes the writes already"));
    assert!(gate.cancel().unwrap_err().to_string().contains("`pgleap reverse` first, or `pgleap finish`"));
    gate.begin(6, Side::Old);
}

#[test]
fn tries_end_and_the_share_of_reads_comes_back() {
    let mut gate = Gate::new();
    gate.traffic(5, Kind::Reads, 0).unwrap();
    let mut attempt = gate.begin(5, Side::New);
    let mut tries = 1;
    loop {
        assert_eq!(gate.operation().traffic.reads, 100);
        gate.traffic(5, Kind::Failed(true), attempt).unwrap();
        gate.traffic(5, Kind::Undone, attempt).unwrap();
        if gate.operation().status == Status::AtGate {
            break;
        }
        attempt = gate.start(5);
        tries += 1;
    }
    assert_eq!(tries, gate.operation().plan.traffic.tries);
    assert_eq!((gate.operation().traffic.reads, gate.operation().traffic.writer), (50, Side::Old));
}

#[test]
fn cancel_between_two_tries_gives_up_the_switchover_only() {
    let mut gate = Gate::new();
    let attempt = gate.begin(5, Side::New);
    assert!(gate.cancel().unwrap_err().to_string().contains("between two tries"));
    gate.traffic(5, Kind::Failed(true), attempt).unwrap();
    gate.traffic(5, Kind::Undone, attempt).unwrap();
    gate.cancel().unwrap();
    assert_eq!(gate.operation().status, Status::AtGate);
    let reason = &gate.operation().traffic.last.as_ref().unwrap().reason;
    assert_eq!(reason, "given up by test; the latest try: it broke");
    // While it is taken back, only no other try follows.
    let attempt = gate.begin(5, Side::New);
    gate.traffic(5, Kind::Failed(true), attempt).unwrap();
    gate.cancel().unwrap();
    assert_eq!(gate.operation().status, Status::Switching);
    gate.traffic(5, Kind::Undone, attempt).unwrap();
    assert_eq!(gate.operation().status, Status::AtGate);
    gate.cancel().unwrap();
    assert_eq!(gate.operation().status, Status::Cancelling);
}

#[test]
fn a_plan_that_cannot_move_traffic_says_so() {
    let mut state = started(vec![step("a", "h", "x:1", &[])]);
    run_to_rest(&mut state, "c-1");
    for what in [Kind::Begin(Side::New), Kind::Finish] {
        let index = state.applied + 1;
        let refused =
            state.apply(position(index), &envelope(index, traffic("c-1".into(), what, 0))).unwrap_err();
        assert!(refused.to_string().contains("older pgleap"), "{refused}");
    }
}

#[test]
fn the_side_that_goes_away_ends_only_when_ordered_and_last() {
    for (writer, decommission, ends) in
        [(Side::New, true, true), (Side::New, false, false), (Side::Old, true, false)]
    {
        let mut state = started(plan_of_masks("c", ["h", "g"], &[0; 5]).steps.clone());
        run_to_rest(&mut state, "c-1");
        let mut gate = Gate(state);
        if writer == Side::New {
            let attempt = gate.begin(5, Side::New);
            gate.traffic(5, Kind::Decide, attempt).unwrap();
            gate.traffic(5, Kind::Done, attempt).unwrap();
        }
        gate.tell(5, Command::Finish { operation: "c-1".into(), decommission }).unwrap();
        let undone = run_to_rest(&mut gate.0, "c-1");
        assert_eq!(undone, ["s4", "s3", "s2"]);
        assert_eq!(gate.operation().status, Status::Finished);
        let ended = gate.operation().steps["s0"].state == StepState::Done;
        assert_eq!(ended, ends, "{writer} {decommission}");
    }
}
