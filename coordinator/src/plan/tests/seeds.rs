//! From where the new nodes come, and who runs them: clones, what is adopted, and the Patroni of either side.

use super::*;

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
