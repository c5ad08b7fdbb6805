//! The Patroni that makes the new nodes as a standby cluster, or runs them as one already.
//!
//! What is wrong with a template its agent says, which has read it. Whether there is one standby cluster, of these nodes and no others,
//! is judged here.

use super::{Check, Problem, Verdict, View, seed_key};
use crate::check::NewView;
use pgleap_proto::agent::PatroniSeed;

pub(super) const CHECK: Check = Check {
    name: "patroni-seed",
    why: "The seed is made by Patroni from a template, for hours perhaps; and of a standby cluster that is there already every member has to stop.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let Some(patroni) = view.cluster.new.patroni.as_ref().filter(|patroni| !patroni.seed_scope.is_empty())
    else {
        return view.new.iter().any(|node| node.seed.is_some()).then(Vec::new);
    };
    let adopts = view.adopts_seed();
    let mut problems = Vec::new();
    for (index, node) in view.new.iter().enumerate() {
        let facts = node.seed?.patroni_seed.as_ref();
        let Some(facts) = facts else {
            problems.push(Problem::error(
                subject(node),
                "its agent does not know seeds by Patroni",
                "install the same version of pgleap everywhere",
            ));
            continue;
        };
        if adopts {
            problems.extend(adopted(view, index, node, facts, &patroni.seed_scope));
        } else {
            problems.extend(to_make(view, node, facts, &patroni.seed_scope));
        }
    }
    Some(problems)
}

fn subject(node: &NewView<'_>) -> String {
    format!("node {} on {}", node.spec.name, node.spec.host)
}

fn to_make(view: &View<'_>, node: &NewView<'_>, facts: &PatroniSeed, scope: &str) -> Vec<Problem> {
    let wrong = |message: String, cure: String| Problem::error(subject(node), message, cure);
    let mut problems: Vec<Problem> =
        facts.complaints.iter().map(|one| wrong(one.what.clone(), one.cure.clone())).collect();
    if facts.scope == scope {
        problems.push(wrong(
            format!("its Patroni runs already (cluster \"{scope}\"), and that of the new leader does not"),
            "let all new nodes be members of that standby cluster, which is adopted then, or stop it"
                .to_owned(),
        ));
    } else if !facts.scope.is_empty() {
        problems.push(wrong(
            format!("member {} of another cluster (\"{}\") answers on its REST API", facts.member, facts.scope),
            format!("stop it, or correct rest; a standby cluster that is there already is adopted as seed_scope = \"{}\"", facts.scope),
        ));
    }
    if let Some(directory) = node
        .seed
        .and_then(|seed| seed.data_dir.as_ref())
        .filter(|directory| directory.exists && !directory.empty)
    {
        problems.push(wrong(
            format!("{} {} is not empty, and no Patroni of cluster \"{scope}\" runs it", seed_key(view), directory.path),
            format!(
                "move its content away; or remove seed_scope to have pgleap adopt the standby in it; or start the Patroni that runs it: it is \
                 adopted when its scope is \"{scope}\""
            ),
        ));
    }
    let first = view.new.first().and_then(NewView::seed_patroni).map(|first| &first.namespace);
    if first.is_some_and(|first| *first != facts.namespace) && problems.is_empty() {
        problems.push(wrong(
            format!(
                "the namespace of {} is not that of the new leader's template: it would be another cluster",
                facts.template
            ),
            "write the same namespace into the template of each new host".to_owned(),
        ));
    }
    if facts.namespace.is_empty() && problems.is_empty() {
        problems.push(Problem::warning(
            subject(node),
            format!(
                "{} names no namespace: the seed's keys lie below /service/, beside those of other clusters",
                facts.template
            ),
            "write a namespace of its own into the template, for example namespace: /seeds/",
        ));
    }
    problems
}

