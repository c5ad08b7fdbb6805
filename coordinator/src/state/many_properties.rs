//! Properties of many operations at once, over random histories.
//!
//! | property | where |
//! | --- | --- |
//! | no two admitted operations have a host in common | `check_hosts` |
//! | limits of fleet and rack are never exceeded | `check_limits` |
//! | an operation is admitted in its window, unheld, after the waves before its own | `check_admitted` |
//! | a held operation begins no step, and outside its window none that begins a phase which can wait | `check_begun` |
//! | a refused command changes nothing but the audit log | `World::tell` |
//! | what is told to be admissible is admitted, all of it, and then nothing else is | `what_is_admissible_is_admitted_and_nothing_else` |
//! | whatever happened, everything queued is admitted when the others end | `everything_queued_is_admitted_in_the_end` |
//! | snapshot and rest of the log give the same state as the whole log | `a_snapshot_anywhere_changes_nothing` |

mod examples;
mod tries;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;

use super::properties::unchanged;
use super::samples::{done, end_step, envelope, failed, movable, plan, start_step, step};
use super::*;
use crate::fleet::{Limits, Window, Zone};
use crate::plan::{Finish, Phase};
use tries::{CLUSTERS, HOUR, PHASES, Setup, Try, any_setup, any_try};
use world::World;

fn history(setup: &Setup, tries: &[Try]) -> World {
    let mut world = World::new(setup.clone());
    tries.iter().for_each(|attempt| world.attempt(attempt));
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_anywhere_changes_nothing(
        setup in any_setup(),
        tries in prop::collection::vec(any_try(), 0..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let world = history(&setup, &tries);
        let cut = cut.index(world.log.len() + 1);
        let mut replayed = State::default();
        for (i, entry) in world.log.iter().enumerate() {
            if i == cut {
                replayed = State::restore(&replayed.snapshot().unwrap()).unwrap();
            }
            let index = i as u64 + 1;
            let entry = Envelope::decode(&entry.encode().unwrap()).unwrap();
            let _ = replayed.apply(Position { index, term: 1 + index / 20 }, &entry);
        }
        prop_assert_eq!(replayed, world.state);
    }

    #[test]
    fn what_is_admissible_is_admitted_and_nothing_else(
        setup in any_setup(),
        tries in prop::collection::vec(any_try(), 0..120),
    ) {
        let mut world = history(&setup, &tries);
        for id in world.state.admissible(world.at()).operations {
            world.admit(id).unwrap();
        }
        prop_assert_eq!(world.state.admissible(world.at()).operations, Vec::<String>::new());
        for id in world.queued() {
            let wait = Admission::of(&world.state, world.at()).wait(&world.state, &world.state.operations[&id]);
            prop_assert!(wait.is_some());
            prop_assert!(world.admit(id).is_err());
        }
    }

    #[test]
    fn everything_queued_is_admitted_in_the_end(
        setup in any_setup(),
        tries in prop::collection::vec(any_try(), 0..100),
    ) {
        let mut world = history(&setup, &tries);
        // Its operators let go what they held, and accept what failed.
        let rollouts: Vec<String> = world.state.rollouts.keys().cloned().collect();
        let ids: Vec<String> = world.state.active().map(|operation| operation.id.clone()).collect();
        for name in ids.into_iter().chain(rollouts.clone()) {
            let _ = world.tell(Command::Proceed { name });
        }
        let mut rounds = 0;
        while world.state.active().next().is_some() {
            rounds += 1;
            prop_assert!(rounds < 200, "still there: {:#?}", world.state.active().map(|one| (&one.id, &one.status, &one.place)).collect::<Vec<_>>());
            world.now += 6 * HOUR;
            for id in world.state.admissible(world.at()).operations {
                world.admit(id).unwrap();
            }
            let ids: Vec<String> = world.state.active().map(|operation| operation.id.clone()).collect();
            for operation in ids {
                if let Status::Stopped(_) = world.state.operations[&operation].status {
                    world.tell(Command::Retry { operation: operation.clone() }).unwrap();
                }
                world.run(&operation);
                if world.state.operations[&operation].status == Status::AtGate {
                    let _ = world.tell(Command::Finish { operation: operation.clone(), decommission: false });
                }
                world.run(&operation);
            }
            for rollout in &rollouts {
                let _ = world.tell(Command::Proceed { name: rollout.clone() });
            }
        }
    }
}
