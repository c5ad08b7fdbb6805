//! Rehearse: restores the old schema into a scratch cluster of the new major, the way `pg_upgrade` will do it for real.
//!
//! `pg_upgrade --check` looks at versions, libraries and data types but never restores the schema, which is where an
//! upgrade really fails: an option the new release does not know, a function that changed, an extension that is not
//! installed. So the new binaries dump the old schema in binary-upgrade mode over the network and restore it into a
//! scratch server running in that mode (`-b`), with the same options as `create_new_objects` (pg_upgrade.c).
//! Differences: every error is collected instead of stopping at the first; tablespaces are left out, because their
//! directories are the real ones; passwords are not read; sequence values are left out, because an unlogged sequence
//! cannot be read on a standby.
//!
//! It changes nothing on the old cluster and leaves nothing on this host.

use async_trait::async_trait;
use pgleap_proto::node::{Conninfo, Node};
use pgleap_proto::step::{Output, Rehearse};

use super::{Probe, Step, given};
use crate::context::Context;
use crate::error::{Doing, Result, StepError};
use crate::pg::{conninfo, program, sql};
use crate::program::Program;
use crate::upgrade::restore_errors::Failures;
use crate::upgrade::scratch::Scratch;

/// How often a dump is tried that a standby cancelled: replay of a lock conflicts with it ("conflict with recovery").
const DUMP_ATTEMPTS: u32 = 3;

/// See the module.
pub struct RehearseStep(pub Rehearse);

#[async_trait]
impl Step for RehearseStep {
    async fn probe(&self, _cx: &Context) -> Result<Probe> {
        // Schema and binaries may have changed since it last passed.
        Ok(Probe::Ready)
    }

    async fn act(&self, cx: &Context) -> Result<()> {
        rehearse(cx, &self.0).await
    }

    async fn verify(&self, _cx: &Context) -> Result<Output> {
        Ok(Output::default())
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        Scratch::of(cx, given(&self.0.node, "node")?, "postgres")?.remove(cx).await
    }
}

/// The rehearsal, also for calls outside of operations. The scratch cluster is removed whatever comes of it.
///
/// # Errors
/// Names the first statement that fails, with all of them as evidence.
pub async fn rehearse(cx: &Context, params: &Rehearse) -> Result<()> {
    let node = given(&params.node, "node")?;
    let upstream = given(&params.upstream, "upstream")?;
    let old = look(node, upstream, &params.databases).await?;
    let scratch = Scratch::of(cx, node, &old.install_user)?;
    let outcome = restore(cx, node, upstream, &old, &scratch).await;
    let removed = scratch.remove(cx).await;
    outcome?;
    removed
}

/// What has to be known of the old server.
#[derive(Debug, serde::Deserialize)]
struct Old {
    version: String,
    install_user: String,
    /// Of the role that reads over the network.
    reader_oid: u32,
    /// All that can be connected to: `pg_upgrade` restores every one of them.
    databases: Vec<String>,
    libraries: Option<String>,
}

async fn look(node: &Node, upstream: &Conninfo, wanted: &[String]) -> Result<Old> {
    let query = "SELECT pg_catalog.json_build_object(
        'version', pg_catalog.current_setting('server_version'),
        'install_user', (SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10),
        'reader_oid', (SELECT oid::bigint FROM pg_catalog.pg_roles WHERE rolname = current_user),
        'databases', (SELECT pg_catalog.json_agg(datname ORDER BY datname) FROM pg_catalog.pg_database WHERE datallowconn),
        'libraries', CASE WHEN pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE')
                          THEN pg_catalog.current_setting('shared_preload_libraries') END)";
    let target = conninfo(upstream, Some("template1"), "pgleap");
    let psql = program(node, "psql").args(["-X", "-A", "-t", "-q", "-d", &target, "-c", query]);
    let printed = psql.env("PGCLIENTENCODING", "UTF8").run().await.map_err(|error| {
        let message = format!(
            "host {} cannot ask the old server at {}:{} as {}: {}",
            node.host, upstream.host, upstream.port, upstream.user, error.message
        );
        StepError { message, ..error }
    })?;
    let old: Old = serde_json::from_str(printed.stdout.trim()).doing(|| "reading the old server's answer")?;
    if let Some(missing) = wanted.iter().find(|name| !old.databases.contains(name)) {
        return Err(StepError::new(format!(
            "database \"{missing}\" does not exist on the old server at {}:{}, or allows no connections",
            upstream.host, upstream.port
        )));
    }
    Ok(old)
}

