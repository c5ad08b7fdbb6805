//! Materialized views.

use super::{Check, Problem, Verdict, View, counted_in_databases};

pub(super) const CHECK: Check = Check {
    name: "materialized-views",
    why: "A refresh on the old cluster is not replicated; on the new one the views keep what they held at the slots.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    counted_in_databases(
        view,
        0,
        |db| db.materialized_views,
        |subject, count| {
            Problem::note(
                subject,
                format!("materialized views: {count}"),
                "refresh them on the new cluster before it takes reads",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Note;

    #[test]
    fn they_are_counted() {
        let mut case = healthy();
        case.database("app").materialized_views = 2;
        case.expect("materialized-views", Note, "materialized views: 2");
    }
}
