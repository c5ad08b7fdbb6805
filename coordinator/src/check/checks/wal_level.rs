//! The old leader writes what logical decoding needs.

use super::{Check, Problem, Verdict, View, setting};

pub(super) const CHECK: Check = Check {
    name: "wal-level",
    why: "Logical slots need wal_level = logical, which takes a restart of the primary to change.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let (leader, server) = (view.leader()?, view.leader_server()?);
    let level = setting(server, "wal_level");
    let found = (level != "logical").then(|| {
        Problem::error(
            format!("node {} on {}", leader.spec.name, leader.spec.host),
            format!("wal_level is {level}"),
            "ALTER SYSTEM SET wal_level = 'logical' on every old node (under Patroni, which gives it on the command line: \
             patronictl edit-config), then restart the primary at a quiet moment (replicas before it), or switch over to a restarted replica",
        )
    });
    Some(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn replica_is_not_enough() {
        let mut case = healthy();
        case.set(0, "wal_level", "replica");
        case.expect("wal-level", Error, "wal_level is replica; ALTER SYSTEM");
    }
}
