//! Both sides run the newest minors this version of pgleap knows of.

use super::super::releases::{newest, shown};
use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "latest-minor",
    why: "Old minors have faults that lose changes: slots invalidated by a checkpoint (fixed 2026-02), parallel apply \
          that skips transactions after a worker fails (16.12, 17.8, 18.2).",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mut problems = Vec::new();
    let mut compare = |subject: String, version: u32| {
        if let Some(latest) = newest(version / 10_000).filter(|latest| version > 0 && version < *latest) {
            // One behind is ordinary: the newest set is weeks old, and distributions take their time.
            if latest - version > 1 {
                problems.push(Problem::note(
                    subject,
                    format!(
                        "PostgreSQL {} is not the newest minor known ({})",
                        shown(version),
                        shown(latest)
                    ),
                    "update it before the upgrade, keeping both sides within one release set",
                ));
            }
        }
    };
    compare(format!("cluster {}", view.cluster.name), server.version_num);
    for node in &view.new {
        if let Some(binaries) = node.node.and_then(|facts| facts.binaries.as_ref()) {
            compare(format!("{} on host {}", binaries.bin_dir, node.spec.host), binaries.version_num);
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Note;

    #[test]
    fn far_behind_is_noted() {
        let mut case = healthy();
        case.server(0).version_num = 150_015;
        case.expect("latest-minor", Note, "15.15 is not the newest minor known (15.20)");
        case.server(0).version_num = 150_099;
        case.expect_none("latest-minor");
    }
}
