//! Enough WAL senders are free for subscriptions, base backups and standbys.

use super::{Check, Problem, Verdict, View, databases, number};
use crate::check::OldView;

pub(super) const CHECK: Check = Check {
    name: "senders",
    why: "Each subscription holds a WAL sender of the old leader for good; a base backup takes two of its upstream.",
    run,
};

/// pg_basebackup: one for the files, one for the WAL; afterwards the standby takes one of them.
const BASE_BACKUP: i64 = 2;

fn run(view: &View<'_>) -> Verdict {
    let (leader, upstream) = (view.leader()?, view.upstream()?);
    let logical = databases(view)?.len() as i64;
    let mut problems = Vec::new();
    // Base backup and subscriptions are not there at the same time.
    let same = upstream.spec == leader.spec;
    problems.extend(free(leader, if same { logical.max(BASE_BACKUP) } else { logical }));
    if !same {
        problems.extend(free(upstream, BASE_BACKUP));
    }
    let replicas = view.new.len() as i64 - 1;
    let most = number(view.leader_server()?, "max_wal_senders")?;
    if replicas * BASE_BACKUP > most {
        problems.push(Problem::error(
            format!("cluster {}", view.cluster.name),
            format!(
                "max_wal_senders = {most} is too few to clone {replicas} new replicas from the new leader"
            ),
            "raise max_wal_senders on the old nodes (needs a restart)",
        ));
    }
    Some(problems)
}

fn free(node: &OldView<'_>, needed: i64) -> Option<Problem> {
    let server = node.server()?;
    let most = number(server, "max_wal_senders")?;
    let free = most - i64::from(server.senders);
    (free < needed).then(|| {
        Problem::error(
            format!("node {} on {}", node.spec.name, node.spec.host),
            format!("{needed} WAL senders are needed, {free} of max_wal_senders = {most} are free"),
            "raise max_wal_senders (needs a restart), on replicas first",
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn too_few() {
        let mut case = healthy();
        case.set(0, "max_wal_senders", "2");
        case.expect(
            "senders",
            Error,
            "node ledger-old-1 on db1: 2 WAL senders are needed, 1 of max_wal_senders = 2",
        );

        let mut case = healthy();
        case.set(1, "max_wal_senders", "2");
        case.expect("senders", Error, "node ledger-old-2 on db2");
    }
}
