//! Every database can be upgraded, inspected and replicated.

use super::{Check, Problem, Verdict, View};

pub(super) const CHECK: Check = Check {
    name: "databases",
    why: "pg_upgrade takes all databases or none, and every one that clients may write to has to be replicated.",
    run,
};

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mut problems = Vec::new();
    for db in &server.databases {
        let subject = format!("database \"{}\"", db.name);
        if db.name == "template0" {
            // check.c, check_is_install_user and check_for_connection_status.
            if db.allow_connections && !view.cluster.is_move() {
                problems.push(Problem::error(
                    subject,
                    "it allows connections, which pg_upgrade refuses",
                    "ALTER DATABASE template0 WITH ALLOW_CONNECTIONS false",
                ));
            }
        } else if !db.allow_connections {
            problems.push(Problem::error(
                subject,
                if view.cluster.is_move() {
                    "it does not allow connections, so it cannot be replicated"
                } else {
                    "it does not allow connections, so pg_upgrade refuses the whole cluster"
                },
                format!(
                    "ALTER DATABASE \"{}\" WITH ALLOW_CONNECTIONS true, or drop it",
                    db.name.replace('"', "\"\"")
                ),
            ));
        } else if !db.connect_error.is_empty() {
            problems.push(Problem::error(
                subject,
                format!("it could not be inspected: {}", db.connect_error),
                "see that the agents' superuser can connect to it and read its catalogs",
            ));
        } else if db.name.contains(['\n', '\r']) {
            problems.push(Problem::error(
                subject,
                "its name contains a line break, which pg_upgrade's commands cannot carry",
                "rename it",
            ));
        } else if db.is_template && db.tables > 0 {
            problems.push(Problem::warning(
                subject,
                format!("it is a template with {} tables, so it is replicated too", db.tables),
                "nothing, if so meant; but CREATE DATABASE from it fails while its subscription reads it",
            ));
        }
    }
    for name in ["template1", "postgres"] {
        if !server.databases.iter().any(|db| db.name == name) {
            problems.push(Problem::error(
                format!("cluster {}", view.cluster.name),
                format!("there is no database \"{name}\", which pg_upgrade and the agents connect to"),
                format!("CREATE DATABASE {name} TEMPLATE template0"),
            ));
        }
    }
    if super::databases(view).is_some_and(|databases| databases.is_empty()) {
        problems.push(Problem::error(
            format!("cluster {}", view.cluster.name),
            "it has no database that could be replicated",
            "see why every database is a template or refuses connections",
        ));
    }
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::{database, healthy};
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn odd_names_are_welcome_but_line_breaks() {
        let mut case = healthy();
        case.server(0).databases.push(database("we\"ird ☃", 17_000, false));
        case.expect_none("databases");
        case.server(0).databases.push(database("two\nlines", 17_001, false));
        case.expect("databases", Error, "line break");
    }

    #[test]
    fn connections() {
        let mut case = healthy();
        case.database("app").allow_connections = false;
        case.expect("databases", Error, "ALTER DATABASE \"app\" WITH ALLOW_CONNECTIONS true");

        let mut case = healthy();
        case.database("template0").allow_connections = true;
        case.expect("databases", Error, "database \"template0\"");

        let mut case = healthy();
        case.database("app").connect_error = "permission denied".into();
        case.expect("databases", Error, "permission denied");
    }

    #[test]
    fn templates_with_tables_and_missing_ones() {
        let mut case = healthy();
        case.database("template1").tables = 3;
        case.expect("databases", Warning, "template with 3 tables");

        let mut case = healthy();
        case.server(0).databases.retain(|db| db.name != "template1");
        case.expect("databases", Error, "no database \"template1\"");
    }
}
