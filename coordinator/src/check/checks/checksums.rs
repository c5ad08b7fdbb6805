//! Data checksums agree on all nodes.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "checksums",
    why: "pg_upgrade demands the same checksum setting on both sides; the new cluster takes that of the node it is copied from.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let leader = view.leader()?.facts?.control.as_ref()?;
    let shown = |version: u32| if version == 0 { "off" } else { "on" };
    let old = view.old.iter().filter_map(|n| Some((&n.spec.name, n.facts?.control.as_ref()?)));
    let seeds = view.new.iter().filter_map(|n| Some((&n.spec.name, n.seed?.control.as_ref()?)));
    let mut problems = Vec::new();
    for (name, control) in old.chain(seeds) {
        if control.data_checksum_version != leader.data_checksum_version {
            problems.push(Problem::error(
                format!("node {name}"),
                format!(
                    "its data checksums are {}, the old leader's are {}",
                    shown(control.data_checksum_version),
                    shown(leader.data_checksum_version)
                ),
                "stop the node and run pg_checksums on it, or clone it again",
            ));
        }
    }
    if leader.data_checksum_version == 0 {
        problems.push(Problem::note(
            format!("cluster {}", view.cluster.name),
            "data checksums are off, and stay off in the new cluster",
            "enable them on both clusters before, or on the new one after the upgrade, with pg_checksums",
        ));
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Note};

    #[test]
    fn one_node_differs() {
        let mut case = healthy();
        case.old(1).control.as_mut().unwrap().data_checksum_version = 0;
        case.expect(
            "checksums",
            Error,
            "node ledger-old-2: its data checksums are off, the old leader's are on",
        );
    }

    #[test]
    fn off_everywhere() {
        let mut case = healthy();
        for node in 0..2 {
            case.old(node).control.as_mut().unwrap().data_checksum_version = 0;
        }
        case.expect("checksums", Note, "stay off");
    }
}
