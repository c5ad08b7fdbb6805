//! What holds for every plan, whatever the number of nodes and databases; and the documents generated from the table.

use std::collections::{BTreeMap, BTreeSet};

use pgleap_proto::node::{ControlData, Node};
use pgleap_proto::step::action::Kind;
use pgleap_proto::step::output::Kind as OutputKind;
use pgleap_proto::step::{
    Action, CollationVersion, Output, RecoveredOutput, RehearsedOutput, SlotsOutput, StoppedOutput,
    VerifiedOutput,
};
use proptest::prelude::*;

use super::table::{After, At, Each, Row, rows};
use super::traffic::Side;
use super::*;
use crate::check::testing::{self, Case, database};
use crate::fleet::{BalancerSpec, PoolerKind, PoolerSpec};

const OPERATION: &str = "ledger-0123ab";
const TAG: &str = "pgleap_0123ab";

/// A cluster with so many nodes and databases; the first old node is the leader.
fn case(old: usize, new: usize, databases: usize) -> Case {
    case_of(false, old, new, databases)
}

/// The same, to be upgraded or to be moved.
pub(super) fn case_of(moves: bool, old: usize, new: usize, databases: usize) -> Case {
    let mut cluster = testing::healthy().cluster;
    let (old_node, new_node) = (cluster.old.nodes[0].clone(), cluster.new.nodes[0].clone());
    cluster.old.nodes = (0..old)
        .map(|n| {
            let mut node = old_node.clone();
            (node.name, node.host) = (format!("old-{n}"), format!("o{n}"));
            (node.agent, node.address) = (format!("10.1.0.{n}:7432"), format!("10.1.0.{n}"));
            node
        })
        .collect();
    cluster.new.nodes = (0..new)
        .map(|n| {
            let mut node = new_node.clone();
            (node.name, node.host) = (format!("new-{n}"), format!("n{n}"));
            (node.agent, node.address) = (format!("10.2.0.{n}:7432"), format!("10.2.0.{n}"));
            node
        })
        .collect();
    if moves {
        cluster = testing::of_a_move(cluster);
    }
    let mut case = testing::of(cluster);
    for n in 0..2 {
        let (name, host, agent) = (format!("pool-{n}"), format!("p{n}"), format!("10.3.0.{n}:7432"));
        let kind = PoolerKind::Hook { name: name.clone(), drain_ms: 1 };
        case.cluster.poolers.push(PoolerSpec {
            name: name.clone(),
            host: host.clone(),
            agent: agent.clone(),
            kind,
        });
        case.cluster.balancers.push(BalancerSpec { name, host, agent, ..BalancerSpec::default() });
    }
    for n in 0..databases {
        let odd = ["we\"ird ☃", "it's", "a=b", "$x `y`", " ", "UPPER"][n % 6];
        case.server(0).databases.push(database(&format!("{odd}{n}"), 20_000 + n as u32, n % 5 == 4));
    }
    case
}

pub(super) fn plan(case: &Case) -> Plan {
    build(&case.cluster, &case.facts, OPERATION, TAG).unwrap()
}

/// Three old nodes of major 17, moved to two new ones: what a failover of the old cluster is survived with.
pub(crate) fn a_move_of_17() -> Plan {
    let mut case = case_of(true, 3, 2, 3);
    (case.cluster.old.version, case.cluster.new.version) = (17, 17);
    plan(&case)
}

/// What an agent might say to a step that is done.
fn output(step: &PlannedStep) -> Output {
    let control = ControlData { checkpoint_lsn: 77, ..ControlData::default() };
    let kind = match step.action.kind.as_ref().unwrap() {
        Kind::CreateSlots(create) => {
            let mut slots = create.slots.clone();
            for (n, slot) in slots.iter_mut().enumerate() {
                // The highest is not the last.
                slot.lsn = 1000 + [50, 900, 3][n % 3];
            }
            Some(OutputKind::Slots(SlotsOutput { slots, timeline: 1 }))
        }
        Kind::Rehearse(_) => Some(OutputKind::Rehearsed(RehearsedOutput { fingerprint: "rehearsed".into() })),
        Kind::RecoverTo(_) => {
            Some(OutputKind::Recovered(RecoveredOutput { timeline: 2, ..RecoveredOutput::default() }))
        }
        Kind::StopLeader(_) => {
            Some(OutputKind::Stopped(StoppedOutput { control: Some(control), ..StoppedOutput::default() }))
        }
        Kind::StopReplica(_) => Some(OutputKind::Stopped(StoppedOutput {
            control: Some(control),
            same_checkpoint: true,
            ..StoppedOutput::default()
        })),
        Kind::VerifyRelink(_) => {
            Some(OutputKind::Verified(VerifiedOutput { equal: true, ..VerifiedOutput::default() }))
        }
        _ => None,
    };
    Output { kind }
}

