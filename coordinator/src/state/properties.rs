//! Properties of the state machine, over random histories.
//!
//! | property | where |
//! | --- | --- |
//! | a step starts only when all its `after` are done | `check_start` |
//! | attempts only grow | `check_attempts` |
//! | a refused command changes nothing | `history` |
//! | snapshot and rest of the log give the same state as the whole log | `a_snapshot_anywhere_changes_nothing` |
//! | cancel takes every started step back, last first | `cancel_takes_back_in_reverse` |
//! | whatever happened, retry and honest agents bring it to the gate | `it_can_always_be_finished` |

use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;

use super::samples::{plan, plan_of_masks, step};
use super::*;

/// What a random scheduler, agents and operators may try, legal or not.
#[derive(Debug, Clone)]
enum Try {
    Start { op: usize, step: usize, undo: bool },
    StartRunnable { op: usize, pick: usize },
    Finish { op: usize, step: usize, stale: bool, ok: bool },
    Block { op: usize, step: usize },
    Cancel { op: usize },
    Retry { op: usize },
    Seen { host: usize, journal: u8 },
    Fleet { good: bool },
    Begin { op: usize },
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
        1 => (0..5usize, 0..2u8).prop_map(|(host, journal)| Try::Seen { host, journal }),
        1 => any::<bool>().prop_map(|good| Try::Fleet { good }),
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
            Command::StepFinished { operation: id(*op), step, attempt, outcome }
        }
        Try::Block { op, step } => {
            let step = format!("s{step}");
            let StepState::Started(run) = &operation(*op)?.steps.get(&step)?.state else { return None };
            Command::StepBlocked { operation: id(*op), step, attempt: run.attempt, reason: "busy".into() }
        }
        Try::Cancel { op } => Command::Cancel { operation: id(*op) },
        Try::Retry { op } => Command::Retry { operation: id(*op) },
        Try::Seen { host, journal } => {
            Command::AgentSeen { host: format!("h{}", host + 1), journal: journal.to_string() }
        }
        Try::Fleet { good } => Command::ApplyFleet {
            toml: String::new(),
            generation: state.generation() + u64::from(*good),
            keeps: vec!["c0".into(), "c1".into(), "c2".into()],
        },
        Try::Begin { op } => Command::StartOperation {
            id: id(*op),
            plan: plan_of_masks(&format!("c{op}"), HOSTS[*op], masks),
            generation: state.generation(),
        },
    })
}

fn envelope(index: u64, command: Command) -> Envelope {
    let at = Timestamp::from_second(i64::try_from(index).unwrap()).unwrap();
    Envelope { version: COMMAND_VERSION, at, by: "test".into(), request_id: None, command }
}

/// The log of a random history, with the invariants checked at every entry.
fn history(masks: &[u16], tries: &[Try]) -> (Vec<Envelope>, State) {
    let mut state = State::default();
    let mut log = Vec::new();
    for attempt in tries {
        let Some(command) = command(&state, masks, attempt) else { continue };
        let index = log.len() as u64 + 1;
        let envelope = envelope(index, command);
        let before = state.clone();
        let result = state.apply(position(index), &envelope);
        log.push(envelope.clone());
        match &result {
            Err(_) => assert_eq!(State { applied: before.applied, ..state.clone() }, before),
            Ok(reply) => check_start(&before, &envelope.command, position(index), reply),
        }
        check_attempts(&before, &state, &envelope.command);
        check_exclusive(&state);
    }
    (log, state)
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
            assert_eq!(operation.status, Status::Running);
        }
        Verb::Undo => {
            let later = operation.plan.steps.iter().skip_while(|s| s.id != *step).skip(1);
            for step in later {
                let record = &operation.steps[&step.id];
                let untouched = record.touched_at.is_none() || record.state == StepState::Undone;
                assert!(untouched, "{} was still there", step.id);
            }
            assert_eq!(operation.status, Status::Cancelling);
        }
    }
}

fn check_attempts(before: &State, after: &State, command: &Command) {
    for (id, old) in &before.operations {
        let Some(new) = after.operations.get(id) else { continue };
        let starts = u64::from(matches!(command, Command::StepStarted { .. }) && old.steps != new.steps);
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
        apply(state, Command::StepFinished { operation: operation.into(), step, attempt, outcome }).unwrap();
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
            let status = &state.operations[&operation].status;
            prop_assert!(matches!(status, Status::AtGate | Status::Cancelled), "{:?}", status);
        }
    }
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
fn a_lost_journal_stops_what_had_begun_there() {
    let mut state = started(vec![step("a", "h", "x:1", &[]), step("b", "g", "y:1", &[])]);
    let commands = [
        Command::AgentSeen { host: "h".into(), journal: "one".into() },
        Command::StepStarted { operation: "c-1".into(), step: "a".into(), verb: Verb::Do },
        Command::AgentSeen { host: "g".into(), journal: "one".into() },
        // Nothing had begun there: no harm.
        Command::AgentSeen { host: "g".into(), journal: "two".into() },
    ];
    for (i, command) in commands.into_iter().enumerate() {
        let index = i as u64 + 2;
        state.apply(position(index), &envelope(index, command)).unwrap();
    }
    assert_eq!(state.operations["c-1"].status, Status::Running);
    let seen = Command::AgentSeen { host: "h".into(), journal: "two".into() };
    state.apply(position(9), &envelope(9, seen)).unwrap();
    let operation = &state.operations["c-1"];
    let Status::Stopped(stop) = &operation.status else { panic!("{:?}", operation.status) };
    assert!(stop.reason.contains("host h has a new journal"), "{}", stop.reason);
    let late = Command::StepFinished {
        operation: "c-1".into(),
        step: "a".into(),
        attempt: 1,
        outcome: Outcome::Done { output: None, already: false },
    };
    assert!(matches!(state.apply(position(10), &envelope(10, late)), Err(Rejection::StaleAttempt { .. })));
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