fn adopted(
    view: &View<'_>,
    index: usize,
    node: &NewView<'_>,
    facts: &PatroniSeed,
    scope: &str,
) -> Vec<Problem> {
    let wrong = |message: String, cure: &str| Problem::error(subject(node), message, cure);
    if facts.scope != scope {
        return vec![wrong(
            format!("it is no member of the standby cluster \"{scope}\", as the new leader is"),
            "start its Patroni, and let it become a replica there; or stop that standby cluster and let pgleap have a new one made",
        )];
    }
    let mut problems = Vec::new();
    if !facts.commands {
        // The template is of no use here, and so is what is wrong with it.
        problems.extend(facts.complaints.iter().map(|one| wrong(one.what.clone(), &one.cure)));
    }
    let leads = matches!(facts.role.as_str(), "standby_leader" | "leader" | "primary" | "master");
    if facts.role != "standby_leader" && leads {
        problems.push(wrong(
            format!("its Patroni says {}: cluster \"{scope}\" is no standby cluster", facts.role),
            "correct seed_scope, or make it a standby cluster of the old one again",
        ));
    } else if leads != (index == 0) {
        let is = if leads {
            "leads the standby cluster, and is not"
        } else {
            "does not lead the standby cluster, and is"
        };
        problems.push(wrong(
            format!("it {is} the first new node of the fleet file"),
            "let the first new node lead it (patronictl switchover), or change the order in the fleet file",
        ));
    }
    if facts.paused {
        problems.push(wrong(
            "its Patroni is paused, so that nobody could give it back as it was".to_owned(),
            "patronictl resume",
        ));
    }
    if node.seed_server().is_none() {
        let key = seed_key(view);
        problems.push(wrong(
            format!("its Patroni runs, but no server in {key} {}", node.spec.seed_dir),
            "correct the directory or rest in the fleet file, or see Patroni's log",
        ));
    }
    if index == 0 {
        let known = |address: &str, port: u32| {
            view.new.iter().any(|new| new.spec.address == address && u32::from(new.spec.port) == port)
        };
        let strangers = facts.members.iter().filter(|member| !known(&member.address, member.port));
        problems.extend(strangers.map(|member| {
            wrong(
                format!(
                    "member {} of the standby cluster ({}:{}) is no new node of the fleet file, and would be left behind",
                    member.name, member.address, member.port
                ),
                "add it to the fleet file, with the address that Patroni has, or remove it from the standby cluster",
            )
        }));
    }
    problems
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::{Complaint, PatroniMember};
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    fn seeded() -> crate::check::testing::Case {
        healthy().handed_to_patroni().seeded_by_patroni()
    }

    #[test]
    fn nobody_and_a_healthy_one() {
        healthy().expect_none("patroni-seed");
        healthy().handed_to_patroni().expect_none("patroni-seed");
        seeded().expect_none("patroni-seed");
        let adopted = seeded().adopted_from_patroni();
        adopted.expect_none("patroni-seed");
        adopted.expect_none("adoption");
        // What runs there is what is to be adopted, and not the Patroni to come.
        adopted.expect_none("patroni-new");
    }

    #[test]
    fn what_is_wrong_before_it_is_made() {
        let mut case = seeded();
        case.patroni_seed(1).complaints = vec![Complaint { what: "x is y".into(), cure: "write z".into() }];
        case.expect("patroni-seed", Error, "node ledger-new-2 on db4: x is y; write z");
        let mut case = seeded();
        case.patroni_seed(1).namespace.clear();
        case.expect(
            "patroni-seed",
            Error,
            "node ledger-new-2 on db4: the namespace of /etc/patroni/seed.yml is not",
        );
        case.patroni_seed(0).namespace.clear();
        let findings = case.findings("patroni-seed");
        assert_eq!(findings.len(), 2, "{findings:#?}");
        assert!(
            findings
                .iter()
                .all(|one| one.severity() == Warning && one.message.contains("names no namespace"))
        );
        let mut case = seeded();
        case.patroni_seed(0).scope = "other".into();
        case.expect("patroni-seed", Error, "of another cluster (\"other\")");
        let mut case = seeded();
        case.patroni_seed(1).scope = "ledger-seed".into();
        case.expect("patroni-seed", Error, "node ledger-new-2 on db4: its Patroni runs already");
        let mut case = seeded();
        case.adopt(0, 1);
        case.expect("patroni-seed", Error, "is not empty, and no Patroni of cluster \"ledger-seed\" runs it");
        let mut case = seeded();
        case.seed(0).patroni_seed = None;
        case.expect("patroni-seed", Error, "same version");
    }

    #[test]
    fn what_is_wrong_with_one_that_is_there() {
        let case = || seeded().adopted_from_patroni();
        let mut one = case();
        // Nobody needs the template.
        one.patroni_seed(0).complaints = vec![Complaint { what: "x is y".into(), cure: "write z".into() }];
        one.expect_none("patroni-seed");
        one.patroni_seed(0).commands = false;
        one.expect("patroni-seed", Error, "x is y; write z");
        let mut one = case();
        one.patroni_seed(1).scope.clear();
        one.expect("patroni-seed", Error, "node ledger-new-2 on db4: it is no member of the standby cluster");
        let mut one = case();
        one.patroni_seed(0).role = "primary".into();
        one.expect("patroni-seed", Error, "is no standby cluster");
        let mut one = case();
        one.patroni_seed(1).role = "standby_leader".into();
        one.expect("patroni-seed", Error, "is not the first new node");
        let mut one = case();
        one.patroni_seed(0).paused = true;
        one.expect("patroni-seed", Error, "patronictl resume");
        let mut one = case();
        one.seed(1).running = false;
        one.expect("patroni-seed", Error, "no server in seed_dir");
        let mut one = case();
        let stranger =
            PatroniMember { name: "n9".into(), address: "10.0.0.9".into(), port: 5432, ..Default::default() };
        one.patroni_seed(0).members.push(stranger);
        one.expect("patroni-seed", Error, "member n9 of the standby cluster (10.0.0.9:5432)");
    }
}
