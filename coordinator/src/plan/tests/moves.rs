//! Plans of a move, which keeps its major.

use super::*;
use crate::plan::table::{Each, Row, rows};

/// Nothing is restored, upgraded or relinked, and each new node has one directory from the beginning to the end.
#[test]
fn a_move_goes_without_pg_upgrade() {
    let case = case_of(true, 2, 3, 1);
    let plan = plan(&case);
    let of_pg_upgrade = |kind: &Kind| {
        matches!(
            kind,
            Kind::Rehearse(_)
                | Kind::InitNew(_)
                | Kind::CheckUpgrade(_)
                | Kind::Upgrade(_)
                | Kind::OfferFiles(_)
                | Kind::Relink(_)
                | Kind::VerifyRelink(_)
        )
    };
    for step in &plan.steps {
        let kind = step.action.kind.as_ref().unwrap();
        assert!(!of_pg_upgrade(kind), "{}", step.id);
        assert!(step.commands.iter().all(|line| !line.contains("pg_upgrade")), "{}", step.id);
        let spec =
            acts_on(kind).and_then(|node| case.cluster.new.nodes.iter().find(|new| new.name == node.name));
        if let Some(spec) = spec {
            assert_eq!(acts_on(kind), Some(&case.cluster.new_node(spec)), "{}", step.id);
        }
    }
    // No move has a seed by Patroni: the fleet file may not ask for one.
    let seeded = |row: &&Row| matches!(row.each, Each::LeaderByPatroni | Each::ReplicaByPatroni);
    let left_out = rows().filter(|row| !row.in_moves && !seeded(row));
    let left_out: Vec<_> = left_out.map(|row| row.name).collect();
    let upgrades = case_of(false, 2, 3, 1);
    let upgrade = build(&upgrades.cluster, &upgrades.facts, OPERATION, TAG).unwrap();
    let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) =
        (plan.steps.iter().map(|s| &s.id).collect(), upgrade.steps.iter().map(|s| &s.id).collect());
    let only: BTreeSet<_> =
        theirs.difference(&ours).map(|id| kind_of(id).split_once('.').unwrap().1).collect();
    assert_eq!(only, left_out.into_iter().collect());
    assert_eq!(ours.difference(&theirs).count(), 0);
}

#[test]
fn a_move_reads_like_this() {
    let cluster = testing::of_a_move(movable().cluster);
    let case = testing::of(cluster).under_patroni();
    crate::golden::check("coordinator/src/plan/golden/move.txt", &shown(&plan(&case)));
}
