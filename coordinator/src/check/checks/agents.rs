//! Every host's agent answers.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "agents",
    why: "Agents do all the work on their hosts; without one nothing there can be checked or done.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let agents = view.cluster.agents();
    let problems = agents.iter().filter_map(|(host, address)| {
        if view.facts.replies.contains_key(host) {
            return None;
        }
        let reason = view.facts.unreachable.get(host).map_or("it did not answer", String::as_str);
        Some(Problem::error(
            format!("host {host}"),
            format!("its agent at {address} cannot be reached: {reason}"),
            format!(
                "on {host}, see that pgleap-agent runs and that the coordinator may connect to {address}"
            ),
        ))
    });
    Some(problems.collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity;

    #[test]
    fn a_lost_agent_is_named() {
        let mut case = healthy();
        case.facts.replies.remove("db3");
        case.facts.unreachable.insert("db3".into(), "connection refused".into());
        case.expect(
            "agents",
            Severity::Error,
            "host db3: its agent at 10.0.0.3:7432 cannot be reached: connection refused",
        );
    }
}
