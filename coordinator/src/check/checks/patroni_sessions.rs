//! Patroni connects to its own server in a way that a fence leaves open: by the unix socket, as the superuser.

use super::{Check, Problem, Verdict, View, without_patroni};

pub(super) const CHECK: Check = Check {
    name: "patroni-sessions",
    why: "A fence keeps everybody out but the superuser on the unix socket; a Patroni that is kept out takes its server for dead.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    if view.cluster.old.patroni.is_none() {
        return without_patroni(view);
    }
    let superuser = &view.cluster.old.superuser;
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.old {
        for session in node.server().into_iter().flat_map(|server| &server.patroni_sessions) {
            seen = true;
            let subject = format!("node {} on {}", node.spec.name, node.spec.host);
            if !session.client_addr.is_empty() {
                problems.push(Problem::error(
                    subject,
                    format!("its Patroni connects over TCP, from {}", session.client_addr),
                    "set postgresql.use_unix_socket: true in the configuration of every member, and restart Patroni while it is \
                     paused (PostgreSQL goes on)",
                ));
            } else if session.user != *superuser {
                problems.push(Problem::error(
                    subject,
                    format!("its Patroni connects as \"{}\", and the fence lets in \"{superuser}\" only", session.user),
                    "set superuser in the fleet file to the role that Patroni uses, or let Patroni use that one",
                ));
            }
        }
    }
    seen.then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn by_the_socket_as_the_superuser() {
        healthy().expect_none("patroni-sessions");
        let mut case = healthy().under_patroni();
        case.expect_none("patroni-sessions");
        case.server(1).patroni_sessions[0].client_addr = "127.0.0.1".into();
        case.expect(
            "patroni-sessions",
            Error,
            "node ledger-old-2 on db2: its Patroni connects over TCP, from 127.0.0.1",
        );
        let mut case = healthy().under_patroni();
        case.server(0).patroni_sessions[0].user = "patroni".into();
        case.expect("patroni-sessions", Error, "connects as \"patroni\"");
    }
}
