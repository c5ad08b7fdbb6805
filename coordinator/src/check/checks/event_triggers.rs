//! Event triggers.

use super::{Check, Problem, Verdict, View, few, in_databases};

pub(super) const CHECK: Check = Check {
    name: "event-triggers",
    why: "Event triggers also fire for the publications and subscriptions of the upgrade, and one that fails or forbids \
          DDL stops it.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    in_databases(
        view,
        |db| &db.event_triggers,
        |subject, triggers| {
            Problem::note(
                subject,
                format!("event triggers: {}", few(triggers)),
                "see that they let CREATE PUBLICATION, CREATE SUBSCRIPTION and ALTER EXTENSION by the superuser pass",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Note;

    #[test]
    fn they_are_named() {
        let mut case = healthy();
        case.database("app").event_triggers.push("no_ddl".into());
        case.expect("event-triggers", Note, "no_ddl");
    }
}