/// Every step that must be done before this one, near or far.
fn ancestors<'p>(plan: &'p Plan, id: &str) -> BTreeSet<&'p str> {
    let mut found = BTreeSet::new();
    let mut open = vec![plan.step(id).unwrap()];
    while let Some(step) = open.pop() {
        for id in &step.after {
            let before = plan.step(id).unwrap();
            if found.insert(before.id.as_str()) {
                open.push(before);
            }
        }
    }
    found
}

/// The node on which a step acts; none for poolers and balancers.
fn acts_on(kind: &Kind) -> Option<&Node> {
    let node = match kind {
        Kind::Rehearse(a) => &a.node,
        Kind::CreatePhysicalSlot(a) => &a.node,
        Kind::DropPhysicalSlot(a) => &a.node,
        Kind::SeedByPatroni(a) => &a.node,
        Kind::TakeFromPatroni(a) => &a.node,
        Kind::CloneNode(a) => &a.node,
        Kind::StartStandby(a) => &a.node,
        Kind::InitNew(a) => &a.node,
        Kind::CheckUpgrade(a) => &a.node,
        Kind::Publish(a) => &a.node,
        Kind::HaltStandby(a) => &a.node,
        Kind::CreateSlots(a) => &a.node,
        Kind::RecoverTo(a) => &a.node,
        Kind::CleanPromoted(a) => &a.node,
        Kind::StopLeader(a) => &a.node,
        Kind::StopReplica(a) => &a.node,
        Kind::Upgrade(a) => &a.node,
        Kind::OfferFiles(a) => &a.node,
        Kind::Relink(a) => &a.node,
        Kind::VerifyRelink(a) => &a.node,
        Kind::StartLeader(a) => &a.node,
        Kind::StartReplica(a) => &a.node,
        Kind::UpdateExtensions(a) => &a.node,
        Kind::RefreshCollations(a) => &a.node,
        Kind::Analyze(a) => &a.node,
        Kind::Subscribe(a) => &a.node,
        Kind::EnableSubscriptions(a) => &a.node,
        Kind::CatchUp(a) => &a.node,
        Kind::Validate(a) => &a.node,
        Kind::CreateMarker(a) => &a.node,
        Kind::FenceNode(a) => &a.node,
        Kind::KeepTraffic(a) => &a.node,
        Kind::ProtectFromPatroni(a) => &a.node,
        Kind::HandOver(a) => &a.node,
        Kind::HandOverReplica(a) => &a.node,
        Kind::StagePooler(_) | Kind::StageBalancer(_) => return None,
    };
    node.as_ref()
}

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

fn kind_of(id: &str) -> &str {
    id.split('/').next().unwrap()
}

