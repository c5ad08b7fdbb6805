//! What holds for every plan, whatever the number of nodes and databases.

use pgleap_proto::step::CollationVersion;
use proptest::prelude::*;

use super::*;
use crate::plan::table::{Each, rows};

/// Steps that leave nothing behind of their own; all others must say how they are taken back.
const NOTHING_TO_TAKE_BACK: [&str; 15] = [
    "check.rehearse",
    "seed.check_upgrade",
    "convert.clean_promoted",
    "convert.drop_physical_slot",
    "upgrade.stop_leader",
    "upgrade.stop_replica",
    "upgrade.verify_relink",
    "upgrade.drop_physical_slot",
    "upgrade.update_extensions",
    "upgrade.refresh_collations",
    "upgrade.analyze",
    "replicate.catch_up",
    "replicate.validate",
    "retire.stop_old",
    "retire.stop_new",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_plan_is_sound(
        moves: bool, old in 1usize..4, new in 1usize..6, databases in 0usize..8, patroni in any::<bool>(),
        seeded in any::<bool>()
    ) {
        let case = case_of(moves, old, new, databases).on_both_sides(patroni).and_seeded(seeded);
        let plan = plan(&case);

        let ids: BTreeSet<&str> = plan.steps.iter().map(|step| step.id.as_str()).collect();
        prop_assert_eq!(ids.len(), plan.steps.len());
        let mut earlier = BTreeSet::new();
        for step in &plan.steps {
            // Also proves that there is no cycle.
            prop_assert!(step.after.iter().all(|id| earlier.contains(id)), "{}: {:?}", step.id, step.after);
            prop_assert!(step.after.iter().all(|id| plan.step(id).unwrap().phase <= step.phase), "{}", step.id);
            prop_assert_eq!(step.after.iter().collect::<BTreeSet<_>>().len(), step.after.len(), "{}", step.id);
            earlier.insert(step.id.clone());
        }
        prop_assert!(plan.steps.iter().map(|step| step.phase).is_sorted());

        let agents = case.cluster.agents();
        for step in &plan.steps {
            prop_assert!(!step.commands.is_empty() || step.id == "upgrade.update_extensions", "{}", step.id);
            prop_assert!(!step.title.contains('{'), "{}", step.title);
            prop_assert_eq!(agents.get(&step.host), Some(&step.agent));
            if let Some(node) = acts_on(step.action.kind.as_ref().unwrap()) {
                prop_assert_eq!(&node.host, &step.host, "{}", step.id);
            }
            let nothing = NOTHING_TO_TAKE_BACK.contains(&kind_of(&step.id));
            prop_assert_eq!(step.undo.is_none(), nothing, "{}", step.id);
        }
        prop_assert_eq!(&plan, &build(&case.cluster, &case.facts, OPERATION, TAG).unwrap());
    }

    #[test]
    fn what_must_precede_does(moves: bool, old in 1usize..4, new in 1usize..6, patroni in any::<bool>(), seeded in any::<bool>()) {
        let case = case_of(moves, old, new, 2).on_both_sides(patroni).and_seeded(seeded);
        let plan = plan(&case);
        let rules = [
            ("seed.create_physical_slot", "seed.clone_node"),
            ("seed.seed_by_patroni", "seed.take_from_patroni"),
            ("seed.take_from_patroni", "seed.clone_node"),
            ("seed.check_upgrade", "convert.publish"),
            ("seed.start_standby", "convert.publish"),
            ("convert.publish", "convert.create_slots"),
            ("convert.halt_standby", "convert.create_slots"),
            ("convert.create_slots", "convert.recover_to"),
            ("convert.recover_to", "convert.start_standby"),
            ("convert.recover_to", "convert.drop_physical_slot"),
            ("convert.clean_promoted", "upgrade.stop_leader"),
            ("convert.start_standby", "upgrade.stop_leader"),
            ("upgrade.stop_leader", "upgrade.stop_replica"),
            ("upgrade.stop_replica", "upgrade.upgrade"),
            ("upgrade.upgrade", "upgrade.relink"),
            ("upgrade.verify_relink", "upgrade.start_leader"),
            ("upgrade.create_physical_slot", "upgrade.update_extensions"),
            ("seed.start_standby", "convert.halt_standby"),
            ("upgrade.stop_leader", "upgrade.fence_node"),
            ("upgrade.stop_replica", "upgrade.fence_node"),
            ("upgrade.stop_replica", "upgrade.start_leader"),
            ("upgrade.stop_replica", "upgrade.start_replica"),
            ("upgrade.start_leader", "upgrade.start_replica"),
            ("upgrade.update_extensions", "upgrade.refresh_collations"),
            ("upgrade.refresh_collations", "upgrade.analyze"),
            ("upgrade.refresh_collations", "replicate.subscribe"),
            ("upgrade.start_leader", "replicate.subscribe"),
            ("upgrade.update_extensions", "replicate.subscribe"),
            ("replicate.subscribe", "replicate.enable_subscriptions"),
            ("replicate.catch_up", "replicate.validate"),
            ("convert.publish", "convert.create_marker"),
            ("convert.create_marker", "convert.halt_standby"),
            ("convert.create_marker", "convert.create_slots"),
            ("upgrade.verify_relink", "upgrade.fence_node"),
            ("upgrade.fence_node", "upgrade.start_leader"),
            ("upgrade.create_marker", "replicate.subscribe"),
            ("seed.protect_from_patroni", "seed.create_physical_slot"),
            ("upgrade.start_leader", "upgrade.hand_over"),
            ("upgrade.hand_over", "upgrade.protect_from_patroni"),
            ("upgrade.protect_from_patroni", "upgrade.create_physical_slot"),
            ("upgrade.protect_from_patroni", "upgrade.create_marker"),
            ("upgrade.protect_from_patroni", "upgrade.update_extensions"),
            ("replicate.validate", "route.publish"),
            ("route.create_slots", "route.subscribe"),
            ("route.subscribe", "route.keep_traffic"),
            ("route.keep_traffic", "route.stage_pooler"),
            ("route.keep_traffic", "route.stage_balancer"),
        ];
        for (before, after) in rules {
            let node_of = |id: &str| id.split_once('/').map(|(_, node)| node.to_owned());
            for later in plan.steps.iter().filter(|step| kind_of(&step.id) == after) {
                let all = ancestors(&plan, &later.id);
                for earlier in plan.steps.iter().filter(|step| kind_of(&step.id) == before) {
                    // A node's own slot precedes its own clone.
                    let own = before == "seed.create_physical_slot";
                    if own && node_of(&earlier.id) != node_of(&later.id) {
                        continue;
                    }
                    prop_assert!(all.contains(earlier.id.as_str()), "{} before {}", earlier.id, later.id);
                }
            }
        }
        // A replica that has to be cloned anew does not hold up replication, while the old cluster keeps WAL.
        let before_subscribe = ancestors(&plan, "replicate.subscribe");
        prop_assert!(!before_subscribe.iter().any(|id| id.starts_with("upgrade.clone_node")));
    }
}

