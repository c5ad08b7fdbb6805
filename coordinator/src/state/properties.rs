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
//! | the register moves by a decision only, at most one for each switchover, in the term of its try; and back from one that let nobody in | `check_register` |
//! | what was taken back is never decided | `the_register_moves_by_rightful_decisions_only` |
//! | finish takes back what the plan says, last first, and nothing else | `finish_takes_back_what_is_marked` |
//! | whatever happened, retry and honest agents bring it to the gate | `it_can_always_be_finished` |

mod checks;
mod examples;

use std::sync::Arc;

use proptest::prelude::*;

use super::samples::{done, end_step, envelope, failed, movable, plan, plan_of_masks, start_step, step};
use super::*;
use crate::plan::Finish;
use checks::{check_attempts, check_audit, check_exclusive, check_register, check_start};

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
    Abandon {
        op: usize,
        host: usize,
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
    Noted,
    Led,
    /// The new leader's host is given up.
    GiveUp,
    TakeBack,
    Served,
    Done,
    Finish,
    Disturbed,
    Redirected,
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
        1 => Just(Kind::Noted),
        1 => Just(Kind::Led),
        1 => Just(Kind::GiveUp),
        1 => Just(Kind::TakeBack),
        1 => Just(Kind::Served),
        2 => Just(Kind::Done),
        1 => Just(Kind::Finish),
        1 => Just(Kind::Disturbed),
        1 => Just(Kind::Redirected),
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
        1 => (op.clone(), 0..5usize).prop_map(|(op, host)| Try::Abandon { op, host }),
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
            start_step(&id(*op), &format!("s{step}"), verb)
        }
        Try::StartRunnable { op, pick } => {
            let next = runnable(operation(*op)?);
            let StepToRun { id: step, verb } = next.get(pick % next.len().max(1))?.clone();
            start_step(&id(*op), &step, verb)
        }
        Try::Finish { op, step, stale, ok } => {
            let step = format!("s{step}");
            let StepState::Started(run) = &operation(*op)?.steps.get(&step)?.state else { return None };
            let attempt = if *stale { run.attempt - 1 } else { run.attempt };
            end_step(&id(*op), &step, attempt, if *ok { done() } else { failed("broken") })
        }
        Try::Block { op, step } => {
            let step = format!("s{step}");
            let StepState::Started(run) = &operation(*op)?.steps.get(&step)?.state else { return None };
            Command::StepBlocked { operation: id(*op), step, attempt: run.attempt, reason: "busy".into() }
        }
        Try::Cancel { op } => Command::Cancel { operation: id(*op) },
        Try::Retry { op } => Command::Retry { operation: id(*op) },
        Try::Abandon { op, host } => Command::Abandon { operation: id(*op), host: format!("h{}", host + 1) },
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
            let known = operation(*op)?;
            let attempt = known.traffic.ticket.attempt.saturating_sub(u64::from(*stale));
            let mut command = traffic(id(*op), *what, attempt);
            if let Command::Redirected { plan, .. } = &mut command
                && !stale
            {
                plan.clone_from(&known.plan);
            }
            command
        }
        Try::ToGate { op } => {
            let operation = operation(*op)?;
            let started = |(id, record): (&String, &StepRecord)| match &record.state {
                StepState::Started(run) => Some((id.clone(), run.attempt)),
                _ => None,
            };
            if let Some((step, attempt)) = operation.steps.iter().find_map(started) {
                end_step(&id(*op), &step, attempt, done())
            } else {
                let StepToRun { id: step, verb } = runnable(operation).into_iter().next()?;
                start_step(&id(*op), &step, verb)
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
        Kind::Noted => Command::SwitchoverNoted { operation, attempt, notes: vec!["told once".into()] },
        Kind::Led => Command::SwitchoverLed { operation, attempt },
        Kind::GiveUp => Command::Abandon { operation, host: "g".into() },
        Kind::TakeBack => Command::TakeBack { operation, attempt, evidence: vec!["not there".into()] },
        Kind::Served => Command::SwitchoverServed { operation, attempt },
        Kind::Done => Command::SwitchoverDone { operation, attempt, pause_us: Some(1), timings: Vec::new() },
        Kind::Finish => Command::Finish { operation, decommission: attempt % 2 == 1 },
        Kind::Disturbed => {
            let (reason, evidence) = ("it failed over".into(), Vec::new());
            Command::Disturbed { operation, reason, evidence, failover: attempt % 2 == 1 }
        }
        // Of which plan it is: whoever uses it knows.
        Kind::Redirected => Command::Redirected {
            operation,
            plan: plan("none", Vec::new()),
            timeline: 2,
            reason: "another one leads".into(),
            evidence: vec!["nothing is missing".into()],
        },
    }
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
pub(super) fn unchanged(after: &State, before: &State) -> State {
    State { applied: before.applied, audit: before.audit.clone(), ..after.clone() }
}

fn position(index: u64) -> Position {
    Position { index, term: 1 + index / 10 }
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
        let Ok(Reply::Started { attempt, .. }) = apply(state, start_step(operation, &step, verb)) else {
            panic!("runnable but refused")
        };
        apply(state, end_step(operation, &step, attempt, done())).unwrap();
        if verb == Verb::Undo {
            undone.push(step);
        }
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
            if matches!(what, Kind::Finish | Kind::Disturbed | Kind::Redirected) {
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
            let known = state.operations[&operation].clone();
            let marked = plan.steps.iter().rev().filter(|step| step.finish == Finish::TakeBack);
            // On a host that was given up while writes were moved nothing is taken back.
            let marked = marked.filter(|step| !known.abandoned.contains(&step.host));
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

/// An operation at the gate whose traffic can be moved, and a way to tell it things in a term.
struct Gate(State);

impl Gate {
    fn new() -> Gate {
        let steps = [("o", "h", Some(Side::Old)), ("n", "g", Some(Side::New)), ("b", "h", None)];
        let steps =
            steps.map(|(id, host, side)| movable(step(id, host, &format!("{host}:1"), &[]), side)).into();
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

    /// A step is asked of its agent; the attempt.
    fn start_step(&mut self, step: &str, verb: Verb) -> u64 {
        let Ok(Reply::Started { attempt, .. }) = self.tell(5, start_step("c-1", step, verb)) else {
            panic!("{step}")
        };
        attempt
    }

    fn end_step(&mut self, step: &str, attempt: u64, outcome: Outcome) {
        self.tell(5, end_step("c-1", step, attempt, outcome)).unwrap();
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
