//! Job schedulers inside the database. No fence keeps out what they write, so that one which cannot be stopped keeps a cluster from
//! being upgraded; one that can is the operator's to stop before each switchover.

use pgleap_proto::agent::ServerFacts;

use super::{Check, Problem, Verdict, View, setting};

pub(super) const CHECK: Check = Check {
    name: "schedulers",
    why: "What a scheduler inside the server writes is kept out by no fence: jobs must run on the side that takes the writes only.",
    run,
};

/// Extensions whose jobs come from elsewhere, or from a library that is not preloaded now.
const EXTENSIONS: [&str; 4] = ["pg_cron", "pgagent", "pg_timetable", "pg_partman"];

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let cluster = format!("cluster {}", view.cluster.name);
    let mut problems = Vec::new();
    problems.extend(cron(server, &cluster));
    problems.extend(partman(server, &cluster));
    let preloaded = |extension: &str| match extension {
        "pg_partman" => preloads(server, "pg_partman_bgw"),
        extension => preloads(server, extension),
    };
    for db in &server.databases {
        for extension in &db.extensions {
            let (place, name) = (format!("database \"{}\"", db.name), extension.name.as_str());
            if name == "timescaledb" {
                problems.push(Problem::error(
                    place,
                    "the extension timescaledb makes tables (chunks) by itself as rows arrive, and its jobs cannot be stopped",
                    "pgleap cannot upgrade it: logical replication carries no DDL; DROP EXTENSION where it is unused",
                ));
            } else if EXTENSIONS.contains(&name) && !preloaded(name) {
                problems.push(Problem::warning(
                    place,
                    format!("the extension {name} can run jobs by itself"),
                    "have its jobs come through the poolers, as all clients do, and preload no library of it before finish",
                ));
            }
        }
    }
    Some(problems)
}

fn cron(server: &ServerFacts, cluster: &str) -> Option<Problem> {
    if !preloads(server, "pg_cron") {
        return None;
    }
    match setting(server, "cron.launch_active_jobs") {
        "off" => None,
        "" => Some(Problem::error(
            cluster,
            "the preloaded library pg_cron is older than 1.6, so that its jobs cannot be stopped when the old cluster follows the new one",
            "install pg_cron 1.6 or later on every old node, or take it out of shared_preload_libraries until finish; either needs a \
             restart",
        )),
        _ => Some(Problem::warning(
            cluster,
            "pg_cron launches jobs; in the new cluster pgleap starts it with cron.launch_active_jobs = off",
            "before each switchover or reverse: ALTER SYSTEM SET cron.launch_active_jobs = off; SELECT pg_reload_conf(); on the leader \
             that takes the writes (it is refused otherwise), and on again afterwards on the other one",
        )),
    }
}

fn partman(server: &ServerFacts, cluster: &str) -> Option<Problem> {
    if !preloads(server, "pg_partman_bgw") {
        return None;
    }
    let what = "the preloaded library pg_partman_bgw makes and drops partitions by itself";
    Some(if setting(server, "pg_partman_bgw.dbname").trim().is_empty() {
        Problem::warning(
            cluster,
            format!("{what} once it has a database"),
            "leave pg_partman_bgw.dbname empty until finish",
        )
    } else {
        Problem::error(
            cluster,
            format!("{what}, which is DDL: the other side would not have them, and replication would stop"),
            "make the partitions that are needed until finish beforehand (premake), then on the leader: ALTER SYSTEM SET \
             pg_partman_bgw.dbname = ''; SELECT pg_reload_conf();",
        )
    })
}

/// Whether the server has preloaded this library, however it is written.
fn preloads(server: &ServerFacts, library: &str) -> bool {
    let stem = |name: &str| {
        let name = name.trim().trim_matches('"');
        name.rsplit('/').next().unwrap_or(name).trim_end_matches(".so").to_owned()
    };
    setting(server, "shared_preload_libraries").split(',').any(|name| stem(name) == library)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::ExtensionFacts;
    use pgleap_proto::fleet::finding::Severity::{Error, Warning};

    #[test]
    fn by_extension_or_library() {
        let mut case = healthy();
        case.set(0, "shared_preload_libraries", "pg_stat_statements, pg_partman_bgw");
        case.expect("schedulers", Warning, "pg_partman_bgw");
        let mut case = healthy();
        case.database("app")
            .extensions
            .push(ExtensionFacts { name: "pg_cron".into(), ..ExtensionFacts::default() });
        case.expect("schedulers", Warning, "database \"app\": the extension pg_cron");
    }

    #[test]
    fn one_that_cannot_be_stopped_is_refused() {
        let mut case = healthy();
        case.set(0, "shared_preload_libraries", "$libdir/pg_cron");
        case.expect("schedulers", Error, "older than 1.6");
        case.set(0, "cron.launch_active_jobs", "on");
        case.expect("schedulers", Warning, "before each switchover");
        case.set(0, "cron.launch_active_jobs", "off");
        case.expect_none("schedulers");
        case.set(0, "shared_preload_libraries", "pg_partman_bgw");
        case.set(0, "pg_partman_bgw.dbname", "app");
        case.expect("schedulers", Error, "which is DDL");
        let mut case = healthy();
        case.database("app")
            .extensions
            .push(ExtensionFacts { name: "timescaledb".into(), ..ExtensionFacts::default() });
        case.expect("schedulers", Error, "timescaledb makes tables");
    }
}
