//! Exactly one old node is the leader, and every other one is a healthy physical standby of it.

use super::{Check, Problem, Verdict, View};
use crate::check::OldView;

pub(super) const CHECK: Check = Check {
    name: "roles",
    why: "Publications and slots go to the one leader, and the new cluster is copied from what really is its standby.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let mut problems = Vec::new();
    let known: Vec<_> = view.old.iter().filter(|node| node.facts.is_some()).collect();
    if known.is_empty() {
        return None;
    }
    for node in known.iter().filter(|node| node.server().is_none()) {
        let reason = node.facts.map(|facts| facts.connect_error.as_str()).unwrap_or_default();
        problems.push(Problem::error(
            subject(node),
            format!("no server answers in {} on port {} ({reason})", node.spec.socket_dir, node.spec.port),
            "start it, or correct socket_dir and port in the fleet file",
        ));
    }
    let leaders: Vec<_> = known.iter().filter(|node| node.server().is_some_and(|s| !s.in_recovery)).collect();
    match leaders.as_slice() {
        [leader] => problems.extend(
            known.iter().filter(|node| node.spec != leader.spec).flat_map(|node| standby(node, leader, view)),
        ),
        [] if known.len() == view.old.len() => problems.push(Problem::error(
            format!("cluster {}", view.cluster.name),
            "every old node is in recovery, so there is no leader",
            "add the leader to the fleet file, or see why it is down",
        )),
        [] => {}
        several => {
            let names: Vec<&str> = several.iter().map(|node| node.spec.name.as_str()).collect();
            problems.push(Problem::error(
                format!("cluster {}", view.cluster.name),
                format!(
                    "{} are all not in recovery, but only one node can be the leader",
                    names.join(" and ")
                ),
                "make the others standbys again, or give each cluster its own entry in the fleet file",
            ));
        }
    }
    for node in &known {
        let declared = &node.spec.data_dir;
        let actual = node.server().and_then(|server| server.settings.get("data_directory"));
        if let Some(actual) = actual.filter(|actual| *actual != declared) {
            problems.push(Problem::error(
                subject(node),
                format!("the server on its port runs in {actual}, not in the declared {declared}"),
                "correct data_dir, port or socket_dir in the fleet file",
            ));
        }
    }
    Some(problems)
}

fn standby(node: &OldView<'_>, leader: &OldView<'_>, view: &View<'_>) -> Option<Problem> {
    let (server, of) = (node.server()?, leader.server()?);
    if !server.in_recovery {
        return None;
    }
    if server.system_identifier != of.system_identifier {
        return Some(Problem::error(
            subject(node),
            format!(
                "its system identifier {} is not that of the leader {} ({})",
                server.system_identifier, leader.spec.name, of.system_identifier
            ),
            "it is a standby of another cluster: remove it from this cluster in the fleet file",
        ));
    }
    if server.upstream_host.is_empty() {
        return Some(Problem::error(
            subject(node),
            "it is in recovery, but does not stream",
            "see its log for why it has no WAL receiver, or leave it out of the fleet file",
        ));
    }
    if server.timeline != of.timeline {
        return Some(Problem::error(
            subject(node),
            format!("it is on timeline {}, the leader on {}", server.timeline, of.timeline),
            "let it follow the leader first, or clone it again",
        ));
    }
    let declared = |host: &str, port: u32| {
        view.old.iter().any(|old| old.spec.address == host && u32::from(old.spec.port) == port)
    };
    (!declared(&server.upstream_host, server.upstream_port)).then(|| {
        Problem::note(
            subject(node),
            format!(
                "it streams from {}:{}, which the fleet file does not name",
                server.upstream_host, server.upstream_port
            ),
            "nothing, if that is another address of a declared node; else add the node",
        )
    })
}

fn subject(node: &OldView<'_>) -> String {
    format!("node {} on {}", node.spec.name, node.spec.host)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Note};

    #[test]
    fn roles_that_cannot_be() {
        let mut case = healthy();
        case.server(1).in_recovery = false;
        case.expect("roles", Error, "ledger-old-1 and ledger-old-2 are all not in recovery");

        let mut case = healthy();
        case.server(0).in_recovery = true;
        case.expect("roles", Error, "there is no leader");

        let mut case = healthy();
        case.old(1).running = false;
        case.old(1).connect_error = "no such file".into();
        case.expect(
            "roles",
            Error,
            "node ledger-old-2 on db2: no server answers in /var/run/postgresql on port 5432",
        );
    }

    #[test]
    fn standbys_of_something_else() {
        let mut case = healthy();
        case.server(1).system_identifier = 1;
        case.expect("roles", Error, "standby of another cluster");

        let mut case = healthy();
        case.server(1).upstream_host.clear();
        case.expect("roles", Error, "does not stream");

        let mut case = healthy();
        case.server(0).timeline = 4;
        case.expect("roles", Error, "it is on timeline 1, the leader on 4");

        let mut case = healthy();
        case.server(1).upstream_host = "10.9.9.9".into();
        case.expect("roles", Note, "10.9.9.9:5432");
    }

    #[test]
    fn a_server_of_another_directory() {
        let mut case = healthy();
        case.set(0, "data_directory", "/elsewhere");
        case.expect("roles", Error, "runs in /elsewhere, not in the declared /var/lib/postgresql/15/ledger");
    }
}
