//! Jobs of a real pg_cron, as background workers, which no client authentication file keeps out.

use pgleap_agent::fence;
use pgleap_agent::pg::sql;
use pgleap_proto::traffic::Side;

use crate::fence::LIMIT;
use crate::pair::{OPERATION, Pair, Place, server_with};
use crate::postgres::{Cluster, skipped, told};
use crate::{eventually, scenario};

/// A server of the new major with pg_cron, whose jobs are launched or not; none where there is no pg_cron, which is told.
fn with_cron(name: &str, launch: &str) -> Option<Cluster> {
    let place = match told("PGLEAP_PG18_CRON") {
        Some(usr) => format!(
            "dynamic_library_path = '{usr}/lib/postgresql/18/lib:$libdir'\nextension_control_path = '{usr}/share/postgresql/18:$system'\n"
        ),
        None if std::path::Path::new("/usr/lib/postgresql/18/lib/pg_cron.so").exists() => String::new(),
        None => {
            assert!(
                std::path::Path::new("/usr/lib/postgresql/18/bin/postgres").exists(),
                "no pg_cron: run tests/setup/all.sh"
            );
            skipped("this machine's own PostgreSQL 18 has no pg_cron (postgresql-18-cron)");
            return None;
        }
    };
    let more = format!(
        "{place}shared_preload_libraries = 'pg_cron'\ncron.database_name = 'app'\ncron.use_background_workers = on\n\
         cron.launch_active_jobs = {launch}"
    );
    let server = server_with(name, 18, &more);
    server.sql("app", "CREATE EXTENSION pg_cron");
    Some(server)
}

/// Every session that begins from now on sees it.
fn launch(server: &Cluster, on: &str) {
    server.sql("app", &format!("ALTER SYSTEM SET cron.launch_active_jobs = {on}"));
    server.sql("app", "SELECT pg_reload_conf()");
    server.until("app", &format!("SELECT current_setting('cron.launch_active_jobs') = '{on}'"));
}

/// No job runs, and the scheduler, which is another one by now, goes by the setting of now.
fn settle(server: &Cluster) {
    let launcher = "FROM pg_stat_activity WHERE backend_type = 'pg_cron launcher'";
    let pid = server.sql("app", &format!("SELECT max(pid) {launcher}"));
    server.sql("app", &format!("SELECT pg_terminate_backend(pid) {launcher}"));
    server.until("app", &format!("SELECT count(*) = 1 {launcher} AND pid <> {}", pid.trim()));
    let job = "backend_type = 'pg_cron' OR application_name = 'pg_cron'";
    server.until("app", &format!("SELECT count(*) = 0 FROM pg_stat_activity WHERE {job}"));
}

fn schedule(server: &Cluster, statement: &str) {
    server.sql("app", &format!("SELECT cron.schedule('job', '1 seconds', $${statement}$$)"));
}

fn rows(server: &Cluster) -> i64 {
    server.sql("app", "SELECT count(*) FROM t").trim().parse().unwrap()
}

/// Until the job would have run a few times more.
async fn a_few_runs_later(server: &Cluster) {
    let until = server.sql("app", "SELECT clock_timestamp() + interval '4 s'");
    let passed = format!("SELECT clock_timestamp() > '{}'", until.trim());
    eventually("some seconds have passed", async || server.sql("app", &passed).trim() == "t").await;
}

#[test]
fn a_fence_behind_which_jobs_are_launched_is_none() {
    scenario("jobs::a_fence_behind_which_jobs_are_launched_is_none", async || {
        let Some(server) = with_cron("one", "on") else { return };
        let place = Place::new();
        server.sql("app", "CREATE TABLE t (v int)");
        schedule(&server, "INSERT INTO t VALUES (1)");
        eventually("the job runs", async || rows(&server) > 0).await;

        let fence = fence::prepare(&place.config, &server.node, OPERATION, &[]).await.unwrap();
        let session = sql::connect(&server.node, "app").await.unwrap();
        fence.apply(&session, LIMIT).await.unwrap();
        // Why: they go on behind it.
        let before = rows(&server);
        eventually("the job runs behind the fence", async || rows(&server) > before).await;
        let state = fence::state(&server.node).await.unwrap();
        assert!(!state.is_fenced(), "{state:?}");
        assert!(
            state.describe().contains("pg_cron launches jobs")
                && state.describe().contains("launch_active_jobs = off")
        );
        assert_eq!(state.operation(), Some(OPERATION), "clients are kept out all the same");

        launch(&server, "off");
        assert!(fence::is_fenced(&server.node).await.unwrap());
        settle(&server);
        let before = rows(&server);
        a_few_runs_later(&server).await;
        assert_eq!(rows(&server), before);
    });
}

#[test]
fn jobs_run_on_the_side_that_takes_writes_and_on_no_other() {
    scenario("jobs::jobs_run_on_the_side_that_takes_writes_and_on_no_other", async || {
        let (Some(old), Some(new)) = (with_cron("old", "off"), with_cron("new", "off")) else { return };
        let pair = Pair::of(old, new).await;
        pair.switch(Side::Old).await;
        // pgleap took the fence away; to launch jobs is the operator's business.
        schedule(&pair.new, "INSERT INTO t (v) VALUES ('job')");
        launch(&pair.new, "on");
        eventually("a job's row is on the other side", async || rows(&pair.old) > 1).await;

        let error = pair.arm_source(&pair.ticket(), Side::New).await.unwrap_err();
        assert!(error.message.contains("cron.launch_active_jobs = off"), "{error}");
        let session = sql::connect(&pair.new.node, "app").await.unwrap();
        session.query_one("SELECT pg_advisory_lock(7)", &[]).await.unwrap();
        schedule(
            &pair.new,
            "INSERT INTO t (v) SELECT 'job' FROM (SELECT pg_advisory_xact_lock(7)) AS waited",
        );
        let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'pg_cron' AND wait_event = 'advisory'";
        pair.new.until("app", waits);
        launch(&pair.new, "off");
        let error = pair.arm_source(&pair.ticket(), Side::New).await.unwrap_err();
        assert!(error.message.contains("still runs"), "{error}");
        session.query_one("SELECT pg_advisory_unlock(7)", &[]).await.unwrap();
        settle(&pair.new);

        // Back, with the jobs themselves, their history and its sequence.
        pair.switch(Side::New).await;
        let before = rows(&pair.new);
        assert_eq!(rows(&pair.old), before);
        a_few_runs_later(&pair.new).await;
        assert_eq!((rows(&pair.old), rows(&pair.new)), (before, before));
        launch(&pair.old, "on");
        eventually("a job's row is on the other side", async || rows(&pair.new) > before).await;
        launch(&pair.old, "off");
        settle(&pair.old);

        // Launched behind the fence by somebody: that side is not safe any more, and the writes are not moved to it.
        launch(&pair.new, "on");
        eventually("it shows", async || !fence::is_fenced(&pair.new.node).await.unwrap()).await;
        let ticket = pair.ticket();
        let armed = pair.arm_source(&ticket, Side::Old).await.unwrap();
        let error = pair.arm_target(&ticket, Side::New, armed.sequences).await.unwrap_err();
        assert!(error.message.contains("pg_cron launches jobs"), "{error}");
    });
}