#[test]
fn databases_are_all_but_empty_templates() {
    let mut case = case(1, 1, 5);
    case.database("postgres").allow_connections = true;
    let plan = plan(&case);
    let Some(Kind::Publish(publish)) = &plan.step("convert.publish").unwrap().action.kind else { panic!() };
    // The fifth is a template with tables.
    let names = ["app", "postgres", "we\"ird ☃0", "it's1", "a=b2", "$x `y`3", " 4"];
    assert_eq!(publish.databases, names);
    let Some(Kind::Rehearse(rehearse)) = &plan.step("check.rehearse").unwrap().action.kind else { panic!() };
    assert!(rehearse.databases.contains(&"template1".to_owned()));
    assert!(!rehearse.databases.contains(&"template0".to_owned()));
}

/// What the old leader said of its collations comes to the step that compares them with those of the new host.
#[test]
fn collations_are_compared_with_the_old_leaders() {
    let mut case = case(2, 1, 0);
    let version = CollationVersion { name: "default".into(), actual: "2.36".into(), ..Default::default() };
    case.database("app").collations = vec![version.clone()];
    let plan = plan(&case);
    let kind = plan.step("upgrade.refresh_collations").unwrap().action.kind.clone();
    let Some(Kind::RefreshCollations(refresh)) = kind else { panic!() };
    let names: Vec<_> = refresh.old.iter().map(|old| old.database.as_str()).collect();
    assert_eq!(names, ["app", "postgres", "template1"]);
    assert_eq!(refresh.old[0].collations, [version]);
}

#[test]
fn no_plan_from_half_the_facts() {
    let error = |case: &Case| build(&case.cluster, &case.facts, OPERATION, TAG).unwrap_err().to_string();
    let mut lost = case(2, 2, 0);
    lost.facts.replies.remove("n1");
    lost.facts.unreachable.insert("n1".into(), "timed out".into());
    assert_eq!(
        error(&lost),
        "no plan for cluster ledger: the agent of host n1 cannot be reached (timed out); `pgleap check ledger` tells more"
    );
    let mut headless = case(2, 2, 0);
    headless.server(0).in_recovery = true;
    assert!(error(&headless).contains("not exactly one of its old nodes"));
    let mut blind = case(2, 2, 0);
    blind.database("app").connect_error = "permission denied".into();
    assert!(error(&blind).contains("\"app\" could not be inspected"));
    let mut taken = case(2, 2, 0);
    taken.database("app").publications.push(TAG.into());
    assert!(error(&taken).contains("\"pgleap_0123ab\" exists already"));
}

#[test]
fn every_row_makes_steps_and_everything_movable_is_found_again() {
    let case = movable().seeded_by_patroni();
    let plan = plan(&case);
    for row in rows() {
        let steps =
            plan.steps.iter().filter(|step| kind_of(&step.id) == format!("{}.{}", row.phase, row.name));
        let expected: usize = rows()
            .filter(|other| (other.phase, other.name) == (row.phase, row.name))
            .map(|other| match other.each {
                Each::Leader | Each::Replica | Each::Balancer => 1,
                Each::UnderPatroni | Each::LeaderToPatroni | Each::ReplicaToPatroni => 1,
                Each::LeaderByPatroni | Each::ReplicaByPatroni => 1,
                Each::New | Each::Old => 2,
                Each::Pooler => 3,
            })
            .sum();
        assert_eq!(steps.count(), expected, "{}.{}", row.phase, row.name);
    }
    let moving = plan.moving().unwrap();
    assert_eq!((moving.old.host.as_str(), moving.new.host.as_str()), ("db1", "db3"));
    assert_eq!((moving.nodes.len(), moving.poolers.len(), moving.balancers.len()), (4, 3, 1));
    assert_eq!(moving.cluster.operation, OPERATION);
    assert_eq!(moving.cluster.databases[0].forward_slot, "pgleap_0123ab_16400");
    assert_eq!(moving.cluster.databases[0].reverse_slot, "pgleap_0123ab_r_16400");
    assert_eq!(moving.party(Side::New).unwrap().agent, "10.0.0.3:7432");
    let without =
        Plan { steps: plan.steps.into_iter().filter(|step| step.phase != Phase::Route).collect(), ..plan };
    assert_eq!(without.moving(), None);
}

#[test]
fn the_plan_reads_like_this() {
    crate::golden::check("coordinator/src/plan/golden/ledger.txt", &shown(&plan(&movable())));
}
