//! Logical slots and publications of other tools.

use super::{Check, Problem, Verdict, View, few};

pub(super) const CHECK: Check = Check {
    name: "other-replication",
    why: "Consumers of other logical slots do not follow to the new cluster by themselves.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mut problems = Vec::new();
    let slots =
        server.slots.iter().filter(|slot| slot.kind == "logical" && !slot.name.starts_with("pgleap_"));
    let names: Vec<&String> = slots.map(|slot| &slot.name).collect();
    if !names.is_empty() {
        problems.push(Problem::note(
            format!("cluster {}", view.cluster.name),
            format!("logical slots of others: {}", few(&names)),
            "plan how their consumers move to the new cluster at the switchover; pgleap leaves the slots alone",
        ));
    }
    for db in &server.databases {
        let names: Vec<&String> =
            db.publications.iter().filter(|name| !name.starts_with("pgleap_")).collect();
        if !names.is_empty() {
            problems.push(Problem::note(
                format!("database \"{}\"", db.name),
                format!("publications of others: {}", few(&names)),
                "nothing: they come along with the copy",
            ));
        }
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::SlotFacts;
    use pgleap_proto::fleet::finding::Severity::Note;

    #[test]
    fn they_are_noted() {
        let mut case = healthy();
        case.server(0).slots.push(SlotFacts {
            name: "debezium".into(),
            kind: "logical".into(),
            ..SlotFacts::default()
        });
        case.expect("other-replication", Note, "debezium");
        case.server(0).slots.clear();
        case.database("app").publications.push("dbz".into());
        case.expect("other-replication", Note, "publications of others: dbz");
    }
}
