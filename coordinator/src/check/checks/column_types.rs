//! Columns of types that pg_upgrade refuses. Its own check finds them as well, but only when the new node has been seeded.

use super::{Check, Problem, Verdict, View, few, in_databases};

pub(super) const CHECK: Check = Check {
    name: "column-types",
    why: "pg_upgrade refuses columns whose stored values mean something else, or cannot be read, in another major.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    in_databases(
        view,
        |db| &db.refused_columns,
        |subject, columns| {
            Problem::error(
                subject,
                format!("pg_upgrade would refuse these columns: {}", few(columns)),
                "ALTER TABLE ... ALTER COLUMN ... TYPE text USING column::text, or drop them",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn they_are_named() {
        let mut case = healthy();
        case.database("app").refused_columns.push("public.grants.acl (aclitem[])".into());
        case.expect("column-types", Error, "public.grants.acl (aclitem[])");
    }
}
