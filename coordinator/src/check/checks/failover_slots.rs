//! Whether the operation would survive a failover of the old cluster. From 17 on standbys keep copies of the slots, if they are set up
//! for it; before, a failover means to start again.

use pgleap_proto::agent::ServerFacts;

use super::{Check, Problem, Verdict, View, setting};
use crate::check::OldView;
use crate::plan::FAILOVER_SLOTS;

pub(super) const CHECK: Check = Check {
    name: "failover-slots",
    why: "When the old cluster fails over, the operation goes on only if the promoted node has copies of the logical slots and nothing \
          that the new cluster has applied is missing there.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let (leader, server) = (view.leader()?, view.leader_server()?);
    let standbys: Vec<(&OldView<'_>, &ServerFacts)> = view
        .old
        .iter()
        .filter(|node| node.spec != leader.spec)
        .filter_map(|node| Some((node, node.server().filter(|server| server.in_recovery)?)))
        .collect();
    if standbys.is_empty() {
        return Some(Vec::new());
    }
    if view.cluster.old.version < FAILOVER_SLOTS {
        return Some(vec![Problem::note(
            format!("cluster {}", view.cluster.name),
            format!(
                "before PostgreSQL {FAILOVER_SLOTS} logical slots do not move with a failover: after one of the old cluster the operation \
                 has to be cancelled and started again"
            ),
            "avoid planned switchovers of the old cluster while the operation lasts",
        )]);
    }
    let mut problems: Vec<Problem> =
        standbys.iter().flat_map(|(node, server)| standby(node, server)).collect();
    problems.extend(ahead(leader, server, &standbys));
    Some(problems)
}

/// What keeps a standby from copying slots (`slotsync.c`, `ValidateSlotSyncParams`).
fn standby(node: &OldView<'_>, server: &ServerFacts) -> Option<Problem> {
    let mut missing = Vec::new();
    if setting(server, "sync_replication_slots") != "on" {
        missing.push("sync_replication_slots is off");
    }
    if setting(server, "hot_standby_feedback") != "on" {
        missing.push("hot_standby_feedback is off");
    }
    if setting(server, "primary_slot_name").is_empty() {
        missing.push("primary_slot_name is empty");
    }
    if !server.upstream_names_database {
        missing.push("primary_conninfo names no dbname");
    }
    (!missing.is_empty()).then(|| {
        Problem::warning(
            subject(node),
            format!(
                "it keeps no copies of the slots ({}): should it be promoted, the operation has to be started again",
                missing.join(", ")
            ),
            "set them (all can be reloaded; under Patroni the first two in the dynamic configuration, it does the others), or accept it",
        )
    })
}

/// Without the standbys' slots the new cluster may be sent what a standby lacks, and is ahead of it when that is promoted.
fn ahead(
    leader: &OldView<'_>,
    server: &ServerFacts,
    standbys: &[(&OldView<'_>, &ServerFacts)],
) -> Option<Problem> {
    let named = setting(server, "synchronized_standby_slots");
    let named: Vec<&str> = named.split(',').map(|name| name.trim().trim_matches('"')).collect();
    let slot = |server: &ServerFacts| setting(server, "primary_slot_name").to_owned();
    let missing: Vec<String> = standbys
        .iter()
        .map(|(_, server)| slot(server))
        .filter(|slot| !slot.is_empty() && !named.contains(&slot.as_str()))
        .collect();
    (!missing.is_empty()).then(|| {
        Problem::note(
            subject(leader),
            format!(
                "synchronized_standby_slots does not name {}: the new cluster may be ahead of a node that is promoted when its leader is \
                 lost, and then the operation has to be started again",
                missing.join(", ")
            ),
            "name the slots of the standbys that may lead, on each node those of the others (under Patroni in each member's own file); while \
             one of them is away, the new cluster waits for it",
        )
    })
}

fn subject(node: &OldView<'_>) -> String {
    format!("node {} on {}", node.spec.name, node.spec.host)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::{Case, healthy};
    use pgleap_proto::fleet::finding::Severity::{Note, Warning};

    /// Of 17, with everything that a failover wants.
    fn ready() -> Case {
        let mut case = healthy();
        case.cluster.old.version = 17;
        for (name, value) in [
            ("sync_replication_slots", "on"),
            ("hot_standby_feedback", "on"),
            ("primary_slot_name", "ledger_old_2"),
        ] {
            case.set(1, name, value);
        }
        case.set(0, "synchronized_standby_slots", "\"ledger_old_2\", other");
        case.server(1).upstream_names_database = true;
        case
    }

    #[test]
    fn each_thing_that_a_copy_needs_is_told() {
        ready().expect_none("failover-slots");
        for (name, told) in [
            ("sync_replication_slots", "sync_replication_slots is off"),
            ("hot_standby_feedback", "hot_standby_feedback is off"),
            ("primary_slot_name", "primary_slot_name is empty"),
        ] {
            let mut case = ready();
            case.set(1, name, if name == "primary_slot_name" { "" } else { "off" });
            case.expect(
                "failover-slots",
                Warning,
                &format!("node ledger-old-2 on db2: it keeps no copies of the slots ({told})"),
            );
        }
        let mut case = ready();
        case.server(1).upstream_names_database = false;
        case.expect("failover-slots", Warning, "primary_conninfo names no dbname");
    }

    #[test]
    fn a_leader_that_does_not_wait_for_its_standbys_is_told() {
        let mut case = ready();
        case.set(0, "synchronized_standby_slots", "other");
        case.expect("failover-slots", Note, "does not name ledger_old_2");
    }

    #[test]
    fn before_17_it_is_told_that_there_is_no_such_thing() {
        healthy().expect("failover-slots", Note, "before PostgreSQL 17 logical slots do not move");
        let mut case = healthy();
        case.cluster.old.nodes.truncate(1);
        case.expect_none("failover-slots");
    }
}
