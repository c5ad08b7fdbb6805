//! New hosts can connect to the old nodes, new replicas to the new leader, and the old leader to it for the way back.

use pgleap_proto::agent::ReachFacts;

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "reach",
    why: "Base backups, streaming and subscriptions connect from the new hosts to the old nodes, with the replication login.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let mut problems = Vec::new();
    let mut seen = false;
    let leader = view.new.first().map(|node| (node.spec.address.as_str(), u32::from(node.spec.port)));
    for node in &view.new {
        for reach in node.seed.into_iter().flat_map(|facts| &facts.reach) {
            seen = true;
            let Some(target) = &reach.target else { continue };
            let subject = format!("from host {} to {}:{}", node.spec.host, target.host, target.port);
            if leader == Some((target.host.as_str(), target.port)) {
                problems.extend(to_new_leader(subject, reach));
            } else {
                problems.extend(to_old_node(subject, reach));
            }
        }
    }
    // The way back: from the old leader, wherever it is.
    for old in view.old.iter().filter(|old| old.server().is_some_and(|server| !server.in_recovery)) {
        for reach in old.facts.into_iter().flat_map(|facts| &facts.reach) {
            let Some(target) = &reach.target else { continue };
            let subject = format!("from host {} to {}:{}", old.spec.host, target.host, target.port);
            problems.extend(to_new_leader(subject, reach));
        }
    }
    seen.then_some(problems)
}

fn to_old_node(subject: String, reach: &ReachFacts) -> Option<Problem> {
    let user = reach.target.as_ref().map(|target| target.user.as_str()).unwrap_or_default();
    if !reach.replication_error.is_empty() {
        return Some(Problem::error(
            subject,
            format!("a replication connection as {user} fails: {}", reach.replication_error),
            "let pg_hba.conf of the old nodes admit it (database `replication`), and see passfile, sslmode and firewall",
        ));
    }
    (!reach.sql_error.is_empty()).then(|| {
        Problem::error(
            subject,
            format!("a connection to a database as {user} fails: {}", reach.sql_error),
            "let pg_hba.conf of the old nodes admit it (database `all`): subscriptions connect to each database",
        )
    })
}

/// It mostly does not run yet: a refusal proves the way, silence does not.
fn to_new_leader(subject: String, reach: &ReachFacts) -> Option<Problem> {
    let error = reach.replication_error.to_lowercase();
    let silent = ["timeout", "timed out", "no route", "unreachable", "could not translate", "not known"]
        .iter()
        .any(|sign| error.contains(sign));
    silent.then(|| {
        Problem::error(
            subject,
            format!("the new leader's address does not answer: {}", reach.replication_error),
            "correct its address in the fleet file, or open the port in the firewall",
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn the_old_leader_must_reach_the_new_one() {
        let mut case = healthy();
        case.old(0).reach[0].replication_error = "connection timed out".into();
        case.expect(
            "reach",
            Error,
            "from host db1 to 10.0.0.3:5432: the new leader's address does not answer",
        );
        // A replica that cannot is no leader yet.
        let mut case = healthy();
        case.old(1).reach[0].replication_error = "connection timed out".into();
        case.expect_none("reach");
    }

    #[test]
    fn old_nodes_must_admit_both_kinds() {
        let mut case = healthy();
        case.seed(0).reach[1].replication_error = "no pg_hba.conf entry".into();
        case.expect(
            "reach",
            Error,
            "from host db3 to 10.0.0.2:5432: a replication connection as replicator fails",
        );

        let mut case = healthy();
        case.seed(1).reach[0].sql_error = "no pg_hba.conf entry".into();
        case.expect("reach", Error, "subscriptions connect to each database");
    }

    #[test]
    fn the_new_leader_may_refuse_but_not_be_silent() {
        let mut case = healthy();
        case.expect_none("reach");
        case.seed(1).reach[2].replication_error =
            "connection to server at 10.0.0.3 failed: timeout expired".into();
        case.expect("reach", Error, "from host db4 to 10.0.0.3:5432");
    }
}
