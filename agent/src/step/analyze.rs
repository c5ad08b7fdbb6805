//! Analyze: planner statistics of the new cluster, by `vacuumdb`, in the way the majors need it.
//!
//! `pg_upgrade` to 18 carries most statistics over, so only what is missing is gathered in stages, then everything is
//! analysed once, because cumulative statistics (which autovacuum decides by) are never carried over (pg_upgrade
//! manual, "Statistics"). Before 18 nothing is carried over, and all is gathered in stages. A move has the statistics in its
//! files, and gathers them once: rows may sort otherwise here, and cumulative ones are gone as well.

use async_trait::async_trait;
use pgleap_proto::node::Node;
use pgleap_proto::step::{Analyze, Output};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result};
use crate::jobs::JobStatus;
use crate::pg::{program, sql};
use crate::program::Program;

/// See the module.
pub struct AnalyzeStep(pub Analyze);

/// One run of `vacuumdb`.
struct Run {
    job: &'static str,
    options: &'static [&'static str],
    /// How often it goes over each table.
    passes: u64,
}

/// The runs that majors need, in order.
fn runs(old_major: u32, new_major: u32) -> &'static [Run] {
    if old_major == new_major {
        &[Run { job: "all", options: &["--analyze-only"], passes: 1 }]
    } else if new_major >= 18 {
        &[
            Run { job: "missing", options: &["--analyze-in-stages", "--missing-stats-only"], passes: 3 },
            Run { job: "all", options: &["--analyze-only"], passes: 1 },
        ]
    } else {
        &[Run { job: "stages", options: &["--analyze-in-stages"], passes: 3 }]
    }
}

fn command(node: &Node, run: &Run, jobs: u32) -> Program {
    let (port, jobs) = (node.port.to_string(), jobs.max(1).to_string());
    program(node, "vacuumdb")
        .args(["--all", "--verbose", "--jobs", &jobs])
        .args(["--host", &node.socket_dir, "--port", &port, "--username", &node.superuser, "--no-password"])
        .args(run.options.iter().copied())
        // A limit set for the role or the database is meant for others.
        .env("PGOPTIONS", "-c statement_timeout=0 -c lock_timeout=0")
}

#[async_trait]
impl Step for AnalyzeStep {
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let node = given(&self.0.node, "node")?;
        for run in runs(self.0.old_major, node.major) {
            if cx.jobs.status(run.job)? != JobStatus::Exited(0) {
                return Ok(Probe::Ready);
            }
        }
        Ok(Probe::Done(Output::default()))
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        let node = given(&self.0.node, "node")?;
        let tables = tables(node).await?;
        for run in runs(self.0.old_major, node.major) {
            if cx.jobs.status(run.job)? == JobStatus::Exited(0) {
                continue;
            }
            let total = if run.job == "missing" { 0 } else { tables * run.passes };
            let mut done = 0;
            let mut observe = |line: &str| {
                if let Some((_, table)) = line.split_once("INFO:  analyzing ") {
                    done += 1;
                    cx.report.progress(done, total, "tables", table);
                }
            };
            cx.jobs.run_observed(run.job, &command(node, run, self.0.jobs), &mut observe).await?;
        }
        Ok(())
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        // Statistics go with the new cluster; a run under way would hold up its stop.
        cx.jobs.stop_all().await
    }
}

/// Relations `vacuumdb` will go over, in all databases: the kinds that ANALYZE takes (vacuumdb.c, retrieve_objects).
async fn tables(node: &Node) -> Result<u64> {
    let doing = || format!("counting the tables of node {}", node.name);
    let databases =
        "SELECT datname::text FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2";
    let relations =
        "SELECT count(*) FROM pg_catalog.pg_class WHERE relkind IN ('r', 'm') AND relpersistence <> 't'";
    let rows = sql::connect_any(node).await?.query(databases, &[]).await.doing(doing)?;
    let mut total = 0;
    for row in rows {
        let database: String = row.try_get(0).doing(doing)?;
        let row = sql::connect(node, &database).await?.query_one(relations, &[]).await.doing(doing)?;
        total += u64::try_from(row.try_get::<_, i64>(0).doing(doing)?).unwrap_or(0);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighteen_needs_two_runs_and_earlier_majors_one() {
        let options =
            |old, major| runs(old, major).iter().map(|run| run.options.join(" ")).collect::<Vec<_>>();
        assert_eq!(options(15, 18), ["--analyze-in-stages --missing-stats-only", "--analyze-only"]);
        assert_eq!(options(17, 17), ["--analyze-only"]);
        assert_eq!(options(15, 17), ["--analyze-in-stages"]);
    }

    #[test]
    fn goes_over_the_local_socket_only() {
        let node =
            Node { socket_dir: "/s".into(), port: 6001, superuser: "postgres".into(), ..Default::default() };
        let args = command(&node, &runs(15, 18)[1], 0).args.join(" ");
        assert!(args.contains("--host /s --port 6001 --username postgres --no-password"), "{args}");
        assert!(args.contains("--jobs 1") && args.contains("--all"), "{args}");
    }
}
