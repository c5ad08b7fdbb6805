//! The old leader can follow the new one, once that takes the writes, and the new one has room for it.

use super::{Check, Problem, Verdict, View, databases, number};

pub(super) const CHECK: Check = Check {
    name: "way-back",
    why: "After the switchover the old cluster follows the new one, database by database, so that it can take the writes back.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let (leader, server) = (view.leader()?, view.leader_server()?);
    let needed = databases(view)?.len() as i64;
    let replicas = view.new.len() as i64 - 1;
    let old = format!("node {} on {}", leader.spec.name, leader.spec.host);
    // The new cluster is configured in the image of the old one.
    let new = format!("cluster {}", view.cluster.name);
    let origins = i64::from(server.replication_origins);
    let rules = [
        (&old, "max_logical_replication_workers", needed, "subscriptions, each with a worker"),
        // The launcher is one, too.
        (&old, "max_worker_processes", needed + 1, "background workers of subscriptions"),
        // Until 18 it bounds origins as well (max_active_replication_origins since).
        (&old, "max_replication_slots", needed + origins, "replication origins"),
        (&new, "max_replication_slots", needed + replicas, "slots of the new leader"),
        (&new, "max_wal_senders", needed + replicas, "WAL senders of the new leader"),
    ];
    let too_few = rules.into_iter().filter_map(|(subject, setting, needed, what)| {
        let most = number(server, setting)?;
        (most < needed).then(|| {
            Problem::error(
                subject.clone(),
                format!("{setting} = {most} is too few for the way back: {needed} are needed ({what})"),
                format!("raise {setting} on the old nodes (needs a restart)"),
            )
        })
    });
    Some(too_few.collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn workers_origins_slots_and_senders_are_counted() {
        healthy().expect_none("way-back");
        let mut case = healthy();
        case.set(0, "max_logical_replication_workers", "1");
        case.expect(
            "way-back",
            Error,
            "node ledger-old-1 on db1: max_logical_replication_workers = 1 is too few for the way back: 2 are needed",
        );
        let mut case = healthy();
        case.set(0, "max_worker_processes", "2");
        case.expect("way-back", Error, "max_worker_processes = 2 is too few for the way back: 3 are needed");
        let mut case = healthy();
        case.server(0).replication_origins = 19;
        case.expect(
            "way-back",
            Error,
            "max_replication_slots = 20 is too few for the way back: 21 are needed",
        );
        let mut case = healthy();
        case.set(0, "max_wal_senders", "2");
        case.expect("way-back", Error, "cluster ledger: max_wal_senders = 2 is too few");
    }
}
