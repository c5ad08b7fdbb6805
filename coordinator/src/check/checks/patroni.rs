//! Patroni runs the old cluster exactly where the fleet file says so, and says the same of its members as their servers do.

use super::{Check, Problem, Verdict, View, without_patroni};
use crate::check::OldView;

pub(super) const CHECK: Check = Check {
    name: "patroni",
    why: "Patroni drops slots that it does not know and writes over fences, unless pgleap can tell it what to leave alone.",
    run,
};

/// REST API and dynamic configuration are as pgleap reads them from here on.
const OLDEST: u32 = 3;

fn run(view: &View<'_>) -> Verdict {
    let mut problems = Vec::new();
    for node in &view.old {
        match &view.cluster.old.patroni {
            None => problems.extend(undeclared(node)),
            Some(patroni) => problems.extend(declared(node, &patroni.scope)?),
        }
    }
    without_patroni(view).map(|_| problems)
}

fn subject(node: &OldView<'_>) -> String {
    format!("node {} on {}", node.spec.name, node.spec.host)
}

fn undeclared(node: &OldView<'_>) -> Option<Problem> {
    let found = !node.server()?.patroni_sessions.is_empty();
    found.then(|| {
        Problem::error(
            subject(node),
            "Patroni is connected to it, but the fleet file does not say that Patroni runs this cluster",
            "add [cluster.old.patroni] with its scope, and rest to each old node; `pgleap fleet import` writes them",
        )
    })
}

fn declared(node: &OldView<'_>, scope: &str) -> Option<Vec<Problem>> {
    let patroni = node.facts?.patroni.as_ref()?;
    let wrong = |message: String, cure: &str| Some(vec![Problem::error(subject(node), message, cure)]);
    if !patroni.error.is_empty() {
        return wrong(
            format!("its Patroni cannot be asked: {}", patroni.error),
            "correct rest in the fleet file, or give the agent what the REST API wants ([[patroni]] in agent.toml)",
        );
    }
    if patroni.scope != scope {
        return wrong(
            format!("its REST API is of cluster \"{}\", not of \"{scope}\"", patroni.scope),
            "correct scope or rest in the fleet file",
        );
    }
    let major = patroni.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < OLDEST) {
        return wrong(
            format!("it is run by Patroni {}, and pgleap knows {OLDEST}.0 and later", patroni.version),
            "upgrade Patroni, member by member",
        );
    }
    let leads = matches!(patroni.role.as_str(), "primary" | "master" | "leader");
    let (is_leader, other) = match node.server() {
        Some(server) => (!server.in_recovery, server.in_recovery == leads),
        None => (false, false),
    };
    if other {
        let is = if is_leader { "takes writes" } else { "is in recovery" };
        return wrong(
            format!(
                "its REST API says {}, but the server {is}: it is the one of another member",
                patroni.role
            ),
            "correct rest in the fleet file",
        );
    }
    Some(Vec::new())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::PatroniSession;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn nobody_and_a_healthy_one() {
        healthy().expect_none("patroni");
        healthy().under_patroni().expect_none("patroni");
    }

    #[test]
    fn one_that_the_file_does_not_name() {
        let mut case = healthy();
        case.server(1).patroni_sessions =
            vec![PatroniSession { user: "postgres".into(), ..Default::default() }];
        case.expect("patroni", Error, "node ledger-old-2 on db2: Patroni is connected to it");
    }

    #[test]
    fn one_that_does_not_answer_or_is_another() {
        let mut case = healthy().under_patroni();
        case.patroni(1).error = "connection refused".into();
        case.expect("patroni", Error, "cannot be asked: connection refused");
        let mut case = healthy().under_patroni();
        case.patroni(0).scope = "other".into();
        case.expect("patroni", Error, "of cluster \"other\"");
        let mut case = healthy().under_patroni();
        case.patroni(0).version = "2.1.7".into();
        case.expect("patroni", Error, "run by Patroni 2.1.7");
        let mut case = healthy().under_patroni();
        case.patroni(1).role = "primary".into();
        case.expect("patroni", Error, "says primary, but the server is in recovery");
        let mut case = healthy().under_patroni();
        case.patroni(0).role = "master".into();
        case.expect_none("patroni");
    }
}
