//! Nothing else holds a new node's port or socket.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "ports",
    why: "A server whose port is taken does not start, and a stranger on it would be taken for the node.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let mut problems = Vec::new();
    let mut seen = false;
    for node in &view.new {
        let Some(seed) = node.seed else { continue };
        seen = true;
        let subject = format!("node {} on {}", node.spec.name, node.spec.host);
        if !seed.port_conflict.is_empty() {
            problems.push(Problem::error(
                subject,
                seed.port_conflict.clone(),
                "give the node another port in the fleet file, or stop what holds it",
            ));
            continue;
        }
        let stranger = node
            .seed_server()
            .and_then(|server| server.settings.get("data_directory"))
            .filter(|directory| **directory != node.spec.seed_dir);
        if let Some(directory) = stranger {
            problems.push(Problem::error(
                subject,
                format!("on its port {} runs another server, in {directory}", node.spec.port),
                "give the node another port in the fleet file, or stop that server",
            ));
        }
    }
    seen.then_some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn a_taken_port() {
        let mut case = healthy();
        case.seed(0).port_conflict = "TCP port 5432 is in use".into();
        case.expect("ports", Error, "node ledger-new-1 on db3: TCP port 5432 is in use");
    }

    #[test]
    fn a_stranger_on_the_socket() {
        let mut case = healthy();
        case.adopt(0, 1);
        case.expect_none("ports");
        let server = case.seed(0).server.as_mut().unwrap();
        server.settings.insert("data_directory".into(), "/srv/other".into());
        case.expect("ports", Error, "another server, in /srv/other");
    }
}
