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
mod play;
mod tries;

use std::sync::Arc;

use proptest::prelude::*;

use super::samples::{done, end_step, envelope, failed, movable, plan, plan_of_masks, start_step, step};
use super::*;
use crate::plan::Finish;
use checks::{check_attempts, check_audit, check_exclusive, check_register, check_start};
use play::{Gate, can_be_cancelled, end_switchover, position, run_to_rest, started};
use tries::{Kind, Try, any_kind, any_try, command, traffic};

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
