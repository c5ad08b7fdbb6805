//! Commits of the old cluster never wait for anything new.

use super::{Check, Problem, Verdict, View, setting};

pub(super) const CHECK: Check = Check {
    name: "synchronous",
    why: "New standbys and subscriptions are stopped during the upgrade; if they counted as synchronous, every commit \
          of the old cluster would wait for them.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let (leader, server) = (view.leader()?, view.leader_server()?);
    let names = setting(server, "synchronous_standby_names");
    let subject = format!("node {} on {}", leader.spec.name, leader.spec.host);
    let listed: Vec<String> = words(names);
    let new = view.new.iter().map(|node| node.spec.name.as_str());
    let clash = new.into_iter().find(|name| listed.iter().any(|word| word.eq_ignore_ascii_case(name)));
    let problem = if let Some(name) = clash {
        Some(Problem::error(
            subject,
            format!("synchronous_standby_names = {names} names the new node {name}"),
            "take it out, or give the new node another name",
        ))
    } else if listed.iter().any(|word| word == "*") {
        Some(Problem::warning(
            subject,
            format!(
                "synchronous_standby_names = {names} lets any standby and any subscription count as synchronous"
            ),
            "list the old replicas by name until the upgrade is finished",
        ))
    } else {
        None
    };
    Some(problem.into_iter().collect())
}

/// The names within `ANY 1 (a, "b")`, `FIRST 2 (a)`, `a, b` or `*`; keywords and numbers do no harm.
fn words(names: &str) -> Vec<String> {
    let separator = |c: char| c.is_whitespace() || matches!(c, ',' | '(' | ')');
    names
        .split(separator)
        .map(|word| word.trim_matches('"').to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn a_star_or_a_new_node() {
        let mut case = healthy();
        case.set(0, "synchronous_standby_names", "FIRST 1 (\"ledger-old-2\")");
        case.expect_none("synchronous");
        case.set(0, "synchronous_standby_names", "*");
        case.expect("synchronous", Warning, "any standby");
        case.set(0, "synchronous_standby_names", "ANY 1 (\"ledger-new-1\", x)");
        case.expect("synchronous", Error, "the new node ledger-new-1");
    }
}
