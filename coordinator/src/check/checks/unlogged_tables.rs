//! Unlogged tables.

use super::{Check, Problem, Verdict, View, few, in_databases};

pub(super) const CHECK: Check = Check {
    name: "unlogged-tables",
    why: "Unlogged tables are not in the WAL: they arrive empty and are not replicated.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    in_databases(
        view,
        |db| &db.unlogged_tables,
        |subject, tables| {
            Problem::warning(
                subject,
                format!("unlogged tables, which will be empty on the new cluster: {}", few(tables)),
                "ALTER TABLE ... SET LOGGED what has to survive, or plan to fill them after the switchover",
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
        case.database("app").unlogged_tables.push("public.cache".into());
        case.expect("unlogged-tables", Warning, "public.cache");
    }
}
