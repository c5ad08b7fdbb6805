//! The programs that the steps start are there.

use super::{Check, Problem, Verdict, View, faces, few};

pub(super) const CHECK: Check =
    Check { name: "binaries", why: "A program that is missing would stop the upgrade half way.", run };

/// Old nodes are only looked at and asked; these suffice for that.
const OF_OLD_NODES: [&str; 2] = ["pg_controldata", "postgres"];

fn run(view: &View<'_>) -> Verdict {
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.old {
        let Some(binaries) = node.facts.and_then(|facts| facts.binaries.as_ref()) else { continue };
        seen = true;
        let needed = |name: &&String| OF_OLD_NODES.iter().any(|n| name.split(' ').next() == Some(n));
        let missing: Vec<&String> = binaries.missing.iter().filter(needed).collect();
        problems.extend(missing_in(&binaries.bin_dir, &node.spec.host, &missing, "cluster.old.bin_dir"));
    }
    for node in &view.new {
        for (facts, key) in faces(view, node) {
            let Some(binaries) = facts.binaries.as_ref() else { continue };
            seen = true;
            let missing: Vec<&String> = binaries.missing.iter().collect();
            problems.extend(missing_in(
                &binaries.bin_dir,
                &node.spec.host,
                &missing,
                &format!("cluster.new.{key}"),
            ));
        }
        let rsync = view.host(&node.spec.host).map(|host| host.rsync_version.is_empty());
        if rsync == Some(true) && view.new.len() > 1 && !view.cluster.is_move() {
            problems.push(Problem::error(
                format!("host {}", node.spec.host),
                "rsync is not installed, and replicas are relinked with it",
                "install the package rsync",
            ));
        }
    }
    seen.then_some(problems)
}

fn missing_in(bin_dir: &str, host: &str, missing: &[&String], key: &str) -> Option<Problem> {
    (!missing.is_empty()).then(|| {
        Problem::error(
            format!("{bin_dir} on host {host}"),
            format!("missing or not executable: {}", few(missing)),
            format!("install PostgreSQL's server package there, or correct {key}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn a_missing_program() {
        let mut case = healthy();
        case.node(0).binaries.as_mut().unwrap().missing = vec!["pg_upgrade".into()];
        case.expect(
            "binaries",
            Error,
            "/usr/lib/postgresql/18/bin on host db3: missing or not executable: pg_upgrade",
        );
    }

    #[test]
    fn old_nodes_need_little() {
        let mut case = healthy();
        case.old(0).binaries.as_mut().unwrap().missing = vec!["pg_upgrade".into(), "pg_basebackup".into()];
        case.expect_none("binaries");
        case.old(0).binaries.as_mut().unwrap().missing = vec!["postgres (it crashed)".into()];
        case.expect("binaries", Error, "cluster.old.bin_dir");
    }

    #[test]
    fn rsync_only_for_replicas() {
        let mut case = healthy();
        case.host("db4").rsync_version.clear();
        case.expect("binaries", Error, "install the package rsync");
        case.cluster.new.nodes.truncate(1);
        case.host("db3").rsync_version.clear();
        case.expect_none("binaries");
    }
}
