//! Tablespaces can be copied to the new hosts.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "tablespaces",
    why: "A base backup writes each tablespace to its mapped directory, or to the same path as on the old node.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let (leader, server) = (view.leader()?, view.leader_server()?);
    let mut problems = Vec::new();
    for tablespace in &server.tablespaces {
        let location = &tablespace.location;
        let subject = format!("tablespace {} at {location}", tablespace.name);
        if location.starts_with(&format!("{}/", leader.spec.data_dir)) {
            problems.push(Problem::error(
                subject,
                "it lies inside the data directory, where a base backup would copy it twice and pg_upgrade warns",
                "move its tables to a tablespace outside, and drop it",
            ));
            continue;
        }
        for node in view.new.iter().filter(|node| node.seed_server().is_none()) {
            let mapped = node.spec.tablespaces.iter().any(|map| map.from == *location);
            if mapped {
                continue;
            }
            let shared = view.old.iter().any(|old| old.spec.host == node.spec.host)
                || view.new.iter().any(|other| other.spec != node.spec && other.spec.host == node.spec.host);
            let cure = format!(
                "add tablespaces = [{{ from = \"{location}\", to = ... }}] to node {}",
                node.spec.name
            );
            problems.push(if shared {
                Problem::error(
                    subject.clone(),
                    format!(
                        "host {} has another node of this cluster, which uses the same directory",
                        node.spec.host
                    ),
                    cure,
                )
            } else {
                Problem::note(
                    subject.clone(),
                    format!("it will be at the same path on {}, which was not checked", node.spec.host),
                    format!("{cure} to have the directory checked, also for the same path"),
                )
            });
        }
    }
    for node in &view.new {
        for map in &node.spec.tablespaces {
            // A mapping for a tablespace that is not there yet does no harm, but is mostly a slip.
            if !server.tablespaces.is_empty() && !server.tablespaces.iter().any(|t| t.location == map.from) {
                problems.push(Problem::warning(
                    format!("node {} on {}", node.spec.name, node.spec.host),
                    format!("it maps {}, where the old cluster has no tablespace", map.from),
                    "correct `from`: SELECT pg_tablespace_location(oid) FROM pg_tablespace",
                ));
            }
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::{Case, healthy};
    use pgleap_proto::agent::TablespaceFacts;
    use pgleap_proto::fleet::finding::Severity::{Error, Note, Warning};

    fn with(location: &str) -> Case {
        let mut case = healthy();
        let fast =
            TablespaceFacts { name: "fast".into(), oid: 16_500, location: location.into(), size_bytes: 1 };
        case.server(0).tablespaces.push(fast);
        case
    }

    #[test]
    fn mapped_ones_are_fine() {
        with("/srv/fast").expect_none("tablespaces");
    }

    #[test]
    fn inside_the_data_directory() {
        let mut case = with("/var/lib/postgresql/15/ledger/fast");
        case.cluster.new.nodes.iter_mut().for_each(|node| node.tablespaces.clear());
        case.expect("tablespaces", Error, "inside the data directory");
    }

    #[test]
    fn unmapped_ones() {
        let mut case = with("/srv/fast");
        case.cluster.new.nodes[0].tablespaces.clear();
        case.expect("tablespaces", Note, "same path on db3");
        case.cluster.new.nodes[0].host = "db1".into();
        let findings = case.findings("tablespaces");
        assert!(
            findings.iter().any(|f| f.severity() == Error && f.message.contains("host db1")),
            "{findings:?}"
        );
    }

    #[test]
    fn mapped_from_nowhere() {
        let mut case = with("/srv/fast");
        case.cluster.new.nodes[1].tablespaces[0].from = "/srv/fats".into();
        let findings = case.findings("tablespaces");
        assert!(
            findings.iter().any(|f| f.severity() == Warning && f.message.contains("/srv/fats")),
            "{findings:?}"
        );
    }
}
