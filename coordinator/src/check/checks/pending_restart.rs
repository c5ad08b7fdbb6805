//! No setting waits for a restart.

use super::{Check, Problem, Verdict, View, few};

pub(super) const CHECK: Check = Check {
    name: "pending-restart",
    why: "New nodes start from the configuration files, so they would run with settings that the old ones do not use yet.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    view.leader()?;
    let mut problems = Vec::new();
    for node in &view.old {
        let Some(server) = node.server().filter(|server| !server.pending_restart.is_empty()) else {
            continue;
        };
        problems.push(Problem::warning(
            format!("node {} on {}", node.spec.name, node.spec.host),
            format!("settings wait for a restart: {}", few(&server.pending_restart)),
            "restart the node, or take the changes back, before the upgrade",
        ));
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn named_with_the_settings() {
        let mut case = healthy();
        case.server(1).pending_restart = vec!["shared_buffers".into()];
        case.expect(
            "pending-restart",
            Warning,
            "node ledger-old-2 on db2: settings wait for a restart: shared_buffers",
        );
    }
}
