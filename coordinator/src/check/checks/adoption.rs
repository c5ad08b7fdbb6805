//! What already is in a seed directory is a standby of this very cluster.

use super::{Check, Problem, Verdict, View, seed_key};
use crate::check::NewView;

pub(super) const CHECK: Check = Check {
    name: "adoption",
    why: "A seed directory with files in it is only used when it is a physical standby of the old cluster.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let leader = view.leader_server()?;
    let mut problems = Vec::new();
    for (index, node) in view.new.iter().enumerate() {
        let Some(seed) = node.seed else { continue };
        let Some(directory) = seed.data_dir.as_ref().filter(|d| d.exists && !d.empty) else { continue };
        let subject = format!("{} {} of {}", seed_key(view), directory.path, node.spec.name);
        let Some(control) = &seed.control else {
            problems.push(Problem::error(
                subject,
                "it is not empty, and is no data directory of the old major",
                "name a directory that is empty or does not exist yet, or move its content away",
            ));
            continue;
        };
        if control.system_identifier != leader.system_identifier {
            problems.push(Problem::error(
                subject,
                format!(
                    "it belongs to another cluster (system identifier {}, the old leader's is {})",
                    control.system_identifier, leader.system_identifier
                ),
                "name another directory, or move this one away",
            ));
        } else if !matches!(control.state.as_str(), "in archive recovery" | "shut down in recovery") {
            problems.push(Problem::error(
                subject,
                format!("it is no standby: its control file says \"{}\"", control.state),
                "make it a standby of the old cluster again, or move it away and let pgleap clone it",
            ));
        } else if let Some(server) = node.seed_server() {
            problems.extend(direction(
                view,
                index,
                node,
                subject,
                &server.upstream_host,
                server.upstream_port,
            ));
        } else {
            problems.push(Problem::note(
                subject,
                "it holds a stopped standby of the old cluster, which will be started and adopted",
                "nothing; or move it away to have it cloned anew",
            ));
        }
    }
    Some(problems)
}

fn direction(
    view: &View<'_>,
    index: usize,
    node: &NewView<'_>,
    subject: String,
    host: &str,
    port: u32,
) -> Option<Problem> {
    if !node.seed_server()?.in_recovery {
        return Some(Problem::error(
            subject,
            "its server is not in recovery",
            "make it a standby of the old cluster again, or move it away and let pgleap clone it",
        ));
    }
    if host.is_empty() {
        return Some(Problem::error(
            subject,
            "its server is in recovery, but does not stream",
            "see its log for why it has no WAL receiver, or move it away and let pgleap clone it",
        ));
    }
    let is = |address: &str, of: u16| address == host && u32::from(of) == port;
    if view.old.iter().any(|old| is(&old.spec.address, old.spec.port)) {
        return None;
    }
    if let Some(other) = view.new.iter().find(|new| is(&new.spec.address, new.spec.port)) {
        let leader = view.new.first().is_some_and(|first| first.spec == other.spec);
        return (index == 0 || !leader).then(|| {
            Problem::error(
                subject,
                format!(
                    "its server streams from {}, which is to be its replica, or beside it",
                    other.spec.name
                ),
                "let it stream from an old node; a new replica may also stream from the new leader",
            )
        });
    }
    Some(Problem::warning(
        subject,
        format!("its server streams from {host}:{port}, which the fleet file does not name"),
        "nothing, if that is a node of the old cluster: it will be made to stream from a declared one",
    ))
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Note, Warning};

    #[test]
    fn a_streaming_standby_is_adopted() {
        let mut case = healthy();
        case.adopt(0, 1);
        case.adopt(1, 0);
        case.expect_none("adoption");
        case.seed(1).server.as_mut().unwrap().upstream_host = "10.0.0.3".into();
        case.expect_none("adoption");
        // The new leader cannot follow its own replica.
        case.seed(0).server.as_mut().unwrap().upstream_host = "10.0.0.4".into();
        case.expect("adoption", Error, "streams from ledger-new-2");
        case.seed(0).server.as_mut().unwrap().upstream_host = "db9.example".into();
        case.expect("adoption", Warning, "streams from db9.example:5432");
    }

    #[test]
    fn anything_else_is_refused() {
        let mut case = healthy();
        case.seed(0).data_dir.as_mut().unwrap().exists = true;
        case.expect("adoption", Error, "is no data directory of the old major");

        let mut case = healthy();
        case.adopt(0, 1);
        case.seed(0).control.as_mut().unwrap().system_identifier = 5;
        case.expect("adoption", Error, "belongs to another cluster (system identifier 5");

        let mut case = healthy();
        case.adopt(0, 1);
        case.seed(0).control.as_mut().unwrap().state = "in production".into();
        case.expect("adoption", Error, "\"in production\"");

        let mut case = healthy();
        case.adopt(0, 1);
        case.seed(0).server.as_mut().unwrap().upstream_host.clear();
        case.expect("adoption", Error, "does not stream");
    }

    #[test]
    fn a_stopped_standby_is_noted() {
        let mut case = healthy();
        case.adopt(0, 1);
        case.seed(0).running = false;
        case.seed(0).control.as_mut().unwrap().state = "shut down in recovery".into();
        case.expect("adoption", Note, "will be started and adopted");
    }
}