#[test]
fn what_serves_the_side_that_stays_is_not_pointed_back_by_finish() {
    let of = |kind: Kind| Action { kind: Some(kind) };
    let pooler = for_finish(of(Kind::StagePooler(Default::default())), Side::New);
    assert!(
        matches!(pooler.kind, Some(Kind::StagePooler(stage)) if stage.stays() == pgleap_proto::traffic::Side::New)
    );
    let balancer = for_finish(of(Kind::StageBalancer(Default::default())), Side::New);
    assert!(matches!(balancer.kind, Some(Kind::StageBalancer(stage)) if stage.weights_stay));
}

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

    #[test]
    fn everything_bound_is_told_by_steps_before(moves: bool, old in 1usize..3, new in 1usize..5, databases in 0usize..5) {
        let case = case_of(moves, old, new, databases);
        let plan = plan(&case);
        let everything: BTreeMap<String, Output> =
            plan.steps.iter().map(|step| (step.id.clone(), output(step))).collect();
        for step in &plan.steps {
            let before = ancestors(&plan, &step.id);
            let told: BTreeMap<String, Output> = everything
                .iter()
                .filter(|(id, _)| before.contains(id.as_str()))
                .map(|(id, output)| (id.clone(), output.clone()))
                .collect();
            let bound = bind(&plan, step, &told).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(&bound, &bind(&plan, step, &everything).unwrap(), "more outputs change nothing");
            let highest = 1000 + if case.server_databases() > 1 { 900 } else { 50 };
            match bound.kind.unwrap() {
                Kind::RecoverTo(a) => prop_assert_eq!(a.target_lsn, highest),
                Kind::Subscribe(a) => {
                    prop_assert_eq!(a.target_lsn, highest);
                    let way_back = step.phase == Phase::Route;
                    prop_assert_eq!(a.subscription.ends_with("_r"), way_back);
                    prop_assert!(a.slots.iter().all(|slot| slot.slot.starts_with("pgleap_0123ab_r_") == way_back));
                    prop_assert!(a.slots.iter().all(|slot| slot.lsn > 0));
                }
                Kind::EnableSubscriptions(a) => prop_assert_eq!(a.target_lsn, highest),
                Kind::CheckUpgrade(a) => prop_assert_eq!(a.rehearsed, "rehearsed"),
                Kind::StopReplica(a) => prop_assert_eq!(a.leader.unwrap().checkpoint_lsn, 77),
                Kind::Relink(a) => prop_assert!(a.same_checkpoint),
                Kind::VerifyRelink(a) => prop_assert!(a.same_checkpoint),
                Kind::CloneNode(a) => prop_assert_eq!(a.verified, step.phase == Phase::Upgrade),
                Kind::StartReplica(a) => {
                    prop_assert_eq!((a.verified, a.moved.is_some()), (!moves, moves))
                }
                Kind::StartStandby(a) => prop_assert_eq!(a.timeline, if step.phase == Phase::Convert { 2 } else { 0 }),
                _ => {}
            }
        }
    }
}

#[test]
fn from_the_hand_over_on_every_action_knows_who_runs_the_node_and_none_before() {
    let case = case(2, 3, 1).on_both_sides(true);
    let plan = plan(&case);
    for step in &plan.steps {
        let Some(node) = acts_on(step.action.kind.as_ref().unwrap()) else { continue };
        if !node.name.starts_with("new-") {
            assert!(node.patroni.is_some(), "{}", step.id);
            continue;
        }
        let replica = format!("upgrade.hand_over_replica/{}", node.name);
        let before = ancestors(&plan, &step.id);
        let is_hand_over = [replica.as_str(), "upgrade.hand_over"].contains(&step.id.as_str());
        // Nothing goes before what ends an operation, since it may end anywhere.
        let handed_over = is_hand_over
            || step.phase == Phase::Retire
            || before.contains(if node.name == "new-0" { "upgrade.hand_over" } else { replica.as_str() });
        assert_eq!(node.patroni.is_some(), handed_over, "{}", step.id);
    }
    let leader = plan.moving().unwrap().cluster.new_leader.unwrap().node.unwrap();
    assert_eq!(leader.patroni.unwrap().scope, "ledger18");
}

impl Case {
    pub(super) fn on_both_sides(self, patroni: bool) -> Case {
        if patroni { self.under_patroni().handed_to_patroni() } else { self }
    }

    /// The same, where a Patroni makes the seed, too; a move has none.
    fn and_seeded(self, seeded: bool) -> Case {
        let can = self.cluster.new.patroni.is_some() && !self.cluster.is_move();
        if seeded && can { self.seeded_by_patroni() } else { self }
    }

    fn server_databases(&self) -> usize {
        let view = crate::check::View::new(&self.cluster, &self.facts);
        crate::check::replicated(view.leader_server().unwrap()).count()
    }
}

#[test]
fn nothing_is_bound_from_nonsense() {
    let case = case(2, 2, 1);
    let plan = plan(&case);
    let recover = plan.step("convert.recover_to").unwrap();
    let told = |output: Output| BTreeMap::from([("convert.create_slots".to_owned(), output)]);
    let error = bind(&plan, recover, &BTreeMap::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "step convert.recover_to needs what step convert.create_slots found out: it has no output yet; install the same \
         version of pgleap everywhere, cancel, then start again; if it comes back, report it"
    );
    assert!(bind(&plan, recover, &told(Output::default())).is_err());

    let mut slots = output(plan.step("convert.create_slots").unwrap());
    assert!(bind(&plan, recover, &told(slots.clone())).is_ok());
    if let Some(OutputKind::Slots(found)) = &mut slots.kind {
        found.slots[0].lsn = 0;
    }
    let error = bind(&plan, recover, &told(slots.clone())).unwrap_err().to_string();
    assert!(error.contains("no position of slot pgleap_0123ab_16400 in database \"app\""), "{error}");
    if let Some(OutputKind::Slots(found)) = &mut slots.kind {
        found.slots.remove(0);
    }
    assert!(bind(&plan, recover, &told(slots)).is_err());
}

