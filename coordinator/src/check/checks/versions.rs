//! Servers and binaries are of the declared majors, and new nodes agree on their minor.

use super::super::releases::shown;
use super::{Check, Problem, Verdict, View, faces};

pub(super) const CHECK: Check = Check {
    name: "versions",
    why: "pg_upgrade works from one major to a newer one, with the binaries of both on every new host; a move keeps its major.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let (old, new) = (view.cluster.old.version, view.cluster.new.version);
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.old {
        let Some(server) = node.server() else { continue };
        seen = true;
        if server.version_num / 10_000 != old {
            problems.push(Problem::error(
                format!("node {} on {}", node.spec.name, node.spec.host),
                format!("it runs PostgreSQL {}, but cluster.old.version is {old}", shown(server.version_num)),
                "correct the version in the fleet file",
            ));
        }
    }
    let mut minors: Vec<(u32, &str)> = Vec::new();
    for node in &view.new {
        for (facts, key) in faces(view, node) {
            let major = if key == "bin_dir" { new } else { old };
            let Some(binaries) = facts.binaries.as_ref() else { continue };
            seen = true;
            if binaries.version_num == 0 {
                continue; // Missing binaries are another check's finding.
            }
            if binaries.version_num / 10_000 != major {
                problems.push(Problem::error(
                    format!("{} on host {}", binaries.bin_dir, node.spec.host),
                    format!("the programs there are of PostgreSQL {}, expected {major}", binaries.version),
                    format!("correct cluster.new.{key}, or install PostgreSQL {major}"),
                ));
            } else if key == "bin_dir" {
                minors.push((binaries.version_num, &node.spec.host));
            }
        }
    }
    if let Some((first, host)) = minors.first()
        && let Some((other, elsewhere)) = minors.iter().find(|(minor, _)| minor != first)
    {
        problems.push(Problem::warning(
            format!("cluster {}", view.cluster.name),
            format!("the new binaries are {} on {host}, but {} on {elsewhere}", shown(*first), shown(*other)),
            "install the same minor on every new host",
        ));
    }
    seen.then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn other_majors_than_declared() {
        let mut case = healthy();
        case.server(0).version_num = 140_024;
        case.expect("versions", Error, "it runs PostgreSQL 14.24");

        let mut case = healthy();
        let binaries = case.node(0).binaries.as_mut().unwrap();
        (binaries.version_num, binaries.version) = (170_011, "17.11".into());
        case.expect("versions", Error, "of PostgreSQL 17.11, expected 18; correct cluster.new.bin_dir");

        let mut case = healthy();
        case.seed(1).binaries.as_mut().unwrap().version_num = 180_006;
        case.expect("versions", Error, "correct cluster.new.old_bin_dir");
    }

    #[test]
    fn new_hosts_with_different_minors() {
        let mut case = healthy();
        case.node(1).binaries.as_mut().unwrap().version_num = 180_004;
        case.expect("versions", Warning, "18.6 on db3, but 18.4 on db4");
    }
}
