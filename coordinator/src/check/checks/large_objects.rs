//! Large objects.

use super::{Check, Problem, Verdict, View, counted_in_databases};

pub(super) const CHECK: Check = Check {
    name: "large-objects",
    why: "Logical replication does not carry large objects: those written after the slots were made do not arrive.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    counted_in_databases(
        view,
        0,
        |db| db.large_objects,
        |subject, count| {
            Problem::warning(
                subject,
                format!("it has {count} large objects; changes to them during the upgrade will be missing"),
                "keep applications from writing large objects until the switchover, or move them to bytea columns",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn they_are_counted() {
        let mut case = healthy();
        case.database("app").large_objects = 12;
        case.expect("large-objects", Warning, "it has 12 large objects");
    }
}
