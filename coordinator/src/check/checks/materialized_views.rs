//! Materialized views.

use super::{Check, Problem, Verdict, View, databases};

pub(super) const CHECK: Check = Check {
    name: "materialized-views",
    why: "A refresh on the old cluster is not replicated; on the new one the views keep what they held at the slots.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let databases = databases(view)?.into_iter().filter(|db| db.materialized_views > 0);
    let problem = |db: &pgleap_proto::agent::DatabaseFacts| {
        Problem::note(
            format!("database \"{}\"", db.name),
            format!("it has {} materialized views", db.materialized_views),
            "refresh them on the new cluster before it takes reads",
        )
    };
    Some(databases.map(problem).collect())
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Note;

    #[test]
    fn they_are_counted() {
        let mut case = healthy();
        case.database("app").materialized_views = 2;
        case.expect("materialized-views", Note, "it has 2 materialized views");
    }
}
