//! A plan with another old leader is the plan that would have been made had that one led, but for what was done where.

use proptest::prelude::*;

use super::tests::{case_of, kind_of, plan};
use super::*;
use crate::check::testing::Case;

/// Rows whose steps are about a server, or were done from there, and stay so.
const OF_A_SERVER: [&str; 8] = [
    "check.rehearse",
    "seed.create_physical_slot",
    "seed.clone_node",
    "seed.start_standby",
    "convert.recover_to",
    "convert.drop_physical_slot",
    "convert.start_standby",
    // Says from where the files come.
    "upgrade.refresh_collations",
];

/// The same cluster, in which another old node leads.
fn led_by(case: &Case, leader: usize) -> Case {
    let mut other = Case { cluster: case.cluster.clone(), facts: case.facts.clone() };
    let databases = other.server(0).databases.clone();
    other.server(0).in_recovery = true;
    (other.server(leader).in_recovery, other.server(leader).databases) = (false, databases);
    // Nodes differ in more than their addresses.
    other
}

/// Every old node with a port, a socket and a directory of its own.
fn apart(mut case: Case) -> Case {
    for (n, node) in case.cluster.old.nodes.iter_mut().enumerate() {
        node.port = 6000 + n as u16;
        (node.socket_dir, node.data_dir) = (format!("/run/o{n}"), format!("/data/o{n}"));
    }
    case
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn it_is_the_plan_of_the_other_leader_and_leads_back(
        (old, to) in (2usize..12).prop_flat_map(|old| (Just(old), 1..old)),
        moves: bool, new in 1usize..4, databases in 0usize..5, patroni: bool, same: bool
    ) {
        let case = case_of(moves, old, new, databases).on_both_sides(patroni);
        let case = if same { case } else { apart(case) };
        let first = plan(&case);
        let other = plan(&led_by(&case, to));
        let name = |n: usize| format!("old-{n}");
        let redirected = redirect(&first, &name(to)).unwrap();
        prop_assert_eq!(redirected.steps.len(), other.steps.len());
        for (step, wanted) in redirected.steps.iter().zip(&other.steps) {
            let before = first.step(&step.id).unwrap();
            if OF_A_SERVER.contains(&kind_of(&step.id)) {
                prop_assert_eq!(step, before);
            } else {
                prop_assert_eq!(step, wanted, "{}", step.id);
            }
        }
        let moving = redirected.moving().unwrap();
        prop_assert_eq!(&moving.old.what.name, &name(to));
        prop_assert_eq!(&redirect(&redirected, "old-0").unwrap(), &first);
        prop_assert_eq!(&redirect(&first, "old-0").unwrap(), &first);
        prop_assert!(redirect(&first, "new-0").is_err());
    }
}
