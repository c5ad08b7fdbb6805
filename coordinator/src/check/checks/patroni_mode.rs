//! How Patroni treats the old cluster just now: paused, synchronous, members that never lead. pgleap leaves all of it as it is.

use super::{Check, Problem, Verdict, View, without_patroni};

pub(super) const CHECK: Check = Check {
    name: "patroni-mode",
    why: "Patroni stays in charge of the old cluster all the time; what it would do when a host dies should be known before.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    if view.cluster.old.patroni.is_none() {
        return without_patroni(view);
    }
    let mut answers = view.old.iter().filter_map(|node| node.facts?.patroni.as_ref());
    let patroni = answers.find(|patroni| patroni.error.is_empty())?;
    let subject = format!("cluster {}", view.cluster.name);
    let mut problems = Vec::new();
    if patroni.paused {
        problems.push(Problem::warning(
            &subject,
            "its Patroni is paused: when the old leader dies, nobody leads instead, and the operation stops",
            "patronictl resume, or accept it",
        ));
    }
    if !matches!(patroni.synchronous_mode.as_str(), "" | "false" | "\"off\"") {
        problems.push(Problem::note(
            &subject,
            format!(
                "synchronous_mode is {}; commits go on waiting for standbys of the old cluster",
                patroni.synchronous_mode
            ),
            "set it on the new cluster as well before it takes the writes, if that is wanted there",
        ));
    }
    let never: Vec<&str> = patroni
        .members
        .iter()
        .filter(|member| member.nofailover)
        .map(|member| member.name.as_str())
        .collect();
    if !never.is_empty() {
        problems.push(Problem::note(
            &subject,
            format!("tagged nofailover: {}", never.join(", ")),
            "see that enough members are left that may lead",
        ));
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::{Note, Warning};

    #[test]
    fn what_should_be_known() {
        healthy().expect_none("patroni-mode");
        let mut case = healthy().under_patroni();
        case.patroni(0).synchronous_mode = "false".into();
        case.expect_none("patroni-mode");
        case.patroni(0).synchronous_mode = "\"quorum\"".into();
        case.expect("patroni-mode", Note, "synchronous_mode is \"quorum\"");
        let mut case = healthy().under_patroni();
        case.patroni(0).paused = true;
        case.expect("patroni-mode", Warning, "is paused");
        let mut case = healthy().under_patroni();
        case.patroni(0).members[1].nofailover = true;
        case.expect("patroni-mode", Note, "tagged nofailover: ledger-old-2");
    }
}