#[test]
fn the_seed_comes_from_a_replica_when_there_is_one() {
    let upstream = |case: &Case| match plan(case).step("seed.clone_node/new-0").unwrap().action.kind.clone() {
        Some(Kind::CloneNode(clone)) => clone.upstream.unwrap().host,
        other => panic!("{other:?}"),
    };
    assert_eq!(upstream(&case(1, 1, 0)), "10.1.0.0");
    assert_eq!(upstream(&case(3, 1, 0)), "10.1.0.1");
    // A replica that is down, or does not stream, gives nothing.
    let mut lame = case(3, 1, 0);
    lame.server(1).upstream_host.clear();
    assert_eq!(upstream(&lame), "10.1.0.2");
    // What is adopted stays where it is.
    let mut adopted = case(3, 1, 0);
    adopted.adopt(0, 2);
    assert_eq!(upstream(&adopted), "10.1.0.2");
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

/// The healthy cluster with poolers and a balancer.
fn movable() -> Case {
    let ledger = include_str!("../fleet/golden/ledger.toml");
    let traffic = include_str!("../fleet/golden/traffic.toml");
    let fleet = crate::fleet::parse(&format!("{ledger}{traffic}"), "f").unwrap();
    testing::of(fleet.cluster("ledger").unwrap().clone()).under_patroni().handed_to_patroni()
}

#[test]
fn a_seed_by_patroni_is_made_under_a_name_of_its_own_or_adopted_under_the_one_it_has() {
    let seeds = |plan: &Plan| -> Vec<(String, bool, bool)> {
        let all = plan.steps.iter().filter_map(|step| match step.action.kind.as_ref().unwrap() {
            Kind::SeedByPatroni(a) => Some((a.patroni.clone().unwrap(), a.adopted)),
            Kind::TakeFromPatroni(a) => {
                let patroni = a.patroni.clone().unwrap();
                assert_eq!(a.leader_rest.is_empty(), patroni.leader);
                Some((patroni, a.adopted))
            }
            _ => None,
        });
        all.map(|(patroni, adopted)| (patroni.scope, patroni.leader, adopted)).collect()
    };
    let made = plan(&movable().seeded_by_patroni());
    let expected = |scope: &str, adopted: bool| {
        [true, false, false, true].map(|leader| (scope.to_owned(), leader, adopted)).to_vec()
    };
    assert_eq!(seeds(&made), expected("ledger-seed-0123ab", false));
    assert_eq!(
        seeds(&plan(&movable().seeded_by_patroni().adopted_from_patroni())),
        expected("ledger-seed", true)
    );
    assert_eq!(seeds(&plan(&movable())), []);
    // Each replica streams from the leader, which streams from the old cluster by pgleap's slot there.
    for step in made.steps.iter().filter(|step| kind_of(&step.id) == "seed.seed_by_patroni") {
        let Some(Kind::SeedByPatroni(a)) = &step.action.kind else { panic!("{}", step.id) };
        let (remote, upstream) = (a.remote.as_ref().unwrap(), a.upstream.as_ref().unwrap());
        assert_eq!((remote.host.as_str(), a.slot.as_str()), ("10.0.0.2", "pgleap_0123ab_ledger_new_1"));
        let leads = a.patroni.as_ref().unwrap().leader;
        assert_eq!(upstream.host, if leads { "10.0.0.2" } else { "10.0.0.3" });
        assert_eq!(a.settings["max_wal_senders"], "20");
    }
    let mut seed = made;
    seed.steps.retain(|step| step.phase == Phase::Seed);
    crate::golden::check("coordinator/src/plan/golden/seed.txt", &shown(&seed));
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

/// As it is shown.
fn shown(plan: &Plan) -> String {
    let mut text = String::new();
    for step in present(plan).steps {
        text.push_str(&format!("{} on {}: {}\n", step.id, step.host, step.title));
        if !step.after.is_empty() {
            text.push_str(&format!("  after {}\n", step.after.join(", ")));
        }
        for line in &step.commands {
            text.push_str(&format!("  $ {line}\n"));
        }
        if !step.waits_for.is_empty() {
            text.push_str(&format!("  waits for {}\n", step.waits_for));
        }
        if !step.undo.is_empty() {
            text.push_str(&format!("  undo: {}\n", step.undo));
        }
    }
    text
}

#[test]
fn the_plan_reads_like_this() {
    crate::golden::check("coordinator/src/plan/golden/ledger.txt", &shown(&plan(&movable())));
}

#[test]
fn a_move_reads_like_this() {
    let cluster = testing::of_a_move(movable().cluster);
    let case = testing::of(cluster).under_patroni();
    crate::golden::check("coordinator/src/plan/golden/move.txt", &shown(&plan(&case)));
}

#[test]
fn the_documentation_is_the_table() {
    let mut text = String::from(
        "# The steps of an operation\n\n\
         Generated from the step table, `coordinator/src/plan/table/`; a test fails when this page is stale\n\
         (`PGLEAP_UPDATE_GOLDEN=1 cargo test -p pgleap-coordinator the_documentation` writes it anew).\n\n\
         Steps start as soon as everything in *follows* is done, so replicas are worked on side by side. An undo takes back\n\
         every started step, the last one first; where nothing is said, the step leaves nothing to take back. `finish` takes back\n\
         only what was needed while there were two sides. A *move* keeps its major: what follows a step that is not in it follows\n\
         what that one would have followed.\n",
    );
    let mut phase = None;
    for row in rows() {
        if phase != Some(row.phase) {
            phase = Some(row.phase);
            text.push_str(&format!(
                "\n## {}\n\n| step | for | runs on | what | follows | may wait for | taken back by | by `finish` too | in a move |\n\
                 | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
                row.phase
            ));
        }
        let each = match row.each {
            Each::Leader => "new leader",
            Each::UnderPatroni => "the old cluster, if Patroni runs it",
            Each::LeaderToPatroni => "new leader, if Patroni is to run it",
            Each::ReplicaToPatroni => "each new replica, if Patroni is to run it",
            Each::LeaderByPatroni => "new leader, if Patroni makes the seed",
            Each::ReplicaByPatroni => "each new replica, if Patroni makes the seed",
            Each::Replica => "each new replica",
            Each::New => "each new node",
            Each::Old => "each old node",
            Each::Pooler => "each pooler",
            Each::Balancer => "each balancer",
        };
        let at = match row.at {
            At::OldLeader => "old leader",
            At::Upstream => "upstream",
            At::NewLeader => "new leader",
            At::Node => each
                .trim_start_matches("each ")
                .trim_end_matches(", if Patroni is to run it")
                .trim_end_matches(", if Patroni makes the seed"),
        };
        let node = match row.each {
            Each::Leader | Each::UnderPatroni | Each::LeaderToPatroni | Each::LeaderByPatroni => "*leader*",
            Each::Replica | Each::ReplicaToPatroni | Each::ReplicaByPatroni => "*replica*",
            Each::New | Each::Old => "*node*",
            Each::Pooler => "*pooler*",
            Each::Balancer => "*balancer*",
        };
        let finish = match row.finish {
            Finish::Keep => "",
            Finish::TakeBack => "yes",
            Finish::TakeBackWhenLeading => "if the new side takes the writes",
            Finish::StopOld | Finish::StopNew => "done by `finish --decommission`",
        };
        let words = |text: &str| {
            text.replace("{node}", node)
                .replace("{upstream}", "*upstream*")
                .replace("{leader}", "*leader*")
                .replace("{old}", "*old leader*")
        };
        let follows: Vec<String> = row
            .after
            .iter()
            .map(|after| match after {
                After::All(phase, name) => format!("every {phase}.{name}"),
                After::Leader(phase, name) | After::Same(phase, name) => format!("{phase}.{name}"),
            })
            .collect();
        text.push_str(&format!(
            "| `{}` | {each} | {at} | {} | {} | {} | {} | {finish} | {} |\n",
            row.name,
            words(row.title),
            follows.join(", "),
            row.waits_for.map(words).unwrap_or_default(),
            row.undo.unwrap_or_default(),
            if row.in_moves { "yes" } else { "" },
        ));
    }
    text.push_str(
        "
*leader* is the first new node, *replica* each other one. *upstream* is the old node that the new leader streams
\
         from: a replica, or the *old leader* when it has none.
",
    );
    crate::golden::check("docs/steps.md", &text);
}
