//! Schedulers inside the server. What they run comes in by no client authentication file: as background workers, or from the
//! server's own socket as a superuser. So no fence keeps their jobs out, and a side that follows must not have one that launches any.
//!
//! Reads settings and judges them; never changes one: whether jobs run is the operator's to say.

use std::fmt;

use crate::error::{Doing, Result, StepError};
use crate::pg::settings::configured;
use crate::pg::sql::Session;
use crate::upgrade::preload;
use pgleap_proto::node::Node;

/// One that launches jobs whenever its server is no standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    /// The preloaded library.
    library: &'static str,
    /// How it is stopped.
    off: &'static str,
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} launches jobs in it, which no fence keeps out ({})", self.library, self.off)
    }
}

impl Scheduler {
    pub(crate) const fn library(&self) -> &'static str {
        self.library
    }
}

/// From 1.6 on: SIGHUP is enough, and a job that is due and not begun is dropped (pg_cron, src/task_states.c, `RefreshTaskHash`).
const CRON: Scheduler = Scheduler {
    library: "pg_cron",
    off: "ALTER SYSTEM SET cron.launch_active_jobs = off; SELECT pg_reload_conf();",
};
const OLD_CRON: Scheduler = Scheduler {
    library: "pg_cron",
    off: "it is older than 1.6 and cannot be stopped: install a newer one, or take it out of shared_preload_libraries, and restart \
          PostgreSQL",
};
/// Without a database it does nothing.
const PARTMAN: Scheduler = Scheduler {
    library: "pg_partman_bgw",
    off: "ALTER SYSTEM SET pg_partman_bgw.dbname = ''; SELECT pg_reload_conf();",
};

/// `backend_type` of what runs a job as a background worker, and `application_name` of a job that came in as a client.
const JOB: &str = "pg_cron";

/// The library behind a name in `shared_preload_libraries`.
pub(crate) fn stem(library: &str) -> &str {
    let name = library.rsplit('/').next().unwrap_or(library);
    name.trim_end_matches(".so")
}

/// Whether a list of libraries has this one.
pub(crate) fn preloads(list: &str, library: &str) -> bool {
    preload::split(list).iter().any(|name| stem(name) == library)
}

/// Pure. `launch` and `dbname` are what the two settings are, none where the server does not know them.
fn judged(libraries: &str, launch: Option<&str>, dbname: Option<&str>) -> Option<Scheduler> {
    if preloads(libraries, CRON.library) {
        match launch {
            Some("off") => {}
            Some(_) => return Some(CRON),
            None => return Some(OLD_CRON),
        }
    }
    let idle = dbname.is_none_or(|dbname| dbname.trim().is_empty());
    (preloads(libraries, PARTMAN.library) && !idle).then_some(PARTMAN)
}

/// Not by `current_setting`: that answers for what merely stands in a file, whether or not a library knows it.
const ASK: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE l.list END, \
    CASE WHEN l.list LIKE '%pg_cron%' THEN (SELECT setting FROM pg_settings WHERE name = 'cron.launch_active_jobs') END, \
    CASE WHEN l.list LIKE '%pg_partman_bgw%' THEN (SELECT setting FROM pg_settings WHERE name = 'pg_partman_bgw.dbname') END \
    FROM (SELECT current_setting('shared_preload_libraries')) AS l(list)";

/// Prepares what [`running`] asks.
pub(super) async fn ready(session: &Session) -> Result<()> {
    session.ready(ASK).await.map(drop).doing(|| "preparing to look for schedulers")
}

/// The scheduler that launches jobs in a running server; a standby launches none.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn running(session: &Session) -> Result<Option<Scheduler>> {
    let row = session.fetch_one(ASK, &[]).await.doing(|| "asking whether a scheduler launches jobs")?;
    let (libraries, launch, dbname): (&str, Option<&str>, Option<&str>) =
        (row.get(0), row.get(1), row.get(2));
    Ok(judged(libraries, launch, dbname))
}

/// Refuses a server in which a scheduler launches jobs.
///
/// # Errors
/// Then, with the cure, or when the server cannot be asked.
pub(crate) async fn refuse(node: &Node, session: &Session) -> Result<()> {
    match running(session).await? {
        Some(scheduler) => Err(StepError::new(format!(
            "node {} is not safe from writes: {scheduler}; stop that there, then try again",
            node.name
        ))),
        None => Ok(()),
    }
}

/// The one that would launch jobs once a stopped server is started by its files.
///
/// # Errors
/// When its files cannot be read.
pub(crate) async fn configured_in(node: &Node) -> Result<Option<Scheduler>> {
    let libraries = configured(node, "shared_preload_libraries").await?;
    // Unknown to `postgres -C` when it stands in no file: then it has its default, which is on.
    let launch = match configured(node, "cron.launch_active_jobs").await {
        Ok(value) if ["off", "false", "no", "0"].contains(&value.to_lowercase().as_str()) => "off",
        _ => "on",
    };
    let dbname = configured(node, "pg_partman_bgw.dbname").await.ok();
    Ok(judged(&libraries, Some(launch), dbname.as_deref()))
}

/// Whether this process runs a job.
pub(crate) fn is_job(kind: &str, application: &str) -> bool {
    kind == JOB || (kind == "client backend" && application == JOB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_launches_unless_it_is_told_not_to() {
        let cron = "pg_stat_statements, $libdir/pg_cron.so";
        assert_eq!(judged("pg_stat_statements", Some("on"), Some("app")), None, "not loaded");
        assert_eq!(judged(cron, Some("on"), None), Some(CRON));
        assert_eq!(judged(cron, Some("off"), None), None);
        assert_eq!(judged(cron, None, None), Some(OLD_CRON), "before 1.6");
        assert_eq!(judged("pg_cron,\"pg_partman_bgw\"", Some("off"), Some("app")), Some(PARTMAN));
        for idle in [None, Some(""), Some(" ")] {
            assert_eq!(judged("pg_partman_bgw", None, idle), None);
        }
    }
}
