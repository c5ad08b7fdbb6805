//! Every table has a replica identity.

use super::{Check, Problem, Verdict, View, few, in_databases};

pub(super) const CHECK: Check = Check {
    name: "replica-identity",
    why: "As soon as it is published, a table without a usable replica identity refuses UPDATE and DELETE on production.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    in_databases(
        view,
        |db| &db.no_replica_identity,
        |subject, tables| {
            Problem::error(
                subject,
                format!("tables whose UPDATE and DELETE would fail: {}", few(tables)),
                "add a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX / FULL (FULL is slow on large tables)",
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::fleet::finding::Severity::Error;

    #[test]
    fn tables_are_named() {
        let mut case = healthy();
        case.database("app").no_replica_identity = vec!["public.log: no primary key".into()];
        case.expect(
            "replica-identity",
            Error,
            "database \"app\": tables whose UPDATE and DELETE would fail: public.log",
        );
    }
}
