//! Nothing of an earlier operation is left on the old cluster.

use super::{Check, Problem, Verdict, View, few};

pub(super) const CHECK: Check = Check {
    name: "leftovers",
    why: "A forgotten slot keeps all WAL until the disk is full, and a name that is taken stops the upgrade half way.",
    run,
};

const PREFIX: &str = "pgleap_";

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let ours = |name: &&String| name.starts_with(PREFIX);
    let mut problems = Vec::new();
    for node in &view.old {
        let slots = node.server().into_iter().flat_map(|server| &server.slots).map(|slot| &slot.name);
        let slots: Vec<&String> = slots.filter(ours).collect();
        if !slots.is_empty() {
            problems.push(Problem::error(
                format!("node {} on {}", node.spec.name, node.spec.host),
                format!("replication slots of an earlier operation: {}", few(&slots)),
                "cancel that operation, or SELECT pg_drop_replication_slot(...) for each",
            ));
        }
    }
    for db in &server.databases {
        for (what, drop, names) in [
            ("publications", "DROP PUBLICATION", &db.publications),
            ("subscriptions", "DROP SUBSCRIPTION", &db.subscriptions),
        ] {
            let found: Vec<&String> = names.iter().filter(ours).collect();
            if !found.is_empty() {
                problems.push(Problem::error(
                    format!("database \"{}\"", db.name),
                    format!("{what} of an earlier operation: {}", few(&found)),
                    format!("cancel that operation, or {drop} each"),
                ));
            }
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::SlotFacts;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn slots_publications_subscriptions() {
        let mut case = healthy();
        case.server(1).slots.push(SlotFacts { name: "pgleap_aaaaaa_n1".into(), ..SlotFacts::default() });
        case.expect(
            "leftovers",
            Error,
            "node ledger-old-2 on db2: replication slots of an earlier operation: pgleap_aaaaaa_n1",
        );

        let mut case = healthy();
        case.database("app").publications.push("pgleap_aaaaaa".into());
        case.expect("leftovers", Error, "DROP PUBLICATION");

        let mut case = healthy();
        case.database("app").subscriptions.push("pgleap_aaaaaa".into());
        case.expect("leftovers", Error, "DROP SUBSCRIPTION");
    }
}
