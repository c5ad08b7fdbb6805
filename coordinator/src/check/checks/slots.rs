//! Enough replication slots are free: logical ones on the old leader, physical ones wherever new nodes stream from.

use super::{Check, Problem, Verdict, View, databases, number};
use crate::check::OldView;

pub(super) const CHECK: Check = Check {
    name: "slots",
    why: "Every database needs a logical slot on the old leader, and every new node a physical one on its upstream.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let (leader, upstream) = (view.leader()?, view.upstream()?);
    let logical = databases(view)?.len() as i64;
    let same = upstream.spec == leader.spec;
    let mut problems = Vec::new();
    problems.extend(free(leader, logical + i64::from(same)));
    if !same {
        problems.extend(free(upstream, 1));
    }
    // The new leader's seed inherits the old leader's configuration and holds a slot for each new replica.
    let replicas = view.new.len() as i64 - 1;
    let most = number(view.leader_server()?, "max_replication_slots")?;
    if replicas > most {
        problems.push(Problem::error(
            format!("cluster {}", view.cluster.name),
            format!("max_replication_slots = {most} is too few for {replicas} new replicas"),
            "raise max_replication_slots on the old nodes (needs a restart)",
        ));
    }
    Some(problems)
}

fn free(node: &OldView<'_>, needed: i64) -> Option<Problem> {
    let server = node.server()?;
    let most = number(server, "max_replication_slots")?;
    let free = most - server.slots.len() as i64;
    (free < needed).then(|| {
        Problem::error(
            format!("node {} on {}", node.spec.name, node.spec.host),
            format!(
                "{needed} replication slots are needed, {free} of max_replication_slots = {most} are free"
            ),
            "drop unused slots, or raise max_replication_slots (needs a restart)",
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn logical_slots_of_the_leader() {
        let mut case = healthy();
        case.set(0, "max_replication_slots", "1");
        case.expect("slots", Error, "node ledger-old-1 on db1: 2 replication slots are needed, 1 of");
    }

    #[test]
    fn a_physical_slot_of_the_replica() {
        let mut case = healthy();
        case.set(1, "max_replication_slots", "0");
        case.expect("slots", Error, "node ledger-old-2 on db2: 1 replication slots are needed, 0 of");
    }

    #[test]
    fn without_a_replica_the_leader_holds_both() {
        let mut case = healthy();
        case.cluster.old.nodes.truncate(1);
        case.set(0, "max_replication_slots", "2");
        case.expect("slots", Error, "3 replication slots are needed");
    }
}
