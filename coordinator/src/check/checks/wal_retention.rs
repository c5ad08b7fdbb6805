//! Nothing takes WAL away from a slot.

use super::{Check, Problem, Verdict, View, number};

pub(super) const CHECK: Check = Check {
    name: "wal-retention",
    why: "A slot that loses its WAL or is invalidated takes the upgrade back to its beginning.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let upstream = view.upstream()?;
    let leader = view.leader()?;
    let mut problems = Vec::new();
    for node in &view.old {
        if node.spec != leader.spec && node.spec != upstream.spec {
            continue;
        }
        let Some(server) = node.server() else { continue };
        let subject = format!("node {} on {}", node.spec.name, node.spec.host);
        // In MB; -1 is no limit.
        if let Some(limit) = number(server, "max_slot_wal_keep_size").filter(|limit| *limit >= 0) {
            problems.push(Problem::warning(
                subject.clone(),
                format!("max_slot_wal_keep_size = {limit} MB invalidates slots that fall further behind"),
                "set it to -1, or to more than the WAL written while the new cluster is upgraded; it needs only a reload",
            ));
        }
        if let Some(limit) = number(server, "idle_replication_slot_timeout").filter(|limit| *limit > 0) {
            problems.push(Problem::warning(
                subject,
                format!("idle_replication_slot_timeout = {limit} s invalidates slots that nobody reads for so long"),
                "set it to 0 until the upgrade is finished; it needs only a reload",
            ));
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn limits_are_warned_of() {
        let mut case = healthy();
        case.set(0, "max_slot_wal_keep_size", "10240");
        case.expect("wal-retention", Warning, "max_slot_wal_keep_size = 10240 MB");

        let mut case = healthy();
        case.set(1, "idle_replication_slot_timeout", "3600");
        case.expect("wal-retention", Warning, "node ledger-old-2 on db2");
    }
}