async fn restore(cx: &Context, node: &Node, upstream: &Conninfo, old: &Old, scratch: &Scratch) -> Result<()> {
    scratch.make(cx).await?;
    scratch.start(cx, old.libraries.as_deref().unwrap_or_default()).await?;
    let total = old.databases.len() as u64 + 1;
    // In binary-upgrade mode pg_dumpall leaves out the creation of the role it is connected as (dumpRoles): for
    // pg_upgrade that is the install user, which initdb has made; here it is the reader, which is made by hand, and
    // the install user's creation is what fails.
    if upstream.user != old.install_user {
        let set_oid = format!("SELECT binary_upgrade_set_next_pg_authid_oid('{}')", old.reader_oid);
        let create = format!("CREATE ROLE {}", sql::ident(&upstream.user));
        let psql = scratch.client("psql").args(["-X", "-q", "-d", "template1", "-o", "/dev/null"]);
        psql.args(["-v", "ON_ERROR_STOP=1", "-c", &set_oid, "-c", &create]).run().await?;
    }
    let mut failures = Failures::expecting(format!("role \"{}\" already exists", old.install_user));

    cx.report.progress(0, total, "databases", "roles and settings");
    let file = scratch.directory.join("globals.sql").to_string_lossy().into_owned();
    let target = conninfo(upstream, Some("template1"), "pgleap");
    let dump =
        program(node, "pg_dumpall").args(["--globals-only", "--quote-all-identifiers", "--binary-upgrade"]);
    let dump = dump.args(["--no-tablespaces", "--no-role-passwords", "-d", &target, "-f", &file]);
    run_dump(cx, "globals", &dump, upstream).await?;
    let psql =
        scratch.client("psql").args(["-X", "-q", "-b", "-d", "template1", "-o", "/dev/null", "-f", &file]);
    run_restore(cx, "globals", &psql, &mut failures).await?;
    let mut place = (failures.count > 0).then(|| "the roles and settings of all databases".to_owned());

    for (number, database) in old.databases.iter().enumerate() {
        cx.report.progress(number as u64 + 1, total, "databases", database);
        let file = scratch.directory.join("database.dump").to_string_lossy().into_owned();
        let target = conninfo(upstream, Some(database), "pgleap");
        let dump =
            program(node, "pg_dump").args(["--quote-all-identifiers", "--binary-upgrade", "--format=custom"]);
        // pg_upgrade 18 carries statistics over; --schema-only then excludes them.
        let what: &[&str] =
            if node.major >= 18 { &["--no-data", "--statistics"] } else { &["--schema-only"] };
        let dump = dump.args(what.iter().copied()).args([
            "--no-tablespaces",
            "--no-sync",
            "-d",
            &target,
            "-f",
            &file,
        ]);
        let name = format!("database-{number}");
        run_dump(cx, &name, &dump, upstream).await?;
        // As create_new_objects: the two databases that exist already are made anew, from a session in another one.
        let exists = ["template1", "postgres"].contains(&database.as_str());
        let from = if database == "template1" { "postgres" } else { "template1" };
        let mut restore = scratch.client("pg_restore").args(["--create", "--no-tablespaces", "-d", from]);
        if exists {
            restore = restore.args(["--clean", "--if-exists"]);
        }
        run_restore(cx, &name, &restore.arg(&file), &mut failures).await?;
        if failures.count > 0 && place.is_none() {
            place = Some(format!("database \"{database}\""));
        }
    }
    cx.report.progress(total, total, "databases", "");
    verdict(node, upstream, old, &failures, &place.unwrap_or_default())
}

fn verdict(node: &Node, upstream: &Conninfo, old: &Old, failures: &Failures, place: &str) -> Result<()> {
    let Some(first) = failures.first.first() else { return Ok(()) };
    let hint = if first.error.contains("unrecognized") {
        " (an option of a later release set: update the new binaries to a minor release at least as new as the old server's)"
    } else if first.error.contains("could not access file") || first.error.contains("could not load library")
    {
        " (install the package with that library for the new major)"
    } else {
        ""
    };
    Err(StepError::new(format!(
        "the schema of the old cluster ({} at {}:{}) cannot be restored by PostgreSQL {} of {} on host {}: {}, in {place}{hint}; \
         {} statements fail, so pg_upgrade would fail too",
        old.version,
        upstream.host,
        upstream.port,
        node.major,
        node.bin_dir,
        node.host,
        first.error,
        failures.count,
    ))
    .with_evidence(failures.evidence()))
}

async fn run_dump(cx: &Context, name: &str, dump: &Program, upstream: &Conninfo) -> Result<()> {
    let mut attempt = 1;
    loop {
        let error = match cx.jobs.run(&format!("dump-{name}"), dump).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let said = |text: &str| error.evidence.iter().any(|line| line.contains(text));
        if said("conflict with recovery") && attempt < DUMP_ATTEMPTS {
            attempt += 1;
            cx.report.log("pgleap", "the standby cancelled the dump because of a lock it replayed: again");
            continue;
        }
        let cure = if said("permission denied") {
            format!("; make role {} a superuser or a member of pg_read_all_data", upstream.user)
        } else {
            String::new()
        };
        let message = format!(
            "the schema of {}:{} cannot be read: {}{cure}",
            upstream.host, upstream.port, error.message
        );
        return Err(StepError { message, ..error });
    }
}

/// Errors of statements are collected; an error without any is one of the program itself.
async fn run_restore(cx: &Context, name: &str, program: &Program, failures: &mut Failures) -> Result<()> {
    let before = failures.count;
    let outcome =
        cx.jobs.run_observed(&format!("restore-{name}"), program, &mut |line| failures.line(line)).await;
    match outcome {
        Err(error) if failures.count == before => Err(error),
        _ => Ok(()),
    }
}
