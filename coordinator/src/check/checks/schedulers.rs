//! Job schedulers inside the database.

use super::{Check, Problem, Verdict, View, setting};

pub(super) const CHECK: Check = Check {
    name: "schedulers",
    why: "A scheduler in the database starts its jobs as soon as the new leader is promoted, so that they run on both sides.",
    run,
};

const EXTENSIONS: [&str; 5] = ["pg_cron", "pgagent", "pg_timetable", "timescaledb", "pg_partman"];
const LIBRARIES: [&str; 3] = ["pg_cron", "pg_partman_bgw", "timescaledb"];

fn run(view: &View<'_>) -> Verdict {
    let server = view.leader_server()?;
    let mut problems = Vec::new();
    for db in &server.databases {
        for extension in db.extensions.iter().filter(|e| EXTENSIONS.contains(&e.name.as_str())) {
            problems.push(Problem::warning(
                format!("database \"{}\"", db.name),
                format!("the extension {} can run jobs by itself", extension.name),
                "see that its jobs do no harm when they run on the new leader too, or disable them until the switchover \
                 (pg_cron: cron.launch_active_jobs = off in the new cluster)",
            ));
        }
    }
    let preloaded = setting(server, "shared_preload_libraries");
    let preloaded = preloaded.split(',').map(str::trim).filter(|library| LIBRARIES.contains(library));
    // Named once: by its extension, or, without one, by its library.
    let silent: Vec<&str> = preloaded.filter(|_| problems.is_empty()).collect();
    problems.extend(silent.into_iter().map(|library| {
        Problem::warning(
            format!("cluster {}", view.cluster.name),
            format!("the preloaded library {library} can run jobs by itself"),
            "see that its jobs do no harm when they run on the new leader too",
        )
    }));
    Some(problems)
}

#[cfg(test)]
mod tests {
    use crate::check::testing::healthy;
    use pgleap_proto::agent::ExtensionFacts;
    use pgleap_proto::fleet::finding::Severity::Warning;

    #[test]
    fn by_extension_or_library() {
        let mut case = healthy();
        case.set(0, "shared_preload_libraries", "pg_stat_statements, pg_partman_bgw");
        case.expect("schedulers", Warning, "pg_partman_bgw");
        case.database("app")
            .extensions
            .push(ExtensionFacts { name: "pg_cron".into(), ..ExtensionFacts::default() });
        case.expect("schedulers", Warning, "database \"app\": the extension pg_cron");
    }
}
