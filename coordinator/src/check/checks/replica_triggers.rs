//! Triggers that fire when changes are applied.

use super::{Check, Problem, Verdict, View, few, in_databases};

pub(super) const CHECK: Check = Check {
    name: "replica-triggers",
    why: "ENABLE REPLICA and ENABLE ALWAYS triggers fire when the new cluster applies a change, so what they write is \
          written twice or conflicts with its own replicated copy.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    in_databases(
        view,
        |db| &db.replica_triggers,
        |subject, triggers| {
            Problem::warning(
                subject,
                format!("triggers that fire on apply: {}", few(triggers)),
                "ALTER TABLE ... ENABLE TRIGGER (plain) for those that write to replicated tables",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn they_are_named() {
        let mut case = healthy();
        case.database("app").replica_triggers.push("public.t.audit".into());
        case.expect("replica-triggers", Warning, "public.t.audit");
    }
}
