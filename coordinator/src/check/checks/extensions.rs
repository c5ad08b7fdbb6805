//! Every installed extension is there for both majors on every new host.

use std::collections::BTreeMap;

use super::{Check, Problem, Verdict, View, faces, few};

pub(super) const CHECK: Check = Check {
    name: "extensions",
    why: "The standby needs an extension's library to work as a server, and pg_upgrade refuses when the new binaries lack it.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mut used: BTreeMap<&str, &str> = BTreeMap::new();
    for db in &server.databases {
        used.extend(db.extensions.iter().map(|extension| (extension.name.as_str(), db.name.as_str())));
    }
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.new {
        for (facts, _) in faces(view, node) {
            // An empty list means that the directory could not be read; every installation has plpgsql.
            let Some(binaries) = facts.binaries.as_ref().filter(|b| !b.extensions_available.is_empty())
            else {
                continue;
            };
            seen = true;
            let there = |name: &str| binaries.extensions_available.iter().any(|available| available == name);
            let missing: Vec<String> = used
                .iter()
                .filter(|(name, _)| !there(name))
                .map(|(name, database)| format!("{name} (database \"{database}\")"))
                .collect();
            if !missing.is_empty() {
                problems.push(Problem::error(
                    format!("{} on host {}", binaries.bin_dir, node.spec.host),
                    format!(
                        "extensions that are installed in the old cluster are not available: {}",
                        few(&missing)
                    ),
                    format!(
                        "install their packages for PostgreSQL {}, or DROP EXTENSION where unused",
                        binaries.version_num / 10_000
                    ),
                ));
            }
        }
    }
    (seen || used.is_empty()).then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::ExtensionFacts;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn a_missing_one_is_named_with_its_database() {
        let mut case = healthy();
        case.database("app")
            .extensions
            .push(ExtensionFacts { name: "postgis".into(), ..ExtensionFacts::default() });
        for node in 0..2 {
            case.seed(node).binaries.as_mut().unwrap().extensions_available.push("postgis".into());
        }
        case.node(0).binaries.as_mut().unwrap().extensions_available.push("postgis".into());
        case.expect("extensions", Error, "/usr/lib/postgresql/18/bin on host db4: extensions that are installed in the old cluster are not available: postgis (database \"app\")");
    }
}
