//! What the new cluster is to be handed over to: each new node has a Patroni of its own, configured for it, and none of them runs yet.
//!
//! What is wrong within one member's file its agent says, which has read it. What members must not have in common is judged here, and
//! what the dynamic configuration will make of settings: Patroni takes its own small defaults for those that it has none for.

use std::collections::BTreeMap;

use pgleap_proto::agent::PatroniToCome;

use super::{Check, Problem, Verdict, View, number};
use crate::check::NewView;

pub(super) const CHECK: Check = Check {
    name: "patroni-new",
    why: "What is wrong with the new cluster's Patroni shows when it is started, hours later, on a cluster that is upgraded already.",
    run,
};

/// Settings that Patroni takes from the dynamic configuration only, each with what it takes when they are not there (its
/// `ConfigHandler.CMDLINE_OPTIONS`).
const DEFAULTS: [(&str, i64); 6] = [
    ("max_connections", 100),
    ("max_wal_senders", 10),
    ("max_replication_slots", 10),
    ("max_worker_processes", 8),
    ("max_locks_per_transaction", 64),
    ("max_prepared_transactions", 0),
];

fn run(view: &View<'_>) -> Verdict {
    let Some(patroni) = &view.cluster.new.patroni else {
        return view.new.iter().any(|node| node.node.is_some()).then(Vec::new);
    };
    let mut problems = Vec::new();
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for node in &view.new {
        let facts = node.node?.patroni_to_come.as_ref()?;
        let wrong = |message: String, cure: String| Problem::error(subject(node), message, cure);
        problems.extend(facts.complaints.iter().map(|one| wrong(one.what.clone(), one.cure.clone())));
        // One of the seed, which is stopped before, and judged by patroni-seed.
        let seed = node.seed_patroni().is_some_and(|seed| seed.scope == patroni.seed_scope);
        if !facts.running.is_empty() && !seed {
            problems.push(wrong(
                format!(
                    "its Patroni runs already ({}); pgleap starts it when the server has been upgraded",
                    facts.running
                ),
                format!(
                    "stop it, and see that cluster \"{}\" has no keys in the store (patronictl remove {})",
                    patroni.scope, patroni.scope
                ),
            ));
        }
        if let Some(other) = names.insert(&facts.member, &node.spec.name).filter(|_| !facts.member.is_empty())
        {
            problems.push(wrong(
                format!("{} calls the member \"{}\", as node {other} is called", facts.config, facts.member),
                "give each member its own name".to_owned(),
            ));
        }
    }
    let leader = view.new.first()?;
    problems.extend(settings(view, leader, leader.node?.patroni_to_come.as_ref()?));
    Some(problems)
}

fn subject(node: &NewView<'_>) -> String {
    format!("node {} on {}", node.spec.name, node.spec.host)
}

/// The leader's file is the one that makes the dynamic configuration.
fn settings(view: &View<'_>, leader: &NewView<'_>, facts: &PatroniToCome) -> Vec<Problem> {
    // Without a member's name its file could not be read.
    let Some(old) = view.leader_server().filter(|_| !facts.member.is_empty()) else { return Vec::new() };
    let mut problems = Vec::new();
    let found = facts.parameters.get("wal_level").map_or("replica", String::as_str);
    if found != "logical" {
        problems.push(Problem::error(
            subject(leader),
            format!(
                "Patroni would start the new cluster with wal_level = {found}, and no logical slot works then"
            ),
            format!("add wal_level: logical to bootstrap.dcs.postgresql.parameters in {}", facts.config),
        ));
    }
    for (name, default) in DEFAULTS {
        let set = facts.parameters.get(name).map_or(Some(default), |value| value.parse().ok());
        if let (Some(new), Some(before)) = (set, number(old, name))
            && new < before
        {
            let whose = if facts.parameters.contains_key(name) { "" } else { ", its own default" };
            problems.push(Problem::warning(
                subject(leader),
                format!("Patroni would start the new cluster with {name} = {new}{whose}; the old leader has {before}"),
                format!("set {name} in bootstrap.dcs.postgresql.parameters in {}", facts.config),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::Complaint;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn nobody_and_a_healthy_one() {
        healthy().expect_none("patroni-new");
        healthy().handed_to_patroni().expect_none("patroni-new");
    }

    #[test]
    fn what_the_agents_say() {
        let mut case = healthy().handed_to_patroni();
        case.patroni_to_come(1).complaints =
            vec![Complaint { what: "scope is x".into(), cure: "write y".into() }];
        case.expect("patroni-new", Error, "node ledger-new-2 on db4: scope is x; write y");
        let mut case = healthy().handed_to_patroni();
        case.patroni_to_come(0).running = "cluster ledger18".into();
        case.expect("patroni-new", Error, "runs already (cluster ledger18)");
        let mut case = healthy().handed_to_patroni();
        case.patroni_to_come(1).member = case.patroni_to_come(0).member.clone();
        case.expect(
            "patroni-new",
            Error,
            "node ledger-new-2 on db4: /etc/patroni/ledger18.yml calls the member",
        );
    }

    #[test]
    fn what_patroni_would_make_of_the_settings() {
        let mut case = healthy().handed_to_patroni();
        case.patroni_to_come(0).parameters.remove("wal_level");
        case.expect("patroni-new", Error, "wal_level = replica");
        // Another member's file makes no configuration.
        let mut case = healthy().handed_to_patroni();
        case.patroni_to_come(1).parameters.clear();
        case.expect_none("patroni-new");
        let mut case = healthy().handed_to_patroni();
        case.patroni_to_come(0).parameters.remove("max_replication_slots");
        case.expect(
            "patroni-new",
            Warning,
            "max_replication_slots = 10, its own default; the old leader has 20",
        );
        let mut case = healthy().handed_to_patroni();
        case.patroni_to_come(0).parameters.insert("max_wal_senders".into(), "12".into());
        case.expect("patroni-new", Warning, "max_wal_senders = 12; the old leader has 20");
    }
}
