//! New nodes' names are not used by standbys that are there already.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "application-names",
    why: "A new standby announces itself by its node's name; two of one name cannot be told apart in pg_stat_replication.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    view.leader()?;
    let mut problems = Vec::new();
    for old in &view.old {
        for standby in old.server().into_iter().flat_map(|server| &server.standbys) {
            let clash = view.new.iter().find(|new| {
                let adopted = new.seed_server().is_some();
                new.spec.name == standby.application_name && !adopted
            });
            problems.extend(clash.map(|new| {
                Problem::warning(
                    format!("node {} on {}", old.spec.name, old.spec.host),
                    format!("a standby at {} already calls itself {}", standby.client_addr, new.spec.name),
                    "give the new node another name, or that standby another application_name",
                )
            }));
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn a_namesake() {
        let mut case = healthy();
        case.server(0).standbys[0].application_name = "ledger-new-1".into();
        case.expect("application-names", Warning, "a standby at 10.0.0.2 already calls itself ledger-new-1");
        case.adopt(0, 0);
        case.expect_none("application-names");
    }
}
