//! Patroni can be made to write no client authentication file over: its rules come from the dynamic configuration, or from the file itself.

use super::{Check, Problem, Verdict, View, without_patroni};

pub(super) const CHECK: Check = Check {
    name: "patroni-rules",
    why: "A fence lies in the client authentication file; Patroni writes that anew at every reload when postgresql.pg_hba is set.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    if view.cluster.old.patroni.is_none() {
        return without_patroni(view);
    }
    let facts: Vec<_> =
        view.old.iter().filter_map(|node| Some((node, node.facts?.patroni.as_ref()?))).collect();
    if facts.iter().all(|(_, patroni)| patroni.hba.is_empty()) {
        return None;
    }
    let local = facts.into_iter().filter(|(_, patroni)| patroni.hba == "local");
    Some(
        local
            .map(|(node, _)| {
                Problem::error(
                    format!("node {} on {}", node.spec.name, node.spec.host),
                    "postgresql.pg_hba stands in the member's own configuration file, where pgleap cannot take it out for the \
                     time of the operation",
                    "move it to the dynamic configuration (patronictl edit-config) on every member and reload Patroni; if no \
                     configuration has it any more, remove Patroni's two comment lines from the head of pg_hba.conf",
                )
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn only_rules_of_a_members_own_file_are_refused() {
        healthy().expect_none("patroni-rules");
        let mut case = healthy().under_patroni();
        for fine in ["file", "dynamic"] {
            case.patroni(1).hba = fine.into();
            case.expect_none("patroni-rules");
        }
        case.patroni(1).hba = "local".into();
        case.expect("patroni-rules", Error, "node ledger-old-2 on db2: postgresql.pg_hba stands in");
    }
}
